"""A DES, or what gives tokens for it, is away for a while; another target goes on."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

from authserver import LOGIN
from stage import ended, row, workplace

from deslaunch.simulator import Simulator

from .kills import SLOTS
from .tally import Tally, finish, next_command, shown, side_by_side

if TYPE_CHECKING:
    import random
    import subprocess
    from pathlib import Path

    from stage import Workplace

ROWS: Final = 400
OUTAGES: Final = 3
ENDED: Final = {0, 3, 4, 5, 6}
SCRIPT: Final[dict[str, Any]] = {"latency": 0.02}
NO_TOKENS: Final[dict[str, Any]] = {
    "latency": 0.02,
    "faults": [{"fault": "status", "status": 503, "on": "token"}],
}
CONFIG: Final = """
[targets.near]
base_url = "{near}"
token_env = "DES_TOKEN"

[targets.far]
base_url = "{far}"

[targets.far.oauth]
auth_url = "{far}"
org_id = "BISTRO"
client_id = "night"
client_secret_env = "FAR_SECRET"
username_env = "FAR_USER"
password_env = "FAR_PASSWORD"
"""
SECRETS: Final = {
    "FAR_SECRET": "client_secret",
    "FAR_USER": "username",
    "FAR_PASSWORD": "password",
}


def away(folder: Path, *, fast: bool, rng: random.Random) -> Tally:
    """Take a server away in mid-launch: it is waited for, and the rows of the other go on."""
    tally = Tally("a server, or the auth server, away for a while")

    def one(number: int, kind: str, spans: list[tuple[int, float]]) -> None:
        name = f"{kind} {number}"

        with workplace(folder / name, SCRIPT) as place, tally.case(name):
            server = Simulator(
                script=SCRIPT, log=place.folder / "far.jsonl", tokens=(), token_seconds=1.5
            )

            with place.portal.wrap_async_context_manager(server) as far:
                command = _prepare(place, far)

                if kind == "from the start":
                    place.portal.call(far.refuse)

                process = place.start(*command, "--concurrency", str(SLOTS))

                for moment, seconds in [] if kind == "from the start" else spans:
                    _take_away(place, far, process, kind, moment, seconds)

                done = ended(process)
                # Less than five rows in flight are cut off: no reason to stop, it is waited for.
                assert done.returncode in ({0, 4} if kind == "refused" else ENDED), shown(done)
                assert "Traceback" not in done.stderr, shown(done)
                # The rows of the other one did not wait for it.
                states = place.judge().lines
                near = {line["state"] for line in states if line["target"] == "near"}
                assert near == {"started"}, near

                if kind == "from the start":
                    place.portal.call(far.listen)

                finish(place)
                place.portal.call(far.until, lambda: not far.in_flight)
                tally.starts += far.requests

            with place.log.open("a") as log:
                log.write((place.folder / "far.jsonl").read_text())

            most_unknown = SLOTS * len(spans) if kind == "refused" else 0
            tally.conclude(place, most_unknown=most_unknown, rows=ROWS)
            # Nothing was refused for good: each row comes to its run.
            assert place.judge().counts.keys() <= {"started", "unknown"}, place.judge().counts

    kinds = ("refused", "no tokens", "from the start")
    cases = []

    for number in range(1 if fast else 6):
        moments = sorted(rng.sample(range(1, ROWS // 3), 1 if fast else OUTAGES))
        spans = [(moment, rng.uniform(0.1, 0.5 if fast else 2)) for moment in moments]
        cases.append((number, kinds[number % len(kinds)], spans))

    side_by_side(one, cases)
    return tally


def _prepare(place: Workplace, far: Simulator) -> tuple[str, ...]:
    targets = ("near", "far")
    place.write(row(n, target=targets[n % 2]) for n in range(1, ROWS + 1))
    config = place.folder / "targets.toml"
    config.write_text(CONFIG.format(near=place.simulator.base_url, far=far.base_url))
    place.environment.update({variable: LOGIN[name] for variable, name in SECRETS.items()})
    del place.environment["DES_BASE_URL"]
    return next_command(place, "--config", "targets.toml")


def _take_away(
    place: Workplace,
    far: Simulator,
    process: subprocess.Popen[str],
    kind: str,
    moment: int,
    seconds: float,
) -> None:
    """Let a server be away for so long, once it has started so many runs."""
    while len(far.runs) < moment and process.poll() is None:
        time.sleep(0.005)

    if kind == "refused":
        place.portal.call(far.refuse)
    else:
        far.use(NO_TOKENS)

    time.sleep(seconds)

    if kind == "refused":
        place.portal.call(far.listen)
    else:
        far.use(SCRIPT)
