"""The log for machines: each kind of entry has the fields that the README lists, of the types."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import orjson
import pytest

from deslaunch import logs
from deslaunch.errors import ConfigurationError
from deslaunch.model import (
    Draining,
    Event,
    Noted,
    Outcome,
    Plan,
    Planned,
    PlannedJob,
    Pulse,
    RetryPlanned,
    RowEnded,
    RowState,
    Stop,
    Stopped,
    StopReason,
    Summary,
    TargetPaused,
    TokenRenewed,
)
from deslaunch.progress import Tally

if TYPE_CHECKING:
    from collections.abc import Iterator

README: Final = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
TYPES: Final[dict[str, tuple[type, ...]]] = {
    "text": (str,),
    "number": (int, float),
    "whole": (int,),
    "true or false": (bool,),
    "list": (list,),
    "object": (dict,),
}

OUTCOME: Final = Outcome("k", 7, "acme", "job", RowState.REJECTED, status=400, error="no")
PLAN: Final = Plan(
    "m.csv",
    "m.ledger.jsonl",
    True,
    9,
    1,
    8,
    (PlannedJob("acme", "job", "Nightly", 8),),
    {RowState.INVALID: 1, RowState.PENDING: 8},
    16,
    2.0,
    4,
    "1/2",
)
STOP: Final = Stop(StopReason.THROTTLED, "asked to wait", "acme", resume_after=60.0)
SUMMARY: Final = Summary(1, 0, 0, 1, 0, 0, 0, 0, 0, 1, 0.5, "m.ledger.jsonl")


def a_tally() -> Tally:
    tally = Tally(0.0)
    tally.take(Planned(PLAN), 0.0)
    tally.take(Pulse(3, 2, 8), 0.0)
    tally.take(RowEnded(OUTCOME), 1.0)
    tally.take(TargetPaused("acme", "HTTP 503", 8.0), 1.0)
    return tally


def of_event(event: Event) -> logs.Entry:
    entry = logs.entry_of(event, verbose=True)
    assert entry is not None
    return entry


def entries() -> Iterator[logs.Entry]:
    """Yield one of each kind, with nothing in it left out."""
    events: tuple[Event, ...] = (
        Noted("fetched 1 hour ago", is_warning=False),
        Noted("careful", is_warning=True),
        Planned(PLAN),
        RowEnded(OUTCOME),
        RetryPlanned("k", "acme", 500, 1.23456),
        TargetPaused("acme", "HTTP 503", 8.0),
        TokenRenewed("acme"),
        Draining(3, 60.0),
        Stopped(STOP),
    )
    yield from map(of_event, events)
    tally = a_tally()
    yield logs.progress(tally, 2.0)
    (cause,) = tally.causes
    yield logs.cause(cause)
    yield logs.summary(SUMMARY, tally.causes, ["go on: deslaunch resume m.ledger.jsonl"])
    yield logs.error(ConfigurationError("no URL", hint="set it"), 2)
    yield {"event": "message", "message": "nothing was left to send"}


def told_fields() -> dict[str, dict[str, str]]:
    """Return what the README's table says: event, field, type."""
    table = README.split("| event | fields |\n")[1].split("\n\n")[0]
    found = {}

    for line in table.splitlines()[1:]:
        kind, fields = (cell.strip() for cell in line.strip("|").split("|")[:2])
        found[kind.strip("`")] = dict(re.findall(r"`(\w+)` ([a-z ]+)", fields))

    return found


def test_the_page_lists_every_event() -> None:
    assert sorted(told_fields()) == sorted({entry["event"] for entry in entries()})


@pytest.mark.parametrize("entry", [pytest.param(entry, id=entry["event"]) for entry in entries()])
def test_an_entry_has_the_fields_that_the_page_lists(entry: logs.Entry) -> None:
    told = told_fields()[entry["event"]]
    decoded: dict[str, Any] = orjson.loads(orjson.dumps(entry))

    assert list(told) == [name for name in decoded if name != "event"]

    for name, said in told.items():
        kind = said.removesuffix(" or null").strip()
        assert type(decoded[name]) in TYPES[kind] or (kind != said and decoded[name] is None)


@pytest.mark.parametrize(
    "event",
    [
        pytest.param(RowEnded(OUTCOME), id="row"),
        pytest.param(RetryPlanned("k", "acme", 500, 1.0), id="retry"),
        pytest.param(Pulse(1, 0, 16), id="pulse"),
    ],
)
def test_single_rows_are_told_to_the_verbose_alone(event: Event) -> None:
    assert logs.entry_of(event) is None


def test_the_progress_tells_what_a_terminal_shows() -> None:
    assert logs.progress(a_tally(), 2.0) == {
        "event": "progress",
        "ended": 1,
        "left": 3,
        "states": {"rejected": 1},
        "retries": 0,
        "inFlight": 3,
        "waiting": 2,
        "slots": 8,
        "rate": 0.5,
        "secondsLeft": 13,
        "pauses": [{"target": "acme", "seconds": 7.0, "cause": "HTTP 503"}],
    }
