"""Decide by the history and other ledgers whether a batch may be begun or resumed.

A ledger with less than the history noted is an older copy: its pending rows may have been sent
since. A second batch of rows of which a first one has sent a part would send that part again.
"""

import asyncio
import os
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

from anyio.to_thread import run_sync

from deslaunch import errors
from deslaunch.events import Summary
from deslaunch.ledger.history import History, Noted
from deslaunch.ledger.ledger import Ledger, open_ledger
from deslaunch.ledger.place import is_shared, noted_place, usable_place
from deslaunch.ledger.reading import Reader
from deslaunch.model import count, place_word, printable, printed, utc

NOTE_EVERY: Final = 1.0
"""Seconds after which it is noted how many attempts there are."""


class Other(NamedTuple):
    """Another batch of the same rows.

    Attributes:
        uid: of the batch.
        place: where its ledger is, or was.
        counts: its rows, as its ledger has them, or else history.
        is_there: its ledger can be read.
        is_unfinished: something of it was sent, or is about to be, and rows are left.
    """

    uid: str
    place: str
    counts: Mapping[str, Any]
    is_there: bool
    is_unfinished: bool


async def check_copy(ledger: Ledger, history: History, *, accepts: bool) -> str:
    """Refuse a ledger that is an older copy, or a copy while the other one is still there.

    Args:
        ledger: of a batch that is to be gone on with.
        history: of this machine.
        accepts: go on all the same, once the ledger was told to :meth:`Ledger.accept_copy`.

    Returns:
        A warning, if it is one, or is accepted as one; else ``""``.

    Raises:
        LedgerOutdated: it is one, and that is not accepted.
    """
    found = await find_copy(ledger, history)

    if accepts:  # another machine may know what this one's history does not
        why = found[0] if found else f"{ledger.place}: is resumed as a copy"
        return (
            f"{why}; what it starts now may have been started already, and is marked as a "
            "possible duplicate"
        )

    if found is None:
        return ""

    why, hint = found
    raise errors.LedgerOutdated(
        f"{why}; nothing was sent",
        hint=f"{hint}; to resume this one anyway, pass --accept-copy: what it starts is marked as "
        "a possible duplicate",
    )


async def find_copy(ledger: Ledger, history: History) -> tuple[str, str] | None:
    """Return why another ledger may have sent the rows that are pending in one, and what to do.

    It is a copy that lacks attempts, or was exported and is new to this machine, or a second batch
    of its rows was begun.

    Args:
        ledger: of a batch that is looked at, or is to be gone on with.
        history: of this machine.
    """
    known = await run_sync(history.find, ledger.batch.uid)

    if known is None:
        if (exported := ledger.batch.options.get("exported")) is None:
            return None

        why = f"is a copy that was exported {utc(exported)}"
        return _told(ledger, why), "resume the ledger that it was made of"

    [(session, attempts)] = await ledger.query("last_known")
    lacking = known.attempts - attempts

    if lacking > 0 or session < known.session:
        lacks = f"{count(lacking, 'attempt')}" if lacking > 0 else "a session"
        why = f"is an older copy: it lacks {lacks} that this machine's history has"
        hint = "put the newer one back"

        if known.place != noted_place(ledger.place):
            hint = f"use the newer one, which was {known.place}"

    elif known.place != noted_place(ledger.place) and await _is_at(known, ledger.place):
        why = f"is a copy of {known.place}, which was last used and is still there"
        hint = f"resume that one: {printed('resume', place_word(known.place))}"
    elif known.is_given_up:
        others = await run_sync(lambda: history.like(known.digest, known.place, but=known.uid))
        begun = f", {others[-1].place}," if others else ""
        why = f"was given up: a second batch of its rows{begun} was begun with --again"
        hint = "resume that one"
    else:
        return None

    return _told(ledger, why), hint


def _told(ledger: Ledger, why: str) -> str:
    return f"{ledger.place}: {why}; rows that are pending here may have been sent since"


async def _is_at(known: Noted, place: str) -> bool:
    """Return True if the place that history knows holds the batch in a file of its own."""
    if is_shared(known.place) or is_shared(place):
        return False

    with suppress(OSError):
        if await run_sync(os.path.samefile, known.place, place):  # it has two names
            return False

    other = await _look_into(known.place)
    return other is not None and other.uid == known.uid


async def find_others(history: History, digest: str, batch: Reader) -> list[Other]:
    """Return other batches of the same bytes, or that were at the same place; the latest last.

    Known are those of history, those of the same database, and the ledgers in the same folder.

    Args:
        history: of this machine.
        digest: of the manifest; ``""`` is like no other.
        batch: that is new, or of which nothing was sent.
    """
    place, uid = noted_place(batch.place), batch.batch.uid
    noted = [one for one in await run_sync(history.like, digest, place) if one.uid != uid]
    others = []

    for known in noted:
        there = await _look_into(usable_place(known.place))

        if there is not None and there.uid == known.uid:
            is_unfinished = there.is_unfinished and not known.is_given_up
            others.append(there._replace(is_unfinished=is_unfinished))
        else:
            said = (known.uid, known.place, known.counts)
            others.append(Other(*said, is_there=False, is_unfinished=known.is_unfinished))

    names = {uid, *(known.uid for known in noted)}

    for other in await _places_beside(batch, digest) if digest else ():
        there = await _look_into(other, digest)

        if there is not None and there.uid not in names:
            others.append(there)

    return others


async def _places_beside(batch: Reader, digest: str) -> list[str]:
    """Return where other batches may be: in the same database, or the same folder."""
    if not is_shared(batch.place):
        return await run_sync(_ledgers_beside, batch.place)

    url = batch.place.partition("#")[0]
    return [f"{url}#{name}" for (name,) in await batch.query("same_rows", (digest,))]


def _ledgers_beside(place: str) -> list[str]:
    """Return the other ledgers of a folder."""
    with suppress(OSError):
        found = sorted(Path(place).parent.glob("*.ledger.db"))
        return [str(path) for path in found if str(path) != os.path.realpath(place)]

    return []


async def _look_into(place: str, digest: str | None = None) -> Other | None:
    """Return a batch's counts; None if it can't be read, or is of other bytes."""
    try:
        async with await open_ledger(place) as ledger:
            if digest not in (None, ledger.batch.digest):
                return None

            counts, _ = await ledger.counts()
            is_sent = counts.attempts > 0 or bool(await ledger.launchers())
            is_unfinished = is_sent and counts.pending + counts.in_flight > 0
            known = (ledger.batch.uid, place, counts.as_dict())
            return Other(*known, is_there=True, is_unfinished=is_unfinished)
    except errors.DeslaunchError:
        return None


async def note_change(history: History, ledger: Ledger, summary: Summary, code: int) -> None:
    """Note a batch's counts, and the exit code of ``status``, after a person changed it."""
    known = (ledger.batch.uid, noted_place(ledger.place))
    counts = summary.counts.as_dict()
    await run_sync(partial(history.note, *known, counts=counts, exit_code=code))


def refuse(others: Collection[Other], name: str) -> None:
    """Refuse a new batch while another of the same rows is unfinished.

    Raises:
        UnfinishedBatch: there is one.
    """
    for other in others:
        if not other.is_unfinished:
            continue

        sent = count(other.counts.get("attempts", 0), "attempt")
        left = count(other.counts.get("pending", 0), "row")
        stands = f"{sent} made, {left} pending" if other.counts else "its progress is not recorded"
        resume = printed("resume", place_word(other.place))
        hint = f"resume it: {resume}"

        if not other.is_there and not is_shared(other.place):
            hint = f"its ledger is gone: put it back, then {resume}"

        raise errors.UnfinishedBatch(
            f"{name}: a batch of these rows, {other.place}, is unfinished ({stands}); a second one "
            "would send rows again; nothing was sent",
            hint=f"{hint}; to begin a second batch anyway, pass --again",
        )


def tell_given_up(other: Other) -> str:
    """Return what a second batch leaves unsent of an unfinished one."""
    left = f"its {count(other.counts['pending'], 'pending row')}" if other.counts else "its rest"
    resume = printed("resume", place_word(other.place))
    return (
        f"{other.place} is given up: {left} will not be sent, unless you resume it: {resume} "
        "--accept-copy"
    )


def tell_before(history: History, digest: str, place: str) -> str:
    """Return when the same rows were last started, and how that ended; ``""``: never."""
    found = history.like(digest, noted_place(place))

    if not found:
        return ""

    last = found[-1]
    started = count(last.counts.get("started", 0), "row")
    end = "it did not finish" if last.ended_ms is None else f"{started} started"
    return f"these rows were last started {utc(last.began_ms)} ({last.place}): {end}"


class Noting:
    """Writes one session to the history, while it is at work and at its end."""

    def __init__(self, history: History, ledger: Ledger) -> None:
        self._history = history
        self._ledger = ledger
        self._before = self._noted = 0  # attempts

    async def begin(self, allowed: Collection[str] | None) -> None:
        """Note that a session has begun, before its first intent.

        Args:
            allowed: uids of unfinished batches of the same rows that may be beside this new one;
                None for a batch that is gone on with.

        Raises:
            UnfinishedBatch: another batch of the same rows began at the same time.
        """
        batch = self._ledger.batch
        [(session, self._before)] = await self._ledger.query("last_known")
        place = noted_place(self._ledger.place)
        told = (batch.uid, place, batch.manifest, batch.digest, session, self._before)
        noted = Noted(*told, round(1000 * time.time()))
        others = await run_sync(self._history.begin, noted, allowed)
        found = [
            Other(one.uid, one.place, one.counts, is_there=True, is_unfinished=True)
            for one in others
        ]
        refuse(found, printable(batch.manifest))

    async def follow(self, claimed: Callable[[], int]) -> None:
        """Note the number of attempts about once a second, until cancelled.

        Args:
            claimed: returns how many rows the session has claimed, durably.
        """
        while True:
            await asyncio.sleep(NOTE_EVERY)

            if (attempts := self._before + claimed()) != self._noted:
                self._noted = attempts
                await run_sync(self._note, {"attempts": attempts})

    async def end(self, summary: Summary) -> None:
        """Note how the session ended, if the ledger could be read."""
        counts = summary.counts

        if not counts.rows:
            return

        told: dict[str, Any] = {"attempts": counts.attempts, "exit_code": summary.exit_code}
        told |= {"counts": counts.as_dict(), "ended_ms": round(1000 * time.time())}
        told["place"] = noted_place(summary.ledger)  # it may have been rescued to another one
        await run_sync(self._note, told)

    def _note(self, told: dict[str, Any]) -> None:
        place = noted_place(self._ledger.place)
        self._history.note(self._ledger.batch.uid, place, **told)
