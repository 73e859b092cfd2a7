"""Builds that are broken on purpose, and the test and the attacks that notice each.

A test, or an attack, that no broken build fails proves nothing. Each break here is a promise taken
out of a copy of the package by replacing a few words; the test and the small attacks named beside
it must fail on that, and pass on the package as it is. ``python -m torture --breaks``.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
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
        test: arguments of pytest, the smallest that notices it; or ``""``.
        attacks: what else notices it, in its small version.
    """

    name: str
    edits: Sequence[tuple[str, str, str]]
    test: str = ""
    attacks: Sequence[str] = ()


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
        ("kills", "calls", "wal"),
    ),
    Break(
        "commits to a file without a sync",
        [("ledger/sqlite.py", '"PRAGMA synchronous=FULL"', '"PRAGMA synchronous=OFF"')],
        attacks=("order", "power"),
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
        ("shared",),
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
        ("statements",),
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
        [("launch/witness.py", "    if known is None:\n        if", "    if True:\n        if")],
        "tests/test_history.py -k older_copy",
        ("copies",),
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
        ("hell", "servers"),
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
    Break(
        "gives an import its name before it is whole",
        [
            (
                "ledger/sqlite.py",
                "_make_private(new)\n            connection",
                "_make_private(new)\n            os.link(new, place)\n            connection",
            ),
            (
                "ledger/sqlite.py",
                "_refuse_names_in_use(self.place)\n            _name(new, self.place)",
                "_sync(new)",
            ),
        ],
        attacks=("import",),
    ),
    Break(
        "forgets the outcomes of a turn that failed",
        [
            (
                "launch/session.py",
                "self._outcomes[:0] = outcomes",
                "self._open -= len(outcomes)",
            ),
        ],
        attacks=("disks", "full", "server"),
    ),
    Break(
        "goes on with a ledger that was deleted",
        [
            (
                "launch/session.py",
                "if not self._is_draining and not await self.ledger.is_in_place():",
                "if False:",
            )
        ],
        attacks=("deleted",),
    ),
    Break(
        "gives a ledger the name of another file",
        [
            (
                "ledger/sqlite.py",
                "    if os.path.lexists(place):\n        raise _exists(place)\n",
                "",
            ),
            ("ledger/sqlite.py", "os.link(new, place)", "os.replace(new, place)"),
        ],
        attacks=("foreign",),
    ),
    Break(
        "shows an error of SQLite as it comes",
        [
            (
                "ledger/sqlite.py",
                "except sqlite3.Error as exc:\n        raise _error_of",
                "except KeyError as exc:\n        raise _error_of",
            )
        ],
        attacks=("damage",),
    ),
    Break(
        "shows an unreadable manifest's error as it comes",
        [("manifest/files.py", "except Unreadable as exc:", "except KeyError as exc:")],
        attacks=("manifests",),
    ),
    Break(
        "waits until a time of day by its own clock",
        [("des/client.py", 'wire.http_date(headers.get("Date")) or self._now()', "self._now()")],
        attacks=("clocks",),
    ),
    Break(
        "rejects a row that could not be sent",
        [
            (
                "launch/retry.py",
                "CredentialsRefused():\n            return Result.UNSENT",
                "CredentialsRefused():\n            return Result.REJECTED",
            )
        ],
        attacks=("outage",),
    ),
    Break(
        "ends when stderr can't be written",
        [
            (
                "cli/terminal.py",
                "except (OSError, ValueError):  # ValueError: it was",
                "except KeyError:  # it was",
            )
        ],
        attacks=("streams",),
    ),
    Break(
        "gives up what is in flight at the first signal",
        [("cli/terminal.py", "self.batch.drain(signum)", "self.batch.abandon()")],
        attacks=("signals",),
    ),
)


def attempts(folder: Path) -> Iterator[tuple[str, str]]:
    """Yield each break's name and which test or attack noticed it; ``""``: it did not."""
    whole = folder / "whole"
    shutil.copytree(ROOT, whole, ignore=LEFT_OUT)
    passes = cache(lambda test: _run(whole, test)[0] == 0)
    holds = cache(lambda name: _holds(whole, name))

    for number, broken in enumerate(BREAKS):
        copy = folder / f"{number}"
        shutil.copytree(ROOT, copy, ignore=LEFT_OUT)

        for file, words, others in broken.edits:
            path = copy / "deslaunch" / file
            text = path.read_text("utf-8")
            assert words in text, f"{broken.name}: {file} has no {words!r}"
            path.write_text(text.replace(words, others), "utf-8")

        if broken.test:
            code, failed = _run(copy, broken.test)
            is_noticed = code == FAILED and passes(broken.test)
            yield broken.name, failed if is_noticed else ""

        for name in broken.attacks:
            is_noticed = not _holds(copy, name) and holds(name)
            yield broken.name, f"attack {name}" if is_noticed else ""

        shutil.rmtree(copy)


def _run(folder: Path, test: str) -> tuple[int, str]:
    """Run a test with a copy of the package; return pytest's exit code, and what failed first."""
    done = _run_module(folder, "pytest", "-x", "-q", "-o", f"timeout={LIMIT}", *test.split())
    failed = re.search(r"^(?:FAILED|ERROR) tests/(.+?)(?: - |$)", done.stdout, re.MULTILINE)
    return done.returncode, failed[1] if failed else test


def _holds(folder: Path, attack: str) -> bool:
    """Return True if a copy of the package holds against the small version of an attack."""
    done = _run_module(folder, "torture", "--fast", "--only", attack)
    assert ("| held" in done.stdout) is (done.returncode == 0), done.stdout + done.stderr
    return done.returncode == 0


def _run_module(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(folder), str(folder / "tests")])
    return subprocess.run(
        [sys.executable, "-m", *command],
        check=False,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
