from __future__ import annotations

from typing import Any

import pytest

from deslaunch.endings import Ending, Endings, ending_of

FINISHED = {"record": "runStatus", "finished": True}


@pytest.mark.parametrize(
    ("said", "ending"),
    [
        pytest.param({"finished": True, "success": True}, Ending.SUCCEEDED, id="succeeded"),
        pytest.param({"finished": True, "success": False}, Ending.FAILED, id="failed"),
        pytest.param({"finished": True}, Ending.FAILED, id="no-success"),
        pytest.param({"finished": False, "success": True}, Ending.UNTOLD, id="not-finished"),
        pytest.param({"finished": "true", "success": True}, Ending.UNTOLD, id="a-text"),
        pytest.param({}, Ending.UNTOLD, id="nothing"),
    ],
)
def test_what_a_record_says(said: dict[str, Any], ending: Ending) -> None:
    assert ending_of(said) is ending


def test_the_last_record_of_a_key_counts() -> None:
    read: list[int] = []

    def fetch(offset: int) -> dict[str, Any]:
        read.append(offset)
        return {"offset": offset}

    endings = Endings(fetch)
    endings.put(3, 100, {"finished": False})
    endings.put(3, 0, FINISHED | {"success": True})
    endings.put(5000, 1 << 40, FINISHED)

    assert [endings.of(number) for number in (0, 3, 5000, 10**6)] == [
        Ending.NONE,
        Ending.SUCCEEDED,
        Ending.FAILED,
        Ending.NONE,
    ]
    assert endings.counts() == {Ending.SUCCEEDED: 1, Ending.FAILED: 1}
    assert read == []
    assert endings.record(0) is None
    assert endings.record(3) == {"offset": 0}
    assert endings.record(5000) == {"offset": 1 << 40}


def test_a_record_that_cant_be_read_back_is_held_until_one_can() -> None:
    endings = Endings(lambda offset: {"offset": offset})
    endings.put(1, -1, FINISHED)

    assert endings.record(1) == FINISHED

    endings.put(1, 7, FINISHED | {"success": True})

    assert endings.record(1) == {"offset": 7}


def test_without_a_file_every_record_is_held() -> None:
    endings = Endings()
    endings.put(0, 12, FINISHED)

    assert (endings.of(0), endings.record(0)) == (Ending.FAILED, FINISHED)
    assert repr(endings) == "<Endings of 1 runs>"
