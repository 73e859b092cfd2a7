"""Runs all tests once: ``python -m mutants.covering PATH ANSWER FILE…``.

Writes to ANSWER, as JSON, each test's seconds, and by line of PATH the tests that run it.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import coverage
import pytest

from .bench import OPTIONS, calm_hypothesis

if TYPE_CHECKING:
    from collections.abc import Iterator


class Covered:
    """Notes each test's seconds, and the lines of a file that it runs.

    Lines that run while the file is imported belong to the test ``""``.
    """

    def __init__(self, path: str) -> None:
        self._seconds: dict[str, float] = {}
        self._path = path
        os.environ["COVERAGE_CORE"] = "ctrace"  # the newer core sees a line once, not once a test
        self._coverage = coverage.Coverage(include=[path], data_file=None)
        self._coverage.start()
        self._coverage.switch_context("")

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        _clear_caches(self._path)
        self._coverage.switch_context(item.nodeid)
        began = time.monotonic()
        result = yield
        self._seconds[item.nodeid] = time.monotonic() - began
        self._coverage.switch_context("")
        return result

    def as_dict(self) -> dict[str, object]:
        self._coverage.stop()
        lines = self._coverage.get_data().contexts_by_lineno(self._path)
        return {"seconds": self._seconds, "lines": lines}


def _clear_caches(path: str) -> None:
    """Forget answers to earlier tests: a test needs the lines behind them as well."""
    for module in list(sys.modules.values()):
        if getattr(module, "__file__", None) == path:
            for value in vars(module).values():
                getattr(value, "cache_clear", int)()


def main(path: str, answer: str, *files: str) -> int:
    calm_hypothesis()
    covered = Covered(path)
    code = pytest.main([*OPTIONS, "--tb=short", *files], plugins=[covered])
    Path(answer).write_text(json.dumps(covered.as_dict()))
    return code


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
