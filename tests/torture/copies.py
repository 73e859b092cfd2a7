"""An older copy of the ledger is put back, or used at another place."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Final

from judge import read_log, row_of
from stage import workplace

from .kills import LONG, MANY_SLOTS
from .tally import Tally, finish, kill, next_command, shown, side_by_side

if TYPE_CHECKING:
    import random
    from pathlib import Path

    from stage import Workplace

ROWS: Final = 400
OUTDATED: Final = 7
# What DES refuses it refuses each time: no row is started first, and refused from the copy.
SCRIPT: Final = LONG | {"faults": [one for one in LONG["faults"] if one.get("status") != 400]}
WAYS: Final = ("at rest", "killed", "in mid-launch", "without its log")
"""How a copy was taken; the last two while the launcher was at work."""


def restored(folder: Path, *, fast: bool, rng: random.Random) -> Tally:
    """Put a copy back: it is refused, and what it starts where that is accepted is marked."""
    tally = Tally("older copies, put back or elsewhere")

    def one(number: int, way: str, moments: tuple[int, int]) -> None:
        name = f"{way} {number}"

        with workplace(folder / name, SCRIPT | {"seed": number}) as place, tally.case(name):
            place.manifest(ROWS)
            _launch(place, way, moments)
            tally.kills += 1
            _refuse_elsewhere(place)
            _put_back(place)
            before = place.simulator.requests
            _assert_refused(place)
            assert place.simulator.requests == before, "the copy was sent from"

            if number % 3:
                done = place.run(*next_command(place, "--accept-copy", "--quiet"))
                assert done.returncode in {0, 3, 4, 5}, shown(done)
                tally.conclude(place, most_unknown=2 * MANY_SLOTS, rows=ROWS, unless_marked=True)
            else:
                _go_on_without_history(place)
                tally.cases += 1
                tally.starts += place.simulator.requests

    cases = []

    for n in range(12):
        moments = (rng.randrange(1, ROWS // 3), rng.randrange(ROWS // 2, ROWS - 40))
        cases.append((n, WAYS[n % len(WAYS)], moments))

    side_by_side(one, [cases[6]] if fast else cases)
    return tally


def _launch(place: Workplace, way: str, moments: tuple[int, int]) -> None:
    """Launch, take a copy at the first moment, and be killed at the second."""
    if way == "at rest":
        place.run(*next_command(place, "--limit", str(moments[0])))
        _copy(place, way)

    process = place.start(*next_command(place, "--concurrency", str(MANY_SLOTS)))

    if way != "at rest":
        place.wait_for_runs(process, moments[0])

        if way == "killed":
            kill(process)
            place.at_rest()

        _copy(place, way)

        if way == "killed":
            process = place.start(*next_command(place, "--concurrency", str(MANY_SLOTS)))

    place.wait_for_runs(process, moments[1])
    kill(process)
    place.at_rest()
    # A session that ends notes all its attempts; one that is killed, those of a second ago.
    place.run(*next_command(place, "--limit", "1"))


def _copy(place: Workplace, way: str) -> None:
    (place.folder / "copy").mkdir()

    for end in ("",) if way == "without its log" else ("", "-wal"):
        path = place.ledger.with_name(place.ledger.name + end)

        if path.exists():
            shutil.copyfile(path, place.folder / "copy" / path.name)


def _put_back(place: Workplace) -> None:
    for path in place.folder.glob("night.ledger.db*"):
        if not path.name.endswith(".lock"):
            path.unlink()

    for path in (place.folder / "copy").iterdir():
        shutil.copyfile(path, place.folder / path.name)


def _refuse_elsewhere(place: Workplace) -> None:
    """A copy of the newest ledger, at another place, is refused."""
    other = place.folder / "elsewhere" / place.ledger.name
    other.parent.mkdir()
    shutil.copyfile(place.ledger, other)
    before = place.simulator.requests
    done = place.run("resume", str(other), "--quiet")
    assert done.returncode == OUTDATED, shown(done)
    assert place.simulator.requests == before, "the copy was sent from"


def _assert_refused(place: Workplace) -> None:
    done = place.run("resume", str(place.ledger), "--quiet")
    assert done.returncode == OUTDATED, shown(done)
    assert "older copy" in done.stderr or "damaged" in done.stderr, shown(done)


def _go_on_without_history(place: Workplace) -> None:
    """On another machine nobody can tell; but what the copy knows is never sent again."""
    shutil.rmtree(place.folder / "state")
    judge = place.judge()
    known = {row for row, state in judge.states.items() if state != "pending"}
    runs = len(read_log(place.log))
    finish(place)
    place.at_rest()
    again = {row_of(run) for run in read_log(place.log)[runs:]} & known
    assert not again, f"the copy knew of them: {again}"
    place.judge().assert_none_lost()
