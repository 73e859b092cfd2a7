"""A ledger held against its next manifest: what is sent, and what a person must look at."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import pytest
from fakes import JOB, UTC, header

from deslaunch import records
from deslaunch.errors import ManifestConflict
from deslaunch.intake import InvalidRow
from deslaunch.keys import row_digest
from deslaunch.model import Row, RowProblem, RowState, StartRequest
from deslaunch.reconcile import LISTED, Reconciliation, should_send
from deslaunch.replay import Replay

if TYPE_CHECKING:
    from deslaunch.states import KeyState

PROBLEM: Final = RowProblem("night.csv", 2, 1, "From", "an integer", "x", "it is no integer")


def row(said: str) -> Row:
    return Row(1, 2, None, "default", JOB, {"From": said})


def request(key: str, said: str = "1", *, auto: bool = False) -> StartRequest:
    return StartRequest(key, 1, 2, "default", JOB, row_digest(row(said)), b"{}", auto)


def invalid(key: str | None, said: str = "x") -> InvalidRow:
    return InvalidRow(key, 1, 2, (PROBLEM,), row(said), by_schema=True)


def ledger(*said: dict[str, Any]) -> Replay:
    replay = Replay()
    replay.apply(header())

    for record in said:
        replay.apply({**record, "utc": UTC})

    return replay


def sent(key: str, said: str = "1") -> dict[str, Any]:
    return records.sending(request(key, said), 1, with_body=False)


def started(key: str, said: str = "1") -> list[dict[str, Any]]:
    return [sent(key, said), records.started(key, 1, job_run_id="run")]


def rejected(key: str) -> list[dict[str, Any]]:
    return [sent(key), records.rejected(key, 1, status=400, error="no")]


def failed(key: str) -> list[dict[str, Any]]:
    return [sent(key), records.failed(key, 1, status=500, error="oops")]


HISTORIES: Final[dict[RowState, list[dict[str, Any]]]] = {
    RowState.STARTED: started("k"),
    RowState.UNKNOWN: [sent("k")],
    RowState.REJECTED: rejected("k"),
    RowState.FAILED: failed("k"),
    RowState.INVALID: [records.invalid("k", 1, 2, [PROBLEM])],
    RowState.PENDING: [sent("k"), records.unsent("k", 1, error="refused")],
}


def state_of(state: RowState) -> KeyState:
    found = ledger(*HISTORIES[state]).get("k")
    assert found is not None
    assert found.state is state
    return found


@pytest.mark.parametrize(
    ("state", "plain", "changed"),
    [
        pytest.param(RowState.STARTED, False, False, id="started"),
        pytest.param(RowState.UNKNOWN, False, False, id="unknown"),
        pytest.param(RowState.REJECTED, False, True, id="rejected"),
        pytest.param(RowState.FAILED, True, True, id="failed"),
        pytest.param(RowState.INVALID, True, True, id="invalid"),
        pytest.param(RowState.PENDING, True, True, id="pending"),
    ],
)
def test_what_a_plain_resume_sends(state: RowState, plain: bool, changed: bool) -> None:
    found = state_of(state)

    assert should_send(found, request("k")) is plain
    assert should_send(found, request("k", "2")) is changed


def test_what_the_ledger_does_not_know_is_sent() -> None:
    assert should_send(None, request("k"))


@pytest.mark.parametrize(
    ("state", "auto", "consents", "sends"),
    [
        pytest.param(RowState.UNKNOWN, False, {"retry_unknown": True}, True, id="unknown"),
        pytest.param(RowState.UNKNOWN, True, {"retry_unknown": True}, False, id="unknown-auto"),
        pytest.param(RowState.UNKNOWN, False, {"retry_rejected": True}, False, id="not-meant"),
        pytest.param(RowState.REJECTED, False, {"retry_rejected": True}, True, id="rejected"),
        pytest.param(RowState.REJECTED, True, {"retry_rejected": True}, True, id="rejected-auto"),
        pytest.param(RowState.REJECTED, False, {"retry_unknown": True}, False, id="not-meant-too"),
        pytest.param(
            RowState.STARTED,
            False,
            {"retry_unknown": True, "retry_rejected": True},
            False,
            id="started-never",
        ),
    ],
)
def test_what_a_person_may_consent_to(
    state: RowState, auto: bool, consents: dict[str, bool], sends: bool
) -> None:
    assert should_send(state_of(state), request("k", auto=auto), **consents) is sends


def test_a_resolved_auto_row_is_sent_again() -> None:
    found = ledger(sent("k"), records.resolved("k", job_run_id=None, note="")).get("k")

    assert should_send(found, request("k", auto=True))


def check(replay: Replay, *seen: StartRequest | InvalidRow, accept: bool = False) -> Reconciliation:
    reconciliation = Reconciliation(replay, same_manifest=False)

    for taken in seen:
        reconciliation.see(taken)

    reconciliation.check(accept_new_rows=accept)
    return reconciliation


def refused(
    replay: Replay, *seen: StartRequest | InvalidRow, accept: bool = False
) -> ManifestConflict:
    with pytest.raises(ManifestConflict) as caught:
        check(replay, *seen, accept=accept)

    return caught.value


@pytest.mark.parametrize(
    "history",
    [pytest.param(started("k"), id="started"), pytest.param([sent("k")], id="unknown")],
)
def test_a_sent_row_that_says_something_else_is_refused(history: list[dict[str, Any]]) -> None:
    error = refused(ledger(*history), request("k", "2"), accept=True)

    assert (error.changed, error.gone, error.new) == (("k",), (), ())
    assert str(error).startswith("1 row that had been sent")


def test_a_sent_row_that_is_invalid_now_says_something_else() -> None:
    error = refused(ledger(*started("k")), invalid("k", "x"))

    assert error.changed == ("k",)


def test_a_sent_row_that_a_newer_schema_calls_invalid_has_not_changed() -> None:
    reconciliation = check(ledger(*started("k", "x")), invalid("k", "x"))

    assert list(reconciliation.memberships()) == []


@pytest.mark.parametrize(
    "history",
    [
        pytest.param(rejected("k"), id="rejected"),
        pytest.param(failed("k"), id="failed"),
        pytest.param([records.invalid("k", 1, 2, [PROBLEM])], id="invalid"),
    ],
)
def test_what_started_nothing_may_change_and_go(history: list[dict[str, Any]]) -> None:
    check(ledger(*history), request("k", "2"))
    check(ledger(*history), request("new"))


def test_a_sent_row_may_go_where_none_is_new() -> None:
    replay = ledger(*started("gone"), *started("kept"))
    reconciliation = check(replay, request("kept"))

    assert list(reconciliation.memberships()) == [("gone", False)]


def test_new_rows_may_come_where_none_has_gone() -> None:
    check(ledger(*started("kept")), request("kept"), request("new"))


@pytest.mark.parametrize(
    "new",
    [pytest.param(request("new"), id="valid"), pytest.param(invalid("new"), id="invalid")],
)
def test_a_new_row_may_be_a_gone_ones_changed_form(new: StartRequest | InvalidRow) -> None:
    replay = ledger(*started("gone"))
    error = refused(replay, new)

    assert (error.changed, error.gone, error.new) == ((), ("gone",), ("new",))
    assert "--accept-new-rows" in error.hint

    reconciliation = check(replay, new, accept=True)

    assert list(reconciliation.memberships()) == [("gone", False)]


def test_a_changed_row_does_not_pass_in_two_steps() -> None:
    """First its old form is taken out, and a session later its new form is put in."""
    replay = ledger(*started("gone"), records.membership("gone", in_manifest=False))

    with pytest.raises(ManifestConflict) as caught:
        check(replay, request("new"))

    assert (caught.value.gone, caught.value.new) == (("gone",), ("new",))


def test_a_key_that_comes_back_is_noted() -> None:
    replay = ledger(*started("k"), records.membership("k", in_manifest=False))
    reconciliation = check(replay, request("k"))

    assert list(reconciliation.memberships()) == [("k", True)]


def test_a_row_without_a_key_is_neither_new_nor_seen() -> None:
    check(ledger(*started("k")), request("k"), invalid(None))


def test_the_same_manifest_is_not_looked_at() -> None:
    reconciliation = Reconciliation(ledger(*started("k")), same_manifest=True)
    reconciliation.see(request("k", "2"))
    reconciliation.check(accept_new_rows=False)

    assert list(reconciliation.memberships()) == []


def test_a_conflict_counts_all_and_lists_the_first() -> None:
    many = [f"k{number}" for number in range(LISTED + 5)]
    gone = [record for key in many for record in started(key)]
    error = refused(ledger(*gone), *(request(f"new {key}") for key in many))
    changed = refused(ledger(*gone), *(request(key, "2") for key in many))

    assert (len(error.gone), len(error.new), len(changed.changed)) == (LISTED, LISTED, LISTED)
    assert "lost 1,005 rows" in str(error)
    assert "gained 1,005 rows" in str(error)
    assert "1,005 rows that had been sent" in str(changed)
