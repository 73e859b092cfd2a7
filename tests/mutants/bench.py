"""Runs chosen tests against the copy of the project that it stands in, as it is at the moment.

``python -m mutants.bench FILE…`` reads one JSON object a line, the tests to run in their order
with the seconds that each may take, and answers each with one word. A child runs the tests, so
that they see the project anew; what it imports from others is imported once, before.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import resource
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest
from hypothesis import HealthCheck, Phase, settings

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

OPTIONS: Final = (
    *("--quiet", "--exitfirst", "--override-ini=timeout=0", "--override-ini=session_timeout=86400"),
    "--assert=plain",  # nobody reads why a test failed
    "-Wignore::pytest.PytestAssertRewriteWarning",  # plugins are there already
)
KILLED: Final = "killed"
SURVIVED: Final = "survived"
TIMEOUT: Final = "timeout"

_MEMORY: Final = 4 * 2**30
"""Bytes that a child may map: a mutant may never stop asking for more."""

_IMPORT_LIMIT: Final = 30.0
"""Seconds until the first test begins."""

_MEANING: Final = {pytest.ExitCode.OK: SURVIVED, -signal.SIGALRM: TIMEOUT}


class Chosen:
    """Leaves the tests that were chosen, in their order, and ends the process where one hangs."""

    def __init__(self, limits: Mapping[str, float]) -> None:
        self._limits = limits
        self._rank = {test: rank for rank, test in enumerate(limits)}

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = [item for item in items if item.nodeid in self._rank]
        items.sort(key=lambda item: self._rank[item.nodeid])

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> None:
        signal.setitimer(signal.ITIMER_REAL, self._limits[item.nodeid])


def serve(files: Sequence[str]) -> None:
    """Answer until there is nothing more to do."""
    with os.fdopen(os.dup(1), "w") as answers:
        _silence()
        calm_hypothesis()
        import_the_rest(files)

        for line in sys.stdin:
            print(outcome(files, json.loads(line)), file=answers, flush=True)


def calm_hypothesis() -> None:
    """Let it draw the same examples each time, and not look for smaller ones."""
    settings.register_profile(
        "mutants",
        database=None,
        deadline=None,
        derandomize=True,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    settings.load_profile("mutants")


def import_the_rest(files: Sequence[str]) -> None:
    """Import all that the tests import, and forget again what stands in the copy."""
    before = set(sys.modules)
    pytest.main([*OPTIONS, "--collect-only", *files])

    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", None)).startswith(str(Path.cwd())):
            del sys.modules[name]

    gc.collect()
    gc.freeze()  # pytest collects garbage at its end, and a child has no use for it


def outcome(files: Sequence[str], limits: Mapping[str, float]) -> str:
    """Run tests, until one fails, and return how they ended.

    Args:
        files: that hold them.
        limits: seconds of each test, by node id, in order.
    """
    child = os.fork()

    if not child:
        os._exit(_run(files, limits))

    _, status = os.waitpid(child, 0)

    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # what it started and left behind

    return _MEANING.get(os.waitstatus_to_exitcode(status), KILLED)


def _run(files: Sequence[str], limits: Mapping[str, float]) -> int:
    os.setsid()
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    signal.setitimer(signal.ITIMER_REAL, _IMPORT_LIMIT)

    try:
        return pytest.main([*OPTIONS, "--tb=no", *files], plugins=[Chosen(limits)])
    except BaseException:  # noqa: BLE001  # a mutant may end the process in any way
        return 1


def _silence() -> None:
    """Send all that is printed from now on nowhere: it would stand between the answers."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    os.close(nowhere)


if __name__ == "__main__":
    serve(sys.argv[1:])
