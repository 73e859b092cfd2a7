"""A batch's runs followed to their end: ledger → poller → client → ledger (``runStatus``) → event.

Like a launch it holds the ledger, prints nothing and installs no signal handler. What was not
finished when it ended is asked about by the next watch, and nothing else is.
"""

from __future__ import annotations

import asyncio
import os
import random
import shlex
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final, Unpack

import anyio

from deslaunch import records
from deslaunch.config import Settings
from deslaunch.endings import Ending
from deslaunch.engine import SystemClock
from deslaunch.errors import ConfigurationError, LedgerWriteFailed, Unfinished
from deslaunch.ledger import Ledger
from deslaunch.model import RunEnded, counted
from deslaunch.patience import Patience
from deslaunch.poller import Poller, PollerSettings, WatchedRun
from deslaunch.results import runs_of
from deslaunch.session import Interrupt, held, keep, slots_of
from deslaunch.terms import by_target, check_origins
from deslaunch.watch_settings import WatchOptions, WatchSettings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping

    from deslaunch.client import DesClient
    from deslaunch.model import Event, RunStatus, WatchSummary
    from deslaunch.replay import Replay
    from deslaunch.terms import Clients, StrPath

_ENDED: Final = frozenset({Ending.SUCCEEDED, Ending.FAILED})


async def watch(
    ledger: StrPath,
    des: Clients,
    *,
    on_event: Callable[[Event], None] | None = None,
    **options: Unpack[WatchOptions],
) -> AsyncIterator[RunStatus]:
    """Follow the runs of a batch to their end.

    Every started run that no earlier watch saw the end of gives one status, in the order in which
    runs ended, and it is in the ledger by then. A consumer that is slow holds back asking. Where
    the loop is left early, or cancelled, what was not finished is left to the next watch; close
    the iterator (``contextlib.aclosing``) to let go of the ledger at once.

    Args:
        ledger: the batch's ledger; it is held until the last status.
        des: the client, or one for each target.
        on_event: called with each event, in the event loop.
        **options: see :class:`~deslaunch.watch_settings.WatchSettings`.

    Yields:
        How a run ended, with its row's key. ``finished`` is false where DES refuses to tell of
        the run: ``status`` then holds what it said, and the next watch asks again.

    Raises:
        Unfinished: the watch ended before all runs had; ``summary`` says why.
        LedgerLocked: a launcher, or another watch, holds the ledger.
        LedgerError: the ledger can't be used, or a status could not be recorded.
        ConfigurationError: an option is wrong, or a run's target has no client.
    """
    send, receive = anyio.create_memory_object_stream["RunStatus"](0)

    async def work() -> WatchSummary:
        async with send:
            return await follow(ledger, des, on_event=on_event, ended=send.send, **options)

    following = asyncio.create_task(work())

    try:
        async for status in receive:
            yield status

        _check_finished(await following)
    finally:
        await _ended(following)
        receive.close()


def _check_finished(summary: WatchSummary) -> None:
    if summary.stops and summary.unfinished:
        why = "; ".join(stop.message for stop in summary.stops)
        raise Unfinished(
            f"{counted(summary.unfinished, 'run')} had not finished when the watch ended: {why}",
            summary=summary,
            hint="watch the ledger again: only what is left is asked about",
        )


async def _ended(following: asyncio.Task[WatchSummary]) -> None:
    """End a watch that nobody listens to any more; return once the ledger is free."""
    if following.done():
        return

    following.cancel()

    with anyio.CancelScope(shield=True):
        await asyncio.wait([following])


async def follow(
    ledger: StrPath,
    des: Clients,
    *,
    on_event: Callable[[Event], None] | None = None,
    interrupt: Interrupt | None = None,
    ended: Callable[[RunStatus], Awaitable[None]] | None = None,
    **options: Unpack[WatchOptions],
) -> WatchSummary:
    """Follow the runs of a batch to their end, as :func:`watch` does, and say how they stand.

    Args:
        ledger: the batch's ledger.
        des: the client, or one for each target.
        on_event: called with each event.
        interrupt: ends the watch from outside.
        ended: awaited with each run's last status.
        **options: see :class:`~deslaunch.watch_settings.WatchSettings`.

    Returns:
        The counts of all the batch's runs, and why the watch ended early if it did.

    Raises:
        LedgerError: the ledger can't be used, or a status could not be recorded.
        ConfigurationError: an option is wrong, or a run's target has no client.
    """
    settings = WatchSettings(**options)
    emit = on_event or (lambda _: None)
    began = time.monotonic()

    async def tell(status: RunStatus) -> None:
        emit(RunEnded(status))

        if ended is not None:
            await ended(status)

    async with held(Ledger.open(Path(ledger))) as journal:
        runs = await asyncio.to_thread(list, _unfinished(journal.replay))
        clients = await _clients_of(journal, des, settings, runs)
        poller = Poller(
            runs,
            clients,
            journal,
            _poller_settings(settings, clients),
            ended=tell,
            emit=emit,
            clock=SystemClock(),
            rng=random.Random(),  # noqa: S311  # jitter is no secret
        )

        if runs:
            keep(journal, records.watch(pid=os.getpid(), host=socket.gethostname()))

        (interrupt or Interrupt()).attach(poller)
        await _run(poller, journal.path)
        seconds = time.monotonic() - began
        batch = journal.replay.summary(ledger=str(journal.path), seconds=seconds)
        return runs_of(journal.replay, batch, seconds=seconds, stops=poller.stops)


async def _run(poller: Poller, path: Path) -> None:
    try:
        await poller.run()
    except LedgerWriteFailed as exc:
        raise LedgerWriteFailed(
            str(exc),
            hint=f"make room or mend the disk, then: deslaunch watch {shlex.quote(str(path))}",
        ) from exc.__cause__


def _unfinished(replay: Replay) -> Iterator[WatchedRun]:
    """Yield the runs that have not ended, as far as the ledger knows, the oldest first."""
    for state in replay.states.in_order():
        if replay.endings.of(state.number) not in _ENDED and state.job_run_id is not None:
            yield WatchedRun(state.key, state.target, state.job_run_id)


async def _clients_of(
    journal: Ledger, des: Clients, settings: WatchSettings, runs: Iterable[WatchedRun]
) -> dict[str, DesClient]:
    """Return the clients of the targets that runs were started at.

    Raises:
        ConfigurationError: there is none for one of them, or it is another DES than then.
        CredentialsRefused: it can't be found out where one is, as there is no token.
        NotSent: the same, as the auth server can't be reached.
    """
    terms = Settings(
        target=journal.replay.header["target"], allow_new_origin=settings.allow_new_origin
    )
    named = by_target(des, terms)
    targets = sorted({run.target for run in runs})
    absent = [target for target in targets if target not in named]

    if absent:
        raise ConfigurationError(
            f"runs were started at the target {absent[0]}, which is not configured",
            hint=f"there is: {', '.join(named)}",
        )

    used = {target: named[target] for target in targets}
    await check_origins(journal.replay.session, used, terms)
    return used


def _poller_settings(settings: WatchSettings, clients: Mapping[str, DesClient]) -> PollerSettings:
    return PollerSettings(
        slots=settings.concurrency,
        slots_of=slots_of(clients),
        rate=settings.rate,
        patience=Patience(settings.interval, settings.max_interval),
        max_wait=settings.max_wait,
        give_up_after=settings.give_up_after,
        timeout=settings.watch_timeout,
    )
