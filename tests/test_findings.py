from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from deslaunch.errors import ConfigurationError
from deslaunch.findings import Finding, read_findings

if TYPE_CHECKING:
    from pathlib import Path

RUN = "0d8ab4f4-6f4f-4f8e-9f4e-9a3a8d6c1f00"


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("name", "text"),
    [
        pytest.param(
            "found.csv",
            f"key,as,jobRunId,note\na,started,{RUN},seen\nb,not-started,,\n",
            id="csv",
        ),
        pytest.param(
            "found.csv",
            f"\ufeffkey,as,jobRunId,note\r\na,started,{RUN},seen\r\nb,notStarted,,\r\n",
            id="csv as Excel writes it",
        ),
        pytest.param(
            "found.csv",
            f"key,as,jobRunId,note\na,Started,{RUN},seen\nb,NOT-STARTED,,\n",
            id="csv in other letters",
        ),
        pytest.param(
            "found.jsonl",
            f'{{"key":"a","as":"started","jobRunId":"{RUN}","note":"seen"}}\n\n'
            '{"key":"b","as":"notStarted"}\n',
            id="jsonl",
        ),
    ],
)
def test_findings_are_read(tmp_path: Path, name: str, text: str) -> None:
    found = read_findings(write(tmp_path, name, text), note="by hand")

    assert found == [Finding("a", RUN, "seen"), Finding("b", None, "by hand")]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        pytest.param("f.csv", "as\nstarted\n", ":2: a finding needs a key", id="no key"),
        pytest.param("f.csv", "key,as\na,started\n", ":2: expected as=started", id="no run"),
        pytest.param(
            "f.csv", f"key,as,jobRunId\na,notStarted,{RUN}\n", "expected as=", id="run too many"
        ),
        pytest.param("f.csv", "key,as\na,perhaps\n", "as='perhaps'", id="no such verdict"),
        pytest.param("f.csv", "key,as\na,\n", "as=None", id="no verdict"),
        pytest.param("f.csv", "key,as,why\na,notStarted,x\n", "unknown field 'why'", id="field"),
        pytest.param("f.csv", "key,as\na,notStarted,x\n", "unknown field 'None'", id="ragged"),
        pytest.param(
            "f.csv",
            "key;as\na;notStarted\n",
            ":1: the columns look separated by ';'",
            id="semicolons",
        ),
        pytest.param("f.csv", 'key,as\n"a,notStarted\n', "no file of findings", id="open quote"),
        pytest.param("f.jsonl", "{\n", "no file of findings", id="no json"),
        pytest.param("f.jsonl", "[]\n", ":1: a finding needs a key", id="no object"),
        pytest.param("f.jsonl", '{"key":1,"as":"notStarted"}\n', "needs a key", id="number"),
    ],
)
def test_what_says_too_little_is_refused(tmp_path: Path, name: str, text: str, said: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        read_findings(write(tmp_path, name, text))

    assert said in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="can't be read: No such file"):
        read_findings(tmp_path / "nowhere.csv")
