"""Two launchers on one batch: what one does between two statements of the other does no harm.

Each has a connection of its own, as two processes have. A store that stands between a ledger and
its database lets the other act, or the connection break, at one exact statement.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import pytest
from ledgers import Hands, ask, make, outcome, session

from deslaunch.errors import LedgerWriteFailed
from deslaunch.ledger.ledger import take_ledger
from deslaunch.model import RowState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from deslaunch.ledger.ledger import Ledger

pytestmark = pytest.mark.anyio


@pytest.fixture
def place(database: str) -> str:
    return f"{database}#night"


async def launcher(place: str, hands: Hands | None = None, **options: Any) -> Ledger:
    """Join a batch, and begin a session."""
    ledger = await take_ledger(place, joins=True, clock=(hands or Hands()).clock)
    await ledger.begin_session(session(**options))
    return ledger


def store_of(ledger: Ledger) -> Any:
    return cast("Any", ledger)._store


class Between:
    """A store that acts before named statements, or when a transaction ends.

    Attributes:
        before: by a statement's name, or ``COMMIT`` or ``committed``: what is done before it, once.
    """

    def __init__(self, ledger: Ledger) -> None:
        self.before: dict[str, Callable[[], object]] = {}
        self._store = store_of(ledger)
        cast("Any", ledger)._store = self
        cast("Any", ledger)._runs._store = self

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in {"before", "_store"}:
            super().__setattr__(name, value)
        else:
            setattr(self._store, name, value)

    def act(self, name: str) -> None:
        if act := self.before.pop(name, None):
            act()

    def fetch(self, query: str, parameters: Any = ()) -> list[Any]:
        self.act(query)
        return cast("list[Any]", self._store.fetch(query, parameters))

    def run(self, query: str, parameters: Any = ()) -> int:
        self.act(query)
        return cast("int", self._store.run(query, parameters))

    def load(self, query: str, parameters: Any = ()) -> Any:
        self.act(query)
        return self._store.load(query, parameters)

    @contextmanager
    def transaction(self, *, is_kept: bool = True) -> Iterator[None]:
        with self._store.transaction(is_kept=is_kept):
            yield
            self.act("COMMIT")

        self.act("committed")


def cut(ledger: Ledger, place: str) -> Callable[[], None]:
    """Return what ends a launcher's connection; its next statement fails."""

    def end() -> None:
        pid = store_of(ledger)._connection.info.backend_pid
        assert ask(place, f"SELECT pg_terminate_backend({pid}, 10000)") == [(True,)]

    return end


def lose_reply(ledger: Ledger, place: str) -> Callable[[], None]:
    """Return what ends a launcher's connection in place of the reply to its commit."""
    end = cut(ledger, place)

    def fail() -> None:
        end()
        store_of(ledger)._execute("SELECT 1")

    return fail


# A lost connection.


async def test_a_start_that_two_turns_handed_back_ends_once(place: str) -> None:
    await (await make(place)).aclose()

    async with await launcher(place) as ledger:
        between = Between(ledger)

        def fail() -> None:
            between.before["committed"] = lose_reply(ledger, place)
            cut(ledger, place)()

        between.before["COMMIT"] = fail  # rolled back; then committed, and nobody is told
        [start] = (await ledger.exchange([], {"default": 1})).starts
        found = ask(place, "SELECT row, number, result FROM attempt ORDER BY row, number")

        assert (start.row, start.attempt, found) == (1, 2, [(1, 1, "unsent"), (1, 2, None)])


@pytest.mark.parametrize("moment", ["COMMIT", "committed"])
async def test_a_connection_lost_while_a_session_begins_costs_waiting_alone(
    place: str, moment: str
) -> None:
    await (await make(place)).aclose()
    ledger = await take_ledger(place, joins=True, clock=Hands().clock)

    async with ledger:
        between = Between(ledger)
        ends = {"COMMIT": cut, "committed": lose_reply}
        between.before[moment] = ends[moment](ledger, place)
        await ledger.begin_session(session())

        assert len((await ledger.exchange([], {"default": 1})).starts) == 1


async def test_a_turn_that_failed_is_not_taken_for_one_that_the_server_lost(place: str) -> None:
    await (await make(place)).aclose()

    async with await launcher(place) as ledger:
        [start] = (await ledger.exchange([], {"default": 1})).starts
        Between(ledger).before["COMMIT"] = fail

        with pytest.raises(LedgerWriteFailed, match="disk is full"):
            await ledger.exchange([outcome(start, "started")], {})

        await ledger.note("pause", None, "the disk has room again")
        [settled] = (await ledger.exchange([outcome(start, "started")], {})).outcomes

        assert settled.state is RowState.STARTED


def fail() -> None:
    raise LedgerWriteFailed("the disk is full")
