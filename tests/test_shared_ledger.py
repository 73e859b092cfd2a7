"""Two launchers on one batch: what one does between two statements of the other does no harm.

Each has a connection of its own, as two processes have. A store that stands between a ledger and
its database lets the other act, or the connection break, at one exact statement.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit

import anyio
import psycopg
import pytest
from ledgers import Hands, ask, checked, make, outcome, read, send, session, states
from postgres import wait_until
from proxy import Proxy

from deslaunch.errors import LedgerMissing, LedgerWriteFailed, ManifestError
from deslaunch.ledger import postgres
from deslaunch.ledger.changes import Finding
from deslaunch.ledger.ledger import open_ledger, take_ledger
from deslaunch.model import RowState, RunStatus

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from postgres import Server

    from deslaunch.ledger.ledger import Ledger
    from deslaunch.ledger.store import TryAgain

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
    """A store that acts at moments of its transactions, each once.

    Attributes:
        acts: what is done, by moment: before a statement, by its name, or by its number in its
            transaction, from 1; before the ``COMMIT``; or when that is ``committed``.
    """

    def __init__(self, ledger: Ledger) -> None:
        self.acts: dict[str | int, Callable[[], object]] = {}
        self._store = store_of(ledger)
        self._count = 0
        cast("Any", ledger)._store = self

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def __setattr__(self, name: str, value: object) -> None:
        if name in {"acts", "_store", "_count"}:
            super().__setattr__(name, value)
        else:
            setattr(self._store, name, value)

    def fetch(self, query: str, parameters: Any = ()) -> list[Any]:
        self._statement(query)
        return cast("list[Any]", self._store.fetch(query, parameters))

    def run(self, query: str, parameters: Any = ()) -> int:
        self._statement(query)
        return cast("int", self._store.run(query, parameters))

    def load(self, query: str, parameters: Any = ()) -> Any:
        self._statement(query)
        return self._store.load(query, parameters)

    def starts(self, query: str, parameters: Any) -> list[Any]:
        self._statement(query)
        return cast("list[Any]", self._store.starts(query, parameters))

    def end_turn(self, in_flight: int) -> None:
        self._statement("end_turn")
        self._store.end_turn(in_flight)

    @contextmanager
    def transaction(self, *, is_kept: bool = True) -> Iterator[None]:
        self._count = 0

        with self._store.transaction(is_kept=is_kept):
            yield
            self._act("COMMIT")

        self._act("committed")

    def _statement(self, name: str) -> None:
        self._count += 1
        self._act(self._count)
        self._act(name)

    def _act(self, moment: str | int) -> None:
        if act := self.acts.pop(moment, None):
            act()


def meanwhile(place: str, other: Ledger, work: Callable[[], object]) -> Callable[[], None]:
    """Return what lets another launcher work until it is done, or waits for a lock of ours."""
    pid = store_of(other)._connection.info.backend_pid
    waits = f"SELECT 1 FROM pg_locks WHERE pid = {pid} AND NOT granted"

    def act() -> None:
        done = other.thread.submit(work)

        while not (done.done() or ask(place, waits)):
            wait([done], 0.01)

        if done.done():
            done.result()

    return act


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


def believe_dead(ledger: Ledger, place: str, other: Ledger) -> Callable[[], None]:
    """Return what lets another launcher take one that is alive for dead."""

    def lose() -> None:
        store = store_of(other)

        with store.transaction():
            cast("Any", other)._lose_attempts(store.lose_sessions(0, at_once=True))

    def act() -> None:
        store_of(ledger)._execute("SELECT pg_advisory_unlock_all()")
        meanwhile(place, other, lose)()

    return act


# A lost connection.


async def test_a_start_that_two_turns_handed_back_ends_once(place: str) -> None:
    await (await make(place)).aclose()

    async with await launcher(place) as ledger:
        between = Between(ledger)

        def fail() -> None:
            between.acts["committed"] = lose_reply(ledger, place)
            cut(ledger, place)()

        between.acts["COMMIT"] = fail  # rolled back; then committed, and nobody is told
        [start] = (await ledger.exchange([], {"default": 1})).starts
        found = ask(place, "SELECT row, number, result FROM attempt ORDER BY row, number")

        assert (start.row, start.attempt, found) == (1, 2, [(1, 1, "unsent"), (1, 2, None)])


async def test_rows_of_a_claim_that_was_rolled_back_are_due_as_they_were(place: str) -> None:
    await (await make(place)).aclose()

    async with await launcher(place) as ledger:
        await send(ledger, "unknown", "failed", "rejected")

    async with await launcher(place, retry_unknown=True, retry_rejected=True) as ledger:
        Between(ledger).acts["COMMIT"] = cut(ledger, place)
        starts = (await ledger.exchange([], {"default": 4})).starts

        assert [start.row for start in starts] == [1, 2, 3, 4]


async def test_a_start_that_is_handed_back_ends_no_attempt_of_another(place: str) -> None:
    await (await make(place)).aclose()

    async with await launcher(place) as ledger, await launcher(place) as other:
        taken: list[int] = []

        def lose() -> None:
            cut(ledger, place)()
            meanwhile(place, other, partial(take, other, taken))()

        Between(ledger).acts["COMMIT"] = lose  # rolled back: the other has its row by then
        [start] = (await ledger.exchange([], {"default": 1})).starts
        found = ask(place, "SELECT row, number, result FROM attempt ORDER BY row, number")

        assert (taken, start.row) == ([1, 2, 3], 4)
        assert found == [(row, 1, None) for row in (1, 2, 3, 4)]


@pytest.mark.parametrize("moment", ["COMMIT", "committed"])
async def test_a_connection_lost_while_a_session_begins_costs_waiting_alone(
    place: str, moment: str
) -> None:
    await (await make(place)).aclose()
    ledger = await take_ledger(place, joins=True, clock=Hands().clock)

    async with ledger:
        between = Between(ledger)
        ends = {"COMMIT": cut, "committed": lose_reply}
        between.acts[moment] = ends[moment](ledger, place)
        await ledger.begin_session(session())

        assert len((await ledger.exchange([], {"default": 1})).starts) == 1


async def test_a_turn_that_failed_is_not_taken_for_one_that_the_server_lost(place: str) -> None:
    await (await make(place)).aclose()

    async with await launcher(place) as ledger:
        [start] = (await ledger.exchange([], {"default": 1})).starts
        Between(ledger).acts["COMMIT"] = fail

        with pytest.raises(LedgerWriteFailed, match="disk is full"):
            await ledger.exchange([outcome(start, "started")], {})

        await ledger.note("pause", None, "the disk has room again")
        [settled] = (await ledger.exchange([outcome(start, "started")], {})).outcomes

        assert settled.state is RowState.STARTED


def fail() -> None:
    raise LedgerWriteFailed("the disk is full")


# How a launcher ends.


@pytest.mark.parametrize(
    ("was", "becomes"),
    [
        pytest.param("in flight", "waiting", id="in-flight-then-waiting"),
        pytest.param("due", "in flight", id="due-then-in-flight"),
        pytest.param("fresh", "in flight", id="fresh-then-in-flight"),
    ],
)
async def test_a_row_that_another_moves_on_keeps_a_launcher_from_ending(
    database: str, was: str, becomes: str
) -> None:
    for moment in range(1, 20):
        place = f"{database}#{moment}"
        await (await make(place, 2)).aclose()

        async with await launcher(place) as ledger, await launcher(place) as other:
            [mine] = (await ledger.exchange([], {"default": 1})).starts
            starts = [] if was == "fresh" else (await other.exchange([], {"default": 1})).starts
            came = [outcome(start, "retry", not_before=60.0) for start in starts]

            if was == "due":
                await other.exchange([outcome(start, "retry") for start in starts], {})
                came = []

            cast("Any", ledger)._positions["default"] = 2  # as where it has passed over a row
            between = Between(ledger)
            turn = partial(cast("Any", other)._turn, came, {} if came else {"default": 1})
            between.acts[moment] = meanwhile(place, other, turn)
            due = (await ledger.exchange([outcome(mine, "started")], {})).due

            if between.acts:  # a turn has no more statements
                assert moment > 3
                return

            assert due["default"] is not None, f"moved on before statement {moment}"


async def test_a_launcher_looks_ever_less_often_at_what_others_have_until_it_gets_a_row(
    place: str,
) -> None:
    await (await make(place, 2)).aclose()
    hands = Hands()

    async with await launcher(place, hands) as ledger, await launcher(place, hands) as other:
        first, _second = (await other.exchange([], {"default": 2})).starts
        looks = [(await ledger.exchange([], {"default": 1})).due["default"] for _ in range(10)]
        await other.exchange([outcome(first, "retry", not_before=0.5)], {})
        looks.append((await ledger.exchange([], {"default": 1})).due["default"])
        hands.move(0.5)
        [start] = (await ledger.exchange([], {"default": 1})).starts
        looks.append((await ledger.exchange([], {"default": 1})).due["default"])

        assert start.row == 1
        growing = [min(1.0, 0.05 * 1.5**n) for n in range(1, 11)]
        assert looks == pytest.approx([*growing, 0.5, 0.075])


async def test_rows_that_are_added_beside_a_launcher_are_taken_by_it_too(place: str) -> None:
    await (await make(place, 1)).aclose()

    async with await launcher(place) as ledger, await launcher(place) as other:
        await send(ledger, "started")
        await other.add([checked(2), checked(3)])
        looked = await ledger.exchange([], {"default": 2})
        found = (await ledger.exchange([], {"default": 2})).starts

        assert (looked.starts, looked.due["default"]) != ([], None)
        assert [start.row for start in (*looked.starts, *found)] == [2, 3]


async def test_what_a_launcher_could_not_record_is_unknown_once_it_has_ended(place: str) -> None:
    await (await make(place, 2)).aclose()

    async with await launcher(place) as ledger, await launcher(place) as other:
        await ledger.exchange([], {"default": 1})
        await ledger.end_session(7, [])

        assert await states(other) == {"k1": "unknown", "k2": "pending"}


async def test_runs_are_recorded_beside_a_launcher(place: str) -> None:
    async with await make(place, 2) as ledger:
        await ledger.begin_session(session())
        await send(ledger, "started")

        async with await take_ledger(place, launches=False) as other:
            await other.record_runs([(1, 1, RunStatus("", "", True, True))])

        assert [row.finished for row in await read(ledger)] == [True, None]


# One that is found dead.


async def test_one_that_was_found_dead_is_at_work_once(place: str) -> None:
    await (await make(place)).aclose()

    async with await launcher(place) as ledger:
        [start] = (await ledger.exchange([], {"default": 1})).starts
        cut(ledger, place)()

        async with await launcher(place) as other:
            assert (await states(other))["k1"] == "unknown"

            [settled] = (await ledger.exchange([outcome(start, "started")], {})).outcomes

            assert settled.state is RowState.STARTED
            assert [known.in_flight for known in await other.launchers()] == [0]


async def test_a_connection_is_tried_once_more_after_waiting_is_given_up(
    place: str,
) -> None:
    await (await make(place)).aclose()

    async with await launcher(place) as ledger:
        [start] = (await ledger.exchange([], {"default": 1})).starts
        ledger.give_up(at_once=False)
        cut(ledger, place)()
        [settled] = (await ledger.exchange([outcome(start, "started")], {})).outcomes

        assert settled.state is RowState.STARTED


@pytest.mark.parametrize("is_turn", [True, False])
async def test_a_connection_that_is_lost_each_time_is_given_up(place: str, is_turn: bool) -> None:
    await (await make(place)).aclose()

    async with await launcher(place) as ledger:
        between = Between(ledger)
        end = cut(ledger, place)

        def act() -> None:
            between.acts["COMMIT"] = act
            end()

        between.acts["COMMIT"] = act
        ledger.give_up(at_once=False)

        with pytest.raises(LedgerWriteFailed, match="terminating connection"):
            await (ledger.exchange([], {}) if is_turn else ledger.note("pause", None, "away"))


async def test_a_server_that_is_silent_in_the_end_is_not_waited_for(
    place: str, postgres: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    await (await make(place, 1)).aclose()
    monkeypatch.setattr("deslaunch.ledger.postgres.TELL_AFTER", 0.2)

    with Proxy(postgres.port) as proxy:
        ledger = await launcher(place.replace(f":{postgres.port}/", f":{proxy.port}/"))
        await ledger.end_session(0, [])
        proxy.frozen = True

        with anyio.fail_after(10):
            assert await ledger.aclose() == ""


async def test_an_intent_of_one_found_dead_is_never_sent(database: str) -> None:
    for moment in range(1, 20):
        place = f"{database}#{moment}"
        await (await make(place)).aclose()

        async with await launcher(place) as ledger, await launcher(place) as other:
            between = Between(ledger)
            between.acts[moment] = believe_dead(ledger, place, other)
            starts = (await ledger.exchange([], {"default": 2})).starts
            intents = ask(
                place,
                "SELECT a.row, s.lost_ms FROM attempt a JOIN session s ON s.id = a.session"
                " WHERE a.result IS NULL ORDER BY a.row",
            )

            assert intents == [(start.row, None) for start in starts] == [(1, None), (2, None)]

            if between.acts:  # a turn has no more statements
                assert moment > 3
                return

            assert ask(place, "SELECT 1 FROM session WHERE lost_ms IS NOT NULL")


async def test_what_one_sends_that_is_found_dead_as_it_commits_is_unknown_until_it_responds(
    place: str,
) -> None:
    await (await make(place)).aclose()

    async with await launcher(place) as ledger, await launcher(place) as other:
        Between(ledger).acts["COMMIT"] = believe_dead(ledger, place, other)
        starts = (await ledger.exchange([], {"default": 2})).starts
        await other.lose_dead()  # its thread has done what it waited for

        assert await states(other) == {
            "k1": "unknown",
            "k2": "unknown",
            "k3": "pending",
            "k4": "pending",
        }

        came = [outcome(starts[0], "started"), outcome(starts[1], "unsent")]
        settled = (await ledger.exchange(came, {"default": 1})).outcomes

        assert [known.state for known in settled] == ["started", "pending"]
        assert await states(other) == {
            "k1": "started",
            "k2": "sending",
            "k3": "pending",
            "k4": "pending",
        }


async def test_a_launcher_without_its_lock_is_found_dead_only_after_a_while(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await (await make(place)).aclose()
    found = []

    async with await launcher(place) as ledger, await launcher(place) as other:
        await ledger.exchange([], {"default": 1})
        store_of(ledger)._execute("SELECT pg_advisory_unlock_all()")

        for seconds in (3600.0, 3600.0, 0.0):
            monkeypatch.setattr(postgres, "BELIEVE_AFTER", seconds)
            await other.lose_dead()
            found.append((await states(other))["k1"])

    assert found == ["sending", "sending", "unknown"]


# Two that claim.


@pytest.mark.parametrize("was", ["fresh", "due"])
async def test_no_row_is_taken_by_two(database: str, was: str) -> None:
    for moment in range(1, 20):
        place = f"{database}#{moment}"
        await (await make(place, 6)).aclose()

        async with await launcher(place) as ledger, await launcher(place) as other:
            if was == "due":
                await send(ledger, *["retry"] * 4)

            taken: list[int] = []
            between = Between(ledger)
            between.acts[moment] = meanwhile(place, other, partial(take, other, taken))
            starts = (await ledger.exchange([], {"default": 3})).starts

            if between.acts:  # a turn has no more statements
                assert moment > 3
                return

            await other.lose_dead()  # its thread has done what it waited for
            rows = [start.row for start in starts]
            assert len(rows) == 3, f"before statement {moment}"
            assert sorted(taken + rows) == sorted({*taken, *rows}), f"before statement {moment}"


def take(ledger: Ledger, taken: list[int]) -> None:
    taken += [start.row for start in cast("Any", ledger)._turn([], {"default": 3}).starts]


async def test_a_row_that_a_failed_turn_held_is_passed_over_and_found_again(place: str) -> None:
    await (await make(place)).aclose()

    async with await launcher(place) as ledger, await launcher(place) as other:
        taken: list[int] = []
        between = Between(ledger)

        def act() -> None:
            meanwhile(place, other, partial(take, other, taken))()
            fail()

        between.acts["COMMIT"] = act

        with pytest.raises(LedgerWriteFailed, match="disk is full"):
            await ledger.exchange([], {"default": 2})

        looked = await other.exchange([], {"default": 2})
        found = [*looked.starts, *(await other.exchange([], {"default": 2})).starts]

        assert (taken, [start.row for start in found]) == ([3, 4], [1, 2])


# A person beside a launcher.


async def test_a_finding_is_never_about_what_a_launcher_sends_that_begins_meanwhile(
    place: str,
) -> None:
    ledger = await make(place, 1)
    await ledger.begin_session(session())
    await ledger.exchange([], {"default": 1})
    await ledger.aclose()

    async def begin() -> tuple[Ledger, int]:
        other = await launcher(place, retry_unknown=True)
        return other, len((await other.exchange([], {"default": 1})).starts)

    async with await open_ledger(place) as person:
        store = store_of(person)
        launchers, waits = store.launchers, "SELECT 1 FROM pg_locks WHERE NOT granted"

        with ThreadPoolExecutor(1) as pool:

            def look() -> Any:
                found = launchers()
                begun.append(pool.submit(asyncio.run, begin()))

                while not (begun[0].done() or ask(place, waits)):
                    wait(begun, 0.01)

                return found

            begun: list[Future[tuple[Ledger, int]]] = []
            store.launchers = look

            with suppress(ManifestError):
                await person.resolve([Finding("k1", "notStarted")], early=True)

            other, sent = await asyncio.wrap_future(begun[0])

    async with other:
        assert (sent, len((await other.exchange([], {"default": 1})).starts)) == (1, 0)


# How a launcher begins.


async def test_whoever_joins_waits_for_a_transaction_that_takes_long(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await (await make(place)).aclose()
    monkeypatch.setattr(postgres, "_BEGIN", "BEGIN; SET LOCAL lock_timeout = 1")
    waiting = asyncio.Event()
    loop = asyncio.get_running_loop()
    recover = postgres.PostgresStore.recover

    def tell(self: Any, error: TryAgain) -> None:
        loop.call_soon_threadsafe(waiting.set)
        recover(self, error)

    monkeypatch.setattr(postgres.PostgresStore, "recover", tell)

    with psycopg.connect(place.partition("#")[0]) as holder:
        holder.execute("SELECT 1 FROM deslaunch.batches FOR UPDATE")
        joining = asyncio.create_task(launcher(place))
        told = asyncio.create_task(waiting.wait())
        await asyncio.wait([joining, told], return_when=asyncio.FIRST_COMPLETED)

    async with await joining as ledger:
        assert len((await ledger.exchange([], {"default": 4})).starts) == 4


async def test_a_launcher_goes_on_while_a_transaction_of_the_batch_takes_long(place: str) -> None:
    await (await make(place)).aclose()

    async with await launcher(place) as ledger, await launcher(place) as other:
        between = Between(ledger)

        def work() -> None:
            cast("Any", other)._store.run("add_event", (None, 0, "pause", None, ""))
            taken.extend(cast("Any", other)._turn([], {"default": 4}).starts)

        taken: list[Any] = []
        between.acts["COMMIT"] = lambda: other.thread.submit(work).result(10)
        await ledger.add([checked(5)])

        assert len(taken) == 4


async def test_a_batch_that_is_removed_before_its_launcher_begins_is_missing(
    place: str, postgres: Server
) -> None:
    await (await make(place)).aclose()

    with psycopg.connect(place.partition("#")[0]) as owner:
        owner.execute("SELECT deslaunch.remove_batch('night')")
        opening = asyncio.create_task(take_ledger(place))
        waits = "SELECT 1 FROM pg_locks WHERE NOT granted"
        await asyncio.to_thread(wait_until, lambda: bool(postgres.sql(waits)))
        owner.commit()

    with pytest.raises(LedgerMissing):
        await opening


async def test_an_import_waits_for_a_person_as_long_as_that_takes(database: str) -> None:
    await (await make(f"{database}#first")).aclose()  # with the schema
    short = "SET idle_in_transaction_session_timeout = 1"

    with psycopg.connect(database) as owner:
        owner.execute(f"ALTER DATABASE {urlsplit(database).path[1:]} {short}")

    async with await make(f"{database}#night") as ledger:
        assert (await ledger.counts())[0].pending == 4
