from __future__ import annotations

import pytest

from deslaunch.errors import ConfigurationError
from deslaunch.health import ErrorLimit, Health
from deslaunch.model import RowState, Stop, StopReason

NO_LIMIT = ErrorLimit(share=None)

STATES = {
    "s": (RowState.STARTED, 200),
    "f": (RowState.FAILED, 500),
    "r": (RowState.REJECTED, 400),
    "u": (RowState.UNKNOWN, None),
    "3": (RowState.REJECTED, 403),
    "4": (RowState.REJECTED, 403),
}


def run(rows: str, limit: ErrorLimit = NO_LIMIT) -> tuple[int, StopReason] | None:
    """Return after how many rows, and why, a target stops; '4' is another job than '3'."""
    health = Health("acme", limit)

    for number, letter in enumerate(rows, start=1):
        state, status = STATES[letter]
        job_id = "other" if letter == "4" else "job"
        stop = health.ended(state, job_id=job_id, status=status)

        if stop is not None:
            assert stop.target == "acme"
            return number, stop.reason

    return None


ERRORS, CONFIGURATION = StopReason.TOO_MANY_ERRORS, StopReason.CONFIGURATION


@pytest.mark.parametrize(
    ("rows", "stopped"),
    [
        pytest.param("s" * 500, None, id="all well"),
        pytest.param("s" + "u" * 5, (6, ERRORS), id="five unknown in a row"),
        pytest.param("s" + "u" * 4 + "s" + "u" * 4, None, id="a start between the unknown"),
        pytest.param("s" + "uruuruu", (8, ERRORS), id="a refusal between does not help"),
        pytest.param("u" * 5, (5, ERRORS), id="unknown from the first"),
        pytest.param("s" + "f" * 25, (26, ERRORS), id="25 failed in a row"),
        pytest.param("s" + "f" * 24 + "s" + "f" * 24, None, id="a start between the failed"),
        pytest.param("s" + "ufff" * 4 + "f" * 12, None, id="each kind is counted alone"),
        pytest.param("3", (1, CONFIGURATION), id="403 as the first answer"),
        pytest.param("s33334", (6, CONFIGURATION), id="five 403 over two jobs"),
        pytest.param("s" + "3" * 100, None, id="403 of one job only"),
        pytest.param("s3333r3334", None, id="another refusal between the 403"),
        pytest.param("s3333s3334", None, id="a start between the 403"),
        pytest.param("s" + "3" * 9 + "4", (11, CONFIGURATION), id="a second job at last"),
        pytest.param("r" * 500, None, id="no limit"),
    ],
)
def test_rows_in_a_row(rows: str, stopped: tuple[int, StopReason] | None) -> None:
    assert run(rows) == stopped


@pytest.mark.parametrize(
    ("limit", "rows", "stopped"),
    [
        pytest.param("0", "sr", (2, ERRORS), id="none allowed"),
        pytest.param("2", "rsrsr", (5, ERRORS), id="a number"),
        pytest.param("2", "rsrs", None, id="as many as allowed"),
        pytest.param("50%", "sr" * 250, None, id="half is allowed"),
        pytest.param("50%", "r" * 199, None, id="too few for a share"),
        pytest.param("50%", "r" * 200, (200, ERRORS), id="more than half"),
        pytest.param("50%", "rs" * 100 + "r", (201, ERRORS), id="just more than half"),
        pytest.param("100%", "r" * 300, None, id="all may fail"),
        pytest.param("0%", "s" * 250 + "r", (251, ERRORS), id="none of many"),
    ],
)
def test_the_limit(limit: str, rows: str, stopped: tuple[int, StopReason] | None) -> None:
    assert run(rows, ErrorLimit.parse(limit)) == stopped


@pytest.mark.parametrize("text", ["", "%", "-1", "1.5", "many", "101%", "5 %", "٣"])
def test_what_is_no_limit(text: str) -> None:
    with pytest.raises(ConfigurationError, match="--max-errors takes"):
        ErrorLimit.parse(text)


def test_the_stop_says_what_it_counted() -> None:
    health = Health("acme", ErrorLimit.parse("1"))
    health.ended(RowState.REJECTED, job_id="job", status=400)

    stop = health.ended(RowState.FAILED, job_id="job", status=500)

    assert stop == Stop(ERRORS, "2 of 2 rows ended without a run, and --max-errors is 1", "acme")
    assert repr(health) == "<Health of 'acme': 2 of 2 rows without a run>"
    assert str(ErrorLimit()) == "50%"


@pytest.mark.parametrize(
    ("rows", "reason", "message"),
    [
        pytest.param(
            "3",
            CONFIGURATION,
            "its first answer was 403 (forbidden): is the token for this organisation?",
            id="403 as the first answer",
        ),
        pytest.param(
            "s333334",
            CONFIGURATION,
            "6 rows in a row were answered 403 (forbidden), over several jobs",
            id="403 over two jobs",
        ),
        pytest.param(
            "uuuuu",
            ERRORS,
            "5 rows became unknown with none started between them",
            id="unknown in a row",
        ),
        pytest.param(
            "f" * 25,
            ERRORS,
            "25 rows became failed with none started between them",
            id="failed in a row",
        ),
        pytest.param(
            "f" * 24 + "rf",
            ERRORS,
            "25 rows became failed with none started between them",
            id="failed from the first, a refusal between",
        ),
    ],
)
def test_the_stop_says_what_went_wrong(rows: str, reason: StopReason, message: str) -> None:
    health = Health("acme", NO_LIMIT)
    stops = [
        health.ended(state, job_id="other" if letter == "4" else "job", status=status)
        for letter in rows
        for state, status in [STATES[letter]]
    ]

    assert stops == [*[None] * (len(rows) - 1), Stop(reason, message, "acme")]
