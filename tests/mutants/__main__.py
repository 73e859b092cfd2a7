"""All mutants, one table; exit code 1 where one lives that is not on the list of survivors."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

from . import survivors
from .tally import Tally, table
from .trial import Unfit, trial

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

MODULES: Final = ("retry", "throttle", "health", "schema", "engine", "ledger")


def main(argv: Sequence[str] | None = None) -> int:
    given = _parser().parse_args(argv)
    modules = given.module or MODULES
    reasons = survivors.read(survivors.LIST.read_text())
    tallies: list[Tally] = []

    for module in modules:
        tallies.append(Tally(module, 0))

        def observe(tally: Tally) -> None:
            tallies[-1] = tally
            _show(tallies, given.json)

        if not _is_tried(module, given, observe):
            return 2

    print(table(tallies))
    found = [mutant for tally in tallies for mutant in tally.survivors]
    new = survivors.unlisted(found, reasons)
    _tell("alive, and not in survivors.toml:", new)

    if not given.line:
        gone = survivors.outlived(found, reasons, modules)
        _tell("in survivors.toml, and not alive:", gone)

    return int(bool(new))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="mutants", description=__doc__)
    parser.add_argument(
        "--module", action="append", metavar="NAME", help="of " + ", ".join(MODULES)
    )
    parser.add_argument("--line", action="append", type=int, metavar="N", help="break these only")
    parser.add_argument("--tests", action="append", metavar="FILE", help="tests/test_NAME.py")
    parser.add_argument("--processes", type=int, metavar="N", default=os.cpu_count() or 1)
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the result here too")
    return parser


def _is_tried(module: str, given: argparse.Namespace, observe: Callable[[Tally], None]) -> bool:
    """Try a module's mutants; tell whether its tests could judge them."""
    files = given.tests or [f"tests/test_{module}.py"]

    try:
        with tempfile.TemporaryDirectory(prefix="mutants-") as scratch:
            work = trial(
                *(module, Path(scratch), files),
                processes=given.processes,
                only=given.line or (),
                observe=observe,
            )
            asyncio.run(work)
            return True
    except* Unfit as group:
        for unfit in group.exceptions:
            print(f"{module}: {unfit}", file=sys.stderr)

    return False


def _show(tallies: Sequence[Tally], path: Path | None) -> None:
    tally = tallies[-1]

    if tally.tried % 50 == 0 or tally.tried == tally.mutants:
        alive = len(tally.survivors)
        print(f"{tally.module}: {tally.tried} of {tally.mutants}, {alive} alive", flush=True)

    if path is not None:
        path.write_text(json.dumps([tally.as_dict() for tally in tallies], indent=1) + "\n")


def _tell(heading: str, lines: Iterable[object]) -> None:
    for number, line in enumerate(lines):
        print(f"{line}" if number else f"\n{heading}\n{line}")


if __name__ == "__main__":
    sys.exit(main())
