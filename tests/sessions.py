"""A session among fakes: what its tests have in common."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from typing import TYPE_CHECKING, Any, Final, cast

from fakes import FakeDes, MemoryLedger, VirtualClock, fake_rows, settle

from deslaunch.events import RowEnded, Stop, StopReason, TargetStopped
from deslaunch.launch.session import Session
from deslaunch.model import DEFAULT_TARGET, END_STATES, Result
from deslaunch.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from fakes import FakeRow

    from deslaunch.events import Event
    from deslaunch.model import RowState

LIMIT: Final = 20_000.0
"""Seconds of virtual time that a session may take."""

INTERRUPTED: Final = Stop(StopReason.INTERRUPTED, "interrupted", signal=2)


class MostJitter(random.Random):
    """Draws the longest wait: rows wait 2, 4, 8, … seconds, targets 1, 2, 4, …"""

    def uniform(self, a: float, b: float) -> float:
        return b


class Bench:
    """A session among fakes; it is held against the server when it ends."""

    def __init__(
        self,
        rows: Iterable[str | FakeRow],
        *,
        slots: int = 2,
        script: dict[str, list[Any]] | None = None,
        targets: Iterable[str] = (DEFAULT_TARGET,),
        rng: random.Random | None = None,
        early: float = 0.0,
        slots_of: dict[str, int] | None = None,
        **tuning: Any,
    ) -> None:
        self.clock = VirtualClock(early=early)
        self.ledger = MemoryLedger(fake_rows(rows), self.clock)
        self.des = FakeDes(self.clock, lambda row: row in self.ledger.open(), script=script or {})
        self.slots = slots
        self.events: list[Event] = []
        self.on_event: Callable[[Event], None] = lambda _: None
        self.clients = {target: self.des.client(target) for target in targets}

        for target, most in (slots_of or {}).items():
            self.clients[target].concurrency = most

        settings = Settings(concurrency=slots, **tuning)

        self.session = Session(
            cast("Any", self.ledger),
            cast("Any", self.clients),
            settings,
            self.ledger.due(),
            deadlines=settings.deadlines(self.clock.wall, self.clock.now),
            emit=self._emit,
            clock=self.clock,
            rng=rng or MostJitter(),
        )
        self.work: asyncio.Task[None] | None = None

    def _emit(self, event: Event) -> None:
        if isinstance(event, RowEnded):
            attempt = self.ledger.attempts[event.outcome.row][event.outcome.attempt - 1]
            assert attempt is not None, "told before it was durable"

        self.events.append(event)
        self.on_event(event)

    async def begin(self) -> None:
        """Run until all that is left waits for time, the server or the disk."""
        self.work = asyncio.create_task(self.session.run())
        await settle()

    async def answer(self, key: str, verdict: str = "started") -> None:
        self.des.answer(key, verdict)
        await settle()

    async def finish(self) -> None:
        """Let time pass until the session has ended, and hold it against the server."""
        if self.work is None:
            await self.begin()

        assert self.work is not None
        await settle()

        while not self.work.done():
            due = self.clock.next_due()
            is_late = self.clock.now() - self.des.began > LIMIT  # its pulse beats on for ever
            assert due is not None, f"a deadlock: {self.session!r}"
            assert not is_late, f"a deadlock: {self.session!r}"
            await self.clock.advance(due - self.clock.now())

        self.check()
        await self.work

    def check(self) -> None:
        """Hold what is durable against what arrived."""
        assert all(sent.durable for sent in self.des.sent)
        assert self.ledger.most_open <= self.slots
        attempts = {row.key: len(self.ledger.attempts[row.number]) for row in self.rows}
        assert all(number <= attempts[key] for key, number in Counter(self.des.keys()).items())
        assert all(len(runs) == 1 for runs in self.des.runs.values()), "a second run"

        for row in self.rows:
            results = self.ledger.results(row.key)
            assert not {"started", "unknown"} & set(results[:-1]), f"sent after its end: {results}"

    @property
    def rows(self) -> list[FakeRow]:
        return list(self.ledger.rows.values())

    def state(self, key: str) -> RowState:
        [number] = [row.number for row in self.rows if row.key == key]
        return self.ledger.state(number)

    def states(self, *keys: str) -> list[RowState]:
        return [self.state(key) for key in keys]

    def started(self) -> set[str]:
        return {row.key for row in self.rows if "started" in self.ledger.results(row.key)}

    def ended(self) -> list[str]:
        """Return the keys of the rows whose ends were told, in order."""
        return [event.outcome.key for event in self.told(RowEnded)]

    def told(self, kind: type[Event]) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]

    def stops(self) -> list[tuple[StopReason, str | None]]:
        assert [event.stop for event in self.told(TargetStopped)] == self.session.stops
        return [(stop.reason, stop.target) for stop in self.session.stops]

    def times(self, key: str | None = None) -> list[float]:
        """Return when starts arrived, seconds since the test began."""
        return [sent.at for sent in self.des.sent if key in {None, sent.key}]

    def trail(self) -> list[str]:
        """Return the turns: what came in, and what was claimed."""
        return [
            " ".join(
                [f"{o.result}({o.key})" for o in outcomes] + [f"claim({s.key})" for s in starts]
            )
            for outcomes, _, starts in self.ledger.turns
            if outcomes or starts
        ]


def keys(prefix: str, number: int) -> list[str]:
    return [f"{prefix}{n}" for n in range(1, number + 1)]


def final(results: Iterable[str]) -> list[str]:
    """Return the results after which no attempt of the session follows."""
    return [result for result in results if result != "open" and Result(result) in END_STATES]
