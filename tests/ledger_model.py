"""A ledger as a plain list of attempts for each row: what DESIGN says of it, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Self

if TYPE_CHECKING:
    from deslaunch.ledger.reading import Consents

FIXED: Final = {"started", "unknown", "sending"}
"""States of rows that have a run, or one in doubt."""

MAY_HAVE_A_RUN: Final = {"unknown", "failed", "retry"}
"""What a person may find out about."""


@dataclass(eq=False)
class Attempt:
    """One POST.

    Attributes:
        number: of the row's attempts, from 1.
        result: what became of it; None: it is in flight.
        run: its jobRunId.
        again: when the row may be sent again, ms.
        wait: how long after its end that is, ms.
        age: which launchers, at work together, sent it.
        finding: what a person found out.
        is_repeated: its run failed, and another one is wanted.
        run_failed: what a watch said of its run; None: nothing.
    """

    number: int
    age: int
    result: str | None = None
    run: str | None = None
    again: int | None = None
    wait: int | None = None
    finding: str | None = None
    is_repeated: bool = False
    run_failed: bool | None = None

    @property
    def is_started(self) -> bool:
        return "started" in {self.result, self.finding}

    @property
    def is_unknown(self) -> bool:
        return self.result == "unknown" and self.finding is None

    @property
    def may_have_a_run(self) -> bool:
        is_one = self.result == "started" or self.result in MAY_HAVE_A_RUN
        return is_one and self.finding != "notStarted" and not self.is_repeated

    def end(
        self, result: str, run: str | None = None, now: int = 0, wait: int | None = None
    ) -> None:
        """End, once; what comes late lifts a doubt, and a target's refusal the row's."""
        if (
            self.result is None
            or (self.result == "unknown" and result != "unknown")
            or (self.result == "rejected" and result == "throttled")
        ):
            self.result, self.run, self.finding = result, run, None
            self.wait, self.again = wait, None if wait is None else now + wait


@dataclass(eq=False)
class ModelRow:
    """A row.

    Attributes:
        due: when a session at work may send it, ms; None: not by itself.
        says: which form it has.
        is_auto: it has an auto value.
        is_valid: it may be sent.
        is_withdrawn: a person took it back.
        is_copied: it was pending in an older copy.
        corrected: attempts that sent an earlier form.
        findings: verdicts, each with the attempts that there were.
    """

    key: str
    number: int
    is_auto: bool = False
    is_valid: bool = True
    due: int | None = 0
    says: int = 0
    is_withdrawn: bool = False
    is_copied: bool = False
    corrected: int = 0
    attempts: list[Attempt] = field(default_factory=list)
    findings: list[tuple[str, int]] = field(default_factory=list)

    @classmethod
    def of(cls, key: str, number: int) -> Self:
        return cls(key, number, is_auto=key == "auto", is_valid=key != "wrong")

    @property
    def state(self) -> str:
        """The first that applies."""
        attempts = self.attempts

        if any(a.is_started and not a.is_repeated for a in attempts):
            return "started"

        if any(a.result is None for a in attempts):
            return "sending"

        if any(a.is_unknown for a in attempts):
            return "unknown"

        if any(a.is_started for a in attempts):
            return "started"  # by the run that failed: its repetition came to nothing

        if self.is_withdrawn:
            return "withdrawn"

        if not self.is_valid:
            return "invalid"

        for a in reversed(attempts[self.corrected :]):
            if a.finding or a.result in {"rejected", "failed"}:
                return "pending" if a.finding else str(a.result)

        return "pending"

    @property
    def shown(self) -> Attempt | None:
        """The attempt of its run, where it is started."""
        runs = [a for a in self.attempts if a.is_started]
        return max(runs, key=lambda a: (not a.is_repeated, a.number), default=None)

    @property
    def run(self) -> str | None:
        return self.shown.run if self.state == "started" and self.shown else None

    @property
    def left(self) -> int:
        return sum(a.result != "unsent" for a in self.attempts)

    @property
    def is_duplicate(self) -> bool:
        if self.state != "started" or self.shown is None:
            return False

        others = [a for a in self.attempts if a.may_have_a_run and a is not self.shown]
        return self.is_copied or (bool(others) and not self.shown.is_repeated)

    @property
    def has_failed_run(self) -> bool:
        shown = self.shown
        return self.state == "started" and shown is not None and bool(shown.run_failed)

    def retries(self, age: int) -> int:
        """How many 5XX it got since it became sendable."""
        since = self.attempts[self.corrected :]
        return sum(a.age == age and a.result == "retry" and not a.finding for a in since)

    def may_be_sent(self, consents: Consents) -> bool:
        """By a session that begins with these consents."""
        return (
            self.state in {"pending", "failed"}
            or (self.state == "rejected" and consents.rejected)
            or (self.state == "unknown" and consents.unknown and not self.is_auto)
            or (self.may_be_repeated and consents.failed_runs)
        )

    @property
    def may_be_repeated(self) -> bool:
        return self.has_failed_run and not self.is_auto and not self.is_duplicate

    def begin(self, consents: Consents, now: int) -> None:
        """A session begins, and no other is at work."""
        wait = self.attempts[-1].wait if self.attempts else None
        is_repeated = self.state == "started"
        due = 0

        if wait is not None and (self.due or 0) > now and not is_repeated:
            due = min(self.due or 0, now + wait)  # the clock may have been set back

        self.due = due if self.may_be_sent(consents) else None

        if is_repeated and self.due is not None and self.shown:
            self.shown.is_repeated = True

    def derive(self, age: int) -> None:
        """Something changed: when may it be sent?"""
        is_over = self.state == "started" and self.shown and not self.shown.is_repeated
        last = self.attempts[self.corrected :][-1:]
        again = last[0].again if last and last[0].age == age else None

        if is_over or self.state in {"sending", "invalid", "withdrawn"}:
            self.due = None
        else:
            self.due = 0 if again is None and self.state == "pending" else again

    def correct(self, says: int) -> None:
        self.says, self.corrected = says, len(self.attempts)
        self.is_withdrawn, self.is_valid = False, True

    # What a person found out.

    @property
    def last_left(self) -> int:
        return max((a.number for a in self.attempts if a.result != "unsent"), default=0)

    def may_be_resolved(self, verdict: str) -> bool:
        has_run = any(a.result == "started" and not a.is_repeated for a in self.attempts)
        is_resolved = 0 < self.last_left <= max((n for _, n in self.findings), default=0)

        if self.state == "sending" or (verdict == "started" and has_run):
            return False

        return (
            self.state in {"unknown", "failed"}
            or is_resolved
            or (self.is_duplicate and verdict == "notStarted")
        )

    def resolve(self, verdict: str, run: str | None) -> bool:
        """Return False where that was known; what was found before it was sent again stays."""
        kept = max(
            (n for v, n in self.findings if v != "unknown" and n < self.last_left), default=0
        )
        doubtful = [
            a
            for a in self.attempts
            if a.result in MAY_HAVE_A_RUN and (a.finding is None or a.number > kept)
        ]
        found = [(a.finding or "unknown") for a in doubtful]

        if verdict != "started" and set(found or ["unknown"]) == {verdict}:
            return False

        for a in doubtful:
            a.finding, a.run = ("notStarted", None) if verdict == "notStarted" else (None, None)

        if verdict == "started" and doubtful:
            doubtful[-1].finding, doubtful[-1].run = verdict, run

        self.findings.append((verdict, len(self.attempts)))
        return True
