"""Builds that are broken on purpose, and the test that notices each.

A test that no broken build fails proves nothing. Each break here is a promise taken out of a copy
of the package by replacing a few words; the test named beside it must fail on that, and pass on the
package as it is. ``python -m torture --breaks``.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

ROOT: Final = Path(__file__).parents[2]
LEFT_OUT: Final = shutil.ignore_patterns(".*", "__pycache__", "build", "dist", "*.egg-info")
LIMIT: Final = 60
"""Seconds that a test may take: on a broken build it may wait for ever."""

FAILED: Final = 1  # pytest's exit code; others are of a run that says nothing


@dataclass(frozen=True)
class Break:
    """A promise, and how it is broken.

    Attributes:
        name: what the broken build does.
        edits: (file of the package, words, what stands there instead), each once or more.
        test: arguments of pytest, the smallest that notices it.
    """

    name: str
    edits: Sequence[tuple[str, str, str]]
    test: str


QUERIES: Final = "ledger/queries.sql"
QUERIES_OF_POSTGRESQL: Final = "ledger/postgres_queries.sql"
SCHEMA_OF_POSTGRESQL: Final = "ledger/postgres_schema.sql"

TURN: Final = "run_in(self.thread, self._turn, outcomes, claims, drop=self._hand_back)"
TOO_LATE: Final = """
        if turn.starts:
            self.thread.submit(self._store.run, "add_intents", self._late)
        return turn
"""

BREAKS: Final = (
    Break(
        "writes an intent once its start is on its way",
        [
            (
                "ledger/ledger.py",
                'self._store.run("add_intents", told | {"session": self._store.session})',
                'self._late = told | {"session": self._store.session}',
            ),
            ("ledger/ledger.py", f"return await {TURN}", f"turn = await {TURN}\n{TOO_LATE}"),
        ],
        "tests/test_at_most_once.py -k other_programs_see_an_intent",
    ),
    Break(
        "commits to a file without a sync",
        [("ledger/sqlite.py", '"PRAGMA synchronous=FULL"', '"PRAGMA synchronous=OFF"')],
        "tests/test_crashes.py -k a-sync-before-each-start",
    ),
    Break(
        "commits to PostgreSQL without a sync",
        [
            (
                "ledger/postgres_server.py",
                '"synchronous_commit": "on"',
                '"synchronous_commit": "off"',
            )
        ],
        "tests/test_postgres_errors.py -k settings_for_the_role",
    ),
    Break(
        "begins beside a launcher that holds a file's lock",
        [("ledger/sqlite.py", "fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)", "pass")],
        "tests/test_durability.py -k second_launcher",
    ),
    Break(
        "claims rows without their locks",
        [
            (SCHEMA_OF_POSTGRESQL, " FOR UPDATE SKIP LOCKED", ""),
            (
                SCHEMA_OF_POSTGRESQL,
                "json_each_text(starts::json)\n$$",
                "json_each_text(starts::json) ON CONFLICT DO NOTHING\n$$",
            ),
        ],
        "tests/test_shared_ledger.py -k no_row_is_taken_by_two",
    ),
    Break(
        "takes a launcher for alive as long as it is young",
        [
            (
                QUERIES_OF_POSTGRESQL,
                "SELECT session FROM locks WHERE batch = this_batch();",
                "SELECT id FROM session WHERE began_ms > extract(epoch FROM now()) * 1000 - 60000;",
            )
        ],
        "tests/test_join.py -k killed_is_unknown",
    ),
    Break(
        "goes on with a session that others found dead",
        [
            (
                QUERIES_OF_POSTGRESQL,
                "WHERE id = ?1 AND lost_ms IS NULL RETURNING turns",
                "WHERE id = ?1 RETURNING turns",
            )
        ],
        "tests/test_shared_ledger.py -k intent_of_one_found_dead",
    ),
    Break(
        "drops an outcome that comes late",
        [
            (QUERIES, "  OR result = 'unknown' AND excluded.result <> 'unknown'\n", ""),
            (
                SCHEMA_OF_POSTGRESQL,
                "    OR a.result = 'unknown' AND excluded.result <> 'unknown'\n",
                "",
            ),
        ],
        "tests/test_unknown.py -k outranks_a_finding",
    ),
    Break(
        "lifts a doubt by a later refusal",
        [
            (
                QUERIES,
                "WHEN a.result = 'unknown' AND a.finding IS NULL THEN 3",
                "WHEN a.result = 'unknown' AND a.finding IS NULL THEN 1",
            ),
            (
                SCHEMA_OF_POSTGRESQL,
                "WHEN a.result = 'unknown' AND a.finding IS NULL THEN 3",
                "WHEN a.result = 'unknown' AND a.finding IS NULL THEN 1",
            ),
        ],
        "tests/test_ledger.py -k follows_from_the_attempts",
    ),
    Break(
        "goes on with an older copy",
        [("launch/witness.py", "if known is None:\n        return", "if True:\n        return")],
        "tests/test_history.py -k older_copy",
    ),
    Break(
        "begins a second batch of an unfinished manifest",
        [("launch/witness.py", "if not other.is_unfinished:", "if True:")],
        "tests/test_history.py -k second_batch",
    ),
    Break(
        "sends a row of an earlier session again that is unknown",
        [(QUERIES, "OR state = 'unknown' AND ?3 AND NOT", "OR state = 'unknown' AND NOT")],
        "tests/test_ledger.py -k claims_what_it_may",
    ),
    Break(
        "sends a start again whose response was lost",
        [
            (
                "launch/retry.py",
                "case _:\n            return Result.UNKNOWN",
                "case _:\n            return Result.RETRY",
            )
        ],
        "tests/test_retries.py -k what_an_error_makes",
    ),
    Break(
        "tells of an outcome before it is durable",
        [
            (
                "launch/session.py",
                "self._outcomes.append(outcome)",
                "self._emit(events.RowEnded(outcome)); self._outcomes.append(outcome)",
            ),
        ],
        "tests/test_at_most_once.py -k told_once_its_end_is_durable",
    ),
    Break(
        "sends an intent that has become too old",
        [("des/http.py", "if self.clock() > self.latest:", "if False:")],
        "tests/test_connections.py -k comes_too_late",
    ),
    Break(
        "sends a refused token again",
        [
            ("launch/session.py", "throttle.hold()", "pass"),
            ("launch/session.py", "self._workers.help(self._renew(target, error))", "pass"),
        ],
        "tests/test_session.py -k one_renewal_serves_all",
    ),
    Break(
        "sends a refused token again while none can be had",
        [("des/tokens.py", "self.in_use = None if isinstance(exc, errors.NotSent) else ", "_ = ")],
        "tests/test_tokens.py -k refused_token_is_not_sent_again",
    ),
    Break(
        "takes a 302 for a start that did not take place",
        [("des/client.py", "kind = errors.Redirected if is_moved else unknown", "pass")],
        "tests/test_responses.py -k verdict_on_a_reply",
    ),
)


def attempts(folder: Path) -> Iterator[tuple[str, str]]:
    """Yield each break's name and which test noticed it; ``""``: none did."""
    whole = folder / "whole"
    shutil.copytree(ROOT, whole, ignore=LEFT_OUT)

    for number, broken in enumerate(BREAKS):
        copy = folder / f"{number}"
        shutil.copytree(ROOT, copy, ignore=LEFT_OUT)

        for file, words, others in broken.edits:
            path = copy / "deslaunch" / file
            text = path.read_text("utf-8")
            assert words in text, f"{broken.name}: {file} has no {words!r}"
            path.write_text(text.replace(words, others), "utf-8")

        code, failed = _run(copy, broken.test)
        is_noticed = code == FAILED and _run(whole, broken.test)[0] == 0
        yield broken.name, failed if is_noticed else ""
        shutil.rmtree(copy)


def _run(folder: Path, test: str) -> tuple[int, str]:
    """Run a test with a copy of the package; return pytest's exit code, and what failed first."""
    options = ("-x", "-q", "-o", f"timeout={LIMIT}")
    path = os.pathsep.join([str(folder), str(folder / "tests")])
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *test.split()],
        check=False,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    failed = re.search(r"^(?:FAILED|ERROR) tests/(.+?)(?: - |$)", done.stdout, re.MULTILINE)
    return done.returncode, failed[1] if failed else test
