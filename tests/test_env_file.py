"""Files of variables: what is read of them, and what is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from deslaunch.env_file import read_env_file
from deslaunch.errors import ConfigurationError

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("text", "found"),
    [
        pytest.param("", {}, id="empty"),
        pytest.param("\n  \n# A=b\n  # c\n", {}, id="comments"),
        pytest.param("A=b", {"A": "b"}, id="bare"),
        pytest.param("A=", {"A": ""}, id="nothing"),
        pytest.param("  export A=b  \r\nB=c\r\n", {"A": "b", "B": "c"}, id="export-and-crlf"),
        pytest.param("A=vault read -field=x a#b", {"A": "vault read -field=x a#b"}, id="blanks"),
        pytest.param("A=$B${C}", {"A": "$B${C}"}, id="nothing-is-expanded"),
        pytest.param("A=b\nA=c", {"A": "c"}, id="the-last-wins"),
        pytest.param("A='b # \\ \" c'", {"A": 'b # \\ " c'}, id="single"),
        pytest.param('A="b # \' \\" \\\\n"  # d', {"A": "b # ' \" \\n"}, id="double"),
        pytest.param("A=''", {"A": ""}, id="empty-quotes"),
        pytest.param("\ufeffA=b", {"A": "b"}, id="bom"),
        pytest.param("A='b\u2028c'", {"A": "b\u2028c"}, id="odd-line-break"),
    ],
)
def test_what_is_read(text: str, found: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / ".env"
    path.write_bytes(text.encode())

    assert read_env_file(path) == found


@pytest.mark.parametrize(
    "line",
    [
        pytest.param("s3cret", id="no-assignment"),
        pytest.param("A =s3cret", id="blank-before"),
        pytest.param("A= s3cret", id="blank-behind"),
        pytest.param("1A=s3cret", id="name"),
        pytest.param("A-B=s3cret", id="dash"),
        pytest.param("A=s3cret # c", id="ambiguous-comment"),
        pytest.param("A=#s3cret", id="ambiguous-hash"),
        pytest.param("A='s3cret", id="open-quote"),
        pytest.param('A="s3cret', id="open-double-quote"),
        pytest.param('A="s3cret\\n"', id="unknown-escape"),
        pytest.param("A='s3cret'x", id="text-behind"),
        pytest.param("A='s3cret'#x", id="comment-without-blank"),
        pytest.param("A=s3\\cret", id="backslash"),
        pytest.param("A=it's3cret", id="quote-within"),
        pytest.param("A=s3cret\0", id="nul"),
    ],
)
def test_what_readers_differ_on_is_refused(line: str, tmp_path: Path) -> None:
    path = tmp_path / ".env"
    path.write_text(f"# first\n{line}\n")

    with pytest.raises(ConfigurationError) as caught:
        read_env_file(path)

    assert str(caught.value).startswith(f"{path}:2: expected NAME=value")
    assert "s3" not in f"{caught.value}{caught.value.hint}".replace(str(path), "")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        pytest.param(None, "can't be read: No such file", id="gone"),
        pytest.param("A=é".encode("latin-1"), "not in UTF-8", id="latin"),
    ],
)
def test_a_file_that_can_not_be_read(content: bytes | None, told: str, tmp_path: Path) -> None:
    path = tmp_path / ".env"

    if content is not None:
        path.write_bytes(content)

    with pytest.raises(ConfigurationError, match=told):
        read_env_file(path)
