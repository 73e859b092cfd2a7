"""A ledger held against the manifest of its next session: what to send, and what to refuse.

Pure. A row that was sent is found again by its key. One that was sent and now says something
else, or is gone while others are new, may be the same run in another form: then a person must
look before anything is sent.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from deslaunch.errors import ManifestConflict
from deslaunch.keys import row_digest
from deslaunch.model import RowState, StartRequest, counted

if TYPE_CHECKING:
    from collections.abc import Iterator

    from deslaunch.intake import InvalidRow
    from deslaunch.replay import Replay
    from deslaunch.states import KeyState

LISTED: Final = 1_000
"""Keys of each list that a conflict keeps."""

_REALLY_NEW: Final = "if the new rows are really new, pass --accept-new-rows"


def should_send(
    state: KeyState | None,
    request: StartRequest,
    *,
    retry_rejected: bool = False,
    retry_unknown: bool = False,
) -> bool:
    """Tell whether a valid row is sent in a session that begins now.

    Args:
        state: what the ledger says of the row's key; None for nothing.
        request: the row.
        retry_rejected: also what DES refused and what has not changed since.
        retry_unknown: also what may have been started; never an auto-value row, since each
            run of it moves the feed on.
    """
    if state is None:
        return True

    match state.state:
        case RowState.STARTED:
            return False
        case RowState.UNKNOWN:
            return retry_unknown and not request.auto
        case RowState.REJECTED:
            return retry_rejected or state.digest != request.digest
        case _:
            return True


class Reconciliation:
    """Holds the rows of a manifest, each seen once, against a ledger.

    Args:
        replay: the ledger.
        same_manifest: the manifest is, to the byte, the last session's: nothing can differ.
    """

    def __init__(self, replay: Replay, *, same_manifest: bool) -> None:
        self._replay = replay
        self._same = same_manifest
        self._seen = bytearray(len(replay.states))
        self._changed: list[str] = []
        self._new: list[str] = []
        self._changed_count = self._new_count = 0

    def see(self, taken: StartRequest | InvalidRow) -> None:
        """Take in the next row."""
        if self._same or taken.key is None:
            return

        state = self._replay.get(taken.key)

        if state is None:
            self._new_count += 1
            self._note(self._new, taken.key)
            return

        self._seen[state.number] = True

        if state.was_sent and state.digest != _digest(taken):
            self._changed_count += 1
            self._note(self._changed, taken.key)

    def check(self, *, accept_new_rows: bool) -> None:
        """Refuse a manifest that may hold a sent row in another form.

        Raises:
            ManifestConflict: a key that was sent says something else now; or keys that were
                sent are gone, or may be from another shard, while others are new, and
                ``accept_new_rows`` is not set.
        """
        if self._changed:
            raise ManifestConflict(
                f"{counted(self._changed_count, 'row')} that had been sent now said something "
                f"else, the first with key {self._changed[0]!r}",
                changed=self._changed,
                hint="give the changed rows keys of their own, or restore what they said",
            )

        gone = list(self._gone())

        if gone and self._new and not accept_new_rows:
            raise ManifestConflict(
                f"the manifest has lost {counted(len(gone), 'row')} of those that were sent, and "
                f"gained {counted(self._new_count, 'row')}: a new row may be the changed form of "
                "one that was started already",
                gone=gone[:LISTED],
                new=self._new,
                hint=_REALLY_NEW,
            )

        if self._new and self._is_one_of_several and not accept_new_rows:
            raise ManifestConflict(
                "the manifest changed, and this shard has not yet tried "
                f"{counted(self._new_count, 'row')} of it: one may be the changed form of a row "
                "that another shard started",
                new=self._new,
                hint=_REALLY_NEW,
            )

    @property
    def _is_one_of_several(self) -> bool:
        """What left the manifest may stand in the ledger of another shard."""
        return self._replay.header.get("shard") not in {None, "1/1"}

    def memberships(self) -> Iterator[tuple[str, bool]]:
        """Yield the keys that left the manifest (False) or came back to it (True)."""
        if self._same:
            return

        for state, seen in zip(self._replay.states.in_order(), self._seen, strict=True):
            if state.in_manifest != seen:
                yield state.key, not state.in_manifest

    def _gone(self) -> Iterator[str]:
        """Yield what was sent and is not there, also what left in an earlier session.

        Else a changed row would pass in two steps: first it is taken out, then its new form is
        put in.
        """
        if self._same:
            return

        for state, seen in zip(self._replay.states.in_order(), self._seen, strict=True):
            if state.was_sent and not seen:
                yield state.key

    @staticmethod
    def _note(keys: list[str], key: str) -> None:
        if len(keys) < LISTED:
            keys.append(key)


def _digest(taken: StartRequest | InvalidRow) -> str | None:
    """Return the digest of what a row says, valid or not; None where it could not be read."""
    if isinstance(taken, StartRequest):
        return taken.digest

    return None if taken.row is None else row_digest(taken.row)
