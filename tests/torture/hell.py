"""Every fault of the simulator in one launch."""

from __future__ import annotations

import asyncio
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from .arena import QUICK, Arena, arena, side_by_side
from .tally import Tally
from .witness import duplicates_in, key_of, unknown_in

if TYPE_CHECKING:
    import random
    from pathlib import Path

TOKENS: Final = tuple(f"tOken-{number}-of-one-organisation" for number in range(1, 9))
INVALID: Final = 25
HARD: Final = ("--concurrency", "64", "--timeout", "1", "--max-attempts", "4")
LENIENT: Final = ("--max-errors", "100%", "--skip-invalid")
_QUIET_START: Final = 20  # the first contact is spared, so that more than one row is sent
_LOSSES: Final = (
    "close",
    "reset",
    "close-after-start",
    "reset-after-start",
    "cut-head",
    "cut-body",
    "garbage",
    "not-json",
    "no-id",
    "other-job",
    "huge-body",
)
_SLOW_LOSSES: Final = ("hang", "hang-after-start", "stall-body")


def script(rows: int, seed: int) -> dict[str, Any]:
    """Return a script with every kind of fault, outages among them."""
    some = {"from": _QUIET_START}
    at = [rows // 10, rows // 3]
    later = [rows // 5, rows // 2]
    down = rows * 3 // 5
    return {
        "seed": seed,
        "latency": 0.002,
        "tokens": {"expireAfter": rows // 4, "which": "all"},
        "faults": [
            {"fault": "outage", "from": down, "to": down + rows // 125},
            {"fault": "outage", "status": 500, "from": down + rows // 12, "to": down + rows // 6},
            {"fault": "outage", "status": 503, "retryAfter": 1, "from": rows, "to": rows + 3},
            {"fault": "status", "status": 429, "retryAfter": 1, "at": at},
            {"fault": "status", "status": 429, "retryAfterDate": 1, "at": later},
            {"fault": "status", "status": 429, "at": [rows // 4]},
            {"fault": "status", "status": 425, "at": [rows // 4 + 50]},
            *({"fault": "status", "status": status, "share": 0.02} for status in (500, 502, 503)),
            *(
                {"fault": "status", "status": status, "share": 0.004, **some}
                for status in (504, 524, 408, 403, 400, 409, 422, 404)
            ),
            *(
                {"fault": "status", "status": status, "start": True, "share": 0.01, **some}
                for status in (500, 502, 504)
            ),
            *({"fault": kind, "share": 0.003, **some} for kind in _LOSSES),
            *({"fault": kind, "share": 0.002, **some} for kind in _SLOW_LOSSES),
            {"fault": "latency", "seconds": 0.05, "share": 0.05},
            {"fault": "close-after-answer", "share": 0.02},
            {"fault": "redirect", "at": [rows * 2 // 3]},
        ],
    }


async def launch(folder: Path, *, fast: bool, rng: random.Random) -> Tally:
    """Launch through all faults, resume until nothing is pending, and count."""
    rows, batches = (200, 1) if fast else (5000, 2)
    tally = Tally(f"launch through hell, {rows:,} rows")

    async def one(number: int) -> None:
        place_script = script(rows, rng.randrange(1000))

        async with arena(folder / f"{number}", rows, place_script, tokens=TOKENS) as place:
            await _batch(tally, place, f"batch {number}")
            tally.cases += 1

    await side_by_side((partial(one, number) for number in range(batches)), 2)
    return tally


async def _batch(tally: Tally, place: Arena, case: str) -> None:
    _spoil_rows(place)
    token = _Token(place.folder / "token")
    del place.environment["DES_TOKEN"]
    place.environment["DES_TOKEN_FILE"] = str(token.path)
    handing_out = asyncio.create_task(_hand_out(place, token, len(place.keys) // 4))
    codes = []
    doubtful: set[str] = set()

    for _ in range(80):
        done = await place.run(*place.going_on(*HARD, *LENIENT, *QUICK, "--json"))
        codes.append(done.code)
        tally.expect(done.code in {3, 4, 5, 6}, f"{case}: {done}")
        now = unknown_in(place.ledger)
        tally.expect(doubtful <= now, f"{case}: doubts went away: {doubtful - now}")
        doubtful = now

        if done.code in {3, 4, 1, 7}:
            break

        if done.code == 6:  # the token ran out, and no new one was there yet: now there is
            token.renew()

    handing_out.cancel()
    told = sorted((code, codes.count(code)) for code in set(codes))
    sessions = ", ".join(f"{count} times exit {code}" for code, count in told)
    states = await place.conclude(tally, case, *HARD, *LENIENT, most_unknown=None)
    _note(tally, place, case, states, sessions)


def _note(tally: Tally, place: Arena, case: str, states: Counter[str], sessions: str) -> None:
    counts = ", ".join(f"{count:,} {state}" for state, count in states.most_common() if count)
    twice = sum(times > 1 for times in Counter(map(key_of, place.simulator.runs)).values())
    marked = duplicates_in(place.ledger)
    tally.expect(twice <= marked, f"{case}: {twice} rows have two runs, {marked} are marked")
    told = f"{twice} rows with two runs, {marked:,} marked as possible duplicates"
    tally.note(f"{case}: {counts}; {told}; sessions: {sessions}")


def _spoil_rows(place: Arena) -> None:
    """Make some rows invalid; they keep their keys."""
    lines = place.manifest.read_text().splitlines()
    step = len(lines) // INVALID

    for index in range(3, len(lines), step):
        lines[index] = lines[index].replace('"DBGenFrom": ', '"DBGenFrom": 0.')

    place.manifest.write_text("\n".join(lines) + "\n")


class _Token:
    """The file that holds the token, and the tokens that follow."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._following = iter(TOKENS)
        self.renew()

    def renew(self) -> None:
        """Write the next token; the last one stays."""
        for token in self._following:
            self.path.write_text(token)
            return


async def _hand_out(place: Arena, token: _Token, budget: int) -> None:
    """Put a new token into the file before the present one runs out, but for every third."""
    for number in range(1, len(TOKENS)):
        await place.simulator.until(partial(_has_runs, place, number * budget - 20))

        if number % 3:
            token.renew()


def _has_runs(place: Arena, aim: int) -> bool:
    return len(place.simulator.runs) >= aim
