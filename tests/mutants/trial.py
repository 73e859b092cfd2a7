"""Every mutant of a module against the tests that run its lines, in copies of the project."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
import time
from asyncio.subprocess import PIPE, STDOUT
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from .bench import SURVIVED
from .mutant import mutants_of
from .tally import Tally

if TYPE_CHECKING:
    from asyncio.subprocess import Process
    from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence

_TESTS: Final = Path(__file__).parents[1]
PROJECT: Final = _TESTS.parent
_COPIED: Final = ("deslaunch", "tests", "pyproject.toml", "README.md", "CHANGELOG.md", "samples")
_SPARE: Final = 5.0
"""Seconds that a test may take beside …"""

_SLOWER: Final = 5.0
"""… this many times what it takes where nothing is wrong."""


class Unfit(Exception):
    """The tests can't judge: they fail where nothing is wrong, or don't notice that all is."""


@dataclass(frozen=True)
class Coverage:
    """What the tests run.

    Attributes:
        seconds: of each test.
        lines: the tests by line; the test ``""`` is the import.
    """

    seconds: dict[str, float]
    lines: dict[int, list[str]]

    def tests_of(self, lines: Iterable[int]) -> dict[str, float]:
        """Return the tests that run one of the lines, the quickest first, with their limits."""
        found = {test for line in lines for test in self.lines.get(line, ())}
        tests = sorted(self.seconds if "" in found else found, key=self.seconds.__getitem__)
        return {test: _SPARE + _SLOWER * self.seconds[test] for test in tests}


class Copy:
    """A copy of the project that may be broken.

    Args:
        project: what is copied.
        folder: where it is made.
        module: what will be broken in it.
        files: its tests.
    """

    def __init__(self, project: Path, folder: Path, module: str, files: Sequence[str]) -> None:
        self.folder = folder
        self._path = folder / "deslaunch" / f"{module}.py"
        self._files = files
        self._age = 0
        folder.mkdir()

        for name in _COPIED:
            _copy(project / name, folder / name)

    async def coverage(self) -> Coverage:
        """Run all tests once.

        Raises:
            Unfit: a test fails.
        """
        answer = self.folder / "coverage.json"
        process = await self._python(
            "mutants.covering", str(self._path), str(answer), stderr=STDOUT
        )
        said, _ = await process.communicate()

        if process.returncode:
            raise Unfit(f"a test fails before anything is broken:\n{said.decode()}")

        found = json.loads(answer.read_text())
        lines = {int(line): tests for line, tests in found["lines"].items()}
        return Coverage(found["seconds"], lines)

    @asynccontextmanager
    async def bench(self) -> AsyncIterator[Process]:
        """Run a process that tries the copy."""
        process = await self._python("mutants.bench")

        try:
            yield process
        finally:
            process.kill()
            await process.wait()

    def put(self, source: str) -> None:
        """Break the copy; each time with another date, by which Python knows what to compile."""
        self._age += 1
        self._path.write_text(source)
        os.utime(self._path, (self._age, self._age))

    async def _python(self, module: str, *arguments: str, stderr: int | None = None) -> Process:
        path = os.pathsep.join(map(str, [self.folder, self.folder / "tests", _TESTS]))
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", module, *arguments, *self._files),
            cwd=self.folder,
            env=os.environ | {"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": ""},
            stdin=PIPE,
            stdout=PIPE,
            stderr=stderr,
        )


async def trial(
    module: str,
    folder: Path,
    files: Sequence[str],
    *,
    processes: int,
    only: Sequence[int] = (),
    observe: Callable[[Tally], None] = lambda _: None,
    project: Path = PROJECT,
) -> Tally:
    """Try every mutant of a module.

    Args:
        module: its name in the package.
        folder: where copies may be made.
        files: the tests that judge, relative to the project.
        processes: copies at work at the same time.
        only: lines to break; all, where none are given.
        observe: called with what is known after each mutant.
        project: what is copied.

    Raises:
        Unfit: the tests fail where nothing is wrong.
    """
    began = time.monotonic()
    source = (project / "deslaunch" / f"{module}.py").read_text()
    mutants = [m for m in mutants_of(module, source) if not only or m.line in only]
    coverage = await Copy(project, folder / "whole", module, files).coverage()
    tally = Tally(module, len(mutants))
    waiting = iter(mutants)

    async def work(copy: Copy) -> None:
        async with copy.bench() as bench:
            copy.put(source)
            await _expect_survival(bench, coverage)

            for mutant in waiting:
                copy.put(mutant.source)
                tally.add(mutant, await _verdict(bench, coverage.tests_of(mutant.lines)))
                tally.seconds = time.monotonic() - began
                observe(tally)

    async with asyncio.TaskGroup() as group:
        for number in range(processes):
            group.create_task(work(Copy(project, folder / f"{number}", module, files)))

    return tally


async def _expect_survival(bench: Process, coverage: Coverage) -> None:
    if await _verdict(bench, coverage.tests_of(coverage.lines)) != SURVIVED:
        raise Unfit("a test fails on a copy in which nothing is broken")


async def _verdict(bench: Process, tests: Mapping[str, float]) -> str:
    if not tests:
        return SURVIVED

    assert bench.stdin is not None
    assert bench.stdout is not None
    bench.stdin.write(json.dumps(tests).encode() + b"\n")
    answer = await bench.stdout.readline()

    if not answer:
        raise Unfit("the process that runs the tests has ended")

    return answer.decode().strip()


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    elif source.exists():
        shutil.copy(source, target)
