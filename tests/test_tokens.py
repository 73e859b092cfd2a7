"""Where tokens come from, how refused ones are replaced, and that none is ever shown."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import traceback
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

import pytest
from anyio import wait_all_tasks_blocked
from hypothesis import given
from hypothesis import strategies as st

from deslaunch.errors import ConfigurationError, CredentialsRefused, LedgerLocked
from deslaunch.tokens import (
    CommandToken,
    EnvToken,
    FileToken,
    StaticToken,
    Token,
    TokenKeeper,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


TOKEN: Final = "seCret+t0ken/of=the~organisation"
VISIBLE: Final = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1)


@pytest.fixture(
    params=[
        pytest.param(("asyncio", {"use_uvloop": False}), id="asyncio"),
        pytest.param(("asyncio", {"use_uvloop": True}), id="uvloop"),
    ]
)
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    return request.param


class Queue:
    """A source that gives, or raises, one thing after another, each when it is let go."""

    def __init__(self, *results: str | Token | Exception, gated: bool = False) -> None:
        self.results = list(results)
        self.fetched = 0
        self.gate = asyncio.Event()

        if not gated:
            self.gate.set()

    async def fetch(self) -> Token | str:
        self.fetched += 1
        await self.gate.wait()
        result = self.results.pop(0)

        if isinstance(result, Exception):
            raise result

        return result


def told(error: BaseException) -> str:
    """Return all that a log could say of an error."""
    return "".join(traceback.format_exception(error)) + f"{error!r} {vars(error)!r}"


# -- one token --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="empty"),
        pytest.param(" \n", id="blank"),
        pytest.param(f"Bearer {TOKEN}", id="with its scheme"),
        pytest.param(f"{TOKEN}\r\nX: y", id="line break"),
        pytest.param(f"{TOKEN}\n{TOKEN}", id="two lines"),
        pytest.param(f"{TOKEN}\t{TOKEN}", id="tab"),
        pytest.param(f"{TOKEN}\0{TOKEN}", id="NUL"),
        pytest.param(f"\ufeff{TOKEN}", id="byte order mark"),
        pytest.param(f"{TOKEN}ä", id="not ASCII"),
        pytest.param(f"{TOKEN}\x7f", id="DEL"),
    ],
)
def test_a_text_that_is_no_token_is_refused_without_being_shown(text: str) -> None:
    with pytest.raises(CredentialsRefused) as caught:
        Token(text)

    assert caught.value.hint
    assert TOKEN not in told(caught.value)


def test_a_token_is_stripped_compared_and_hidden() -> None:
    token = Token(f" {TOKEN}\r\n")
    assert (token.text, token == Token(TOKEN)) == (TOKEN, True)
    assert TOKEN not in f"{token} {token!r}"


@given(VISIBLE)
def test_any_visible_text_is_a_token(text: str) -> None:
    assert Token(f"\n{text}\n").text == text


# -- sources ----------------------------------------------------------------------------------


async def test_a_static_token() -> None:
    source = StaticToken(TOKEN)
    assert await source.fetch() == Token(TOKEN)
    assert TOKEN not in repr(source)


def test_a_static_text_that_is_no_token_is_refused_at_once() -> None:
    with pytest.raises(CredentialsRefused):
        StaticToken("a b")


async def test_an_environment_token_is_read_on_each_fetch(monkeypatch: pytest.MonkeyPatch) -> None:
    source = EnvToken()

    for text in ("one", "two"):
        monkeypatch.setenv("DES_TOKEN", text)
        assert await source.fetch() == Token(text)

    assert repr(source) == "EnvToken(variable='DES_TOKEN')"


async def test_an_environment_variable_that_is_not_set() -> None:
    with pytest.raises(CredentialsRefused, match="NO_SUCH_VARIABLE"):
        await EnvToken("NO_SUCH_VARIABLE").fetch()


async def test_a_file_is_read_on_each_fetch(tmp_path: Path) -> None:
    path = tmp_path / "token"
    source = FileToken(path)

    for text in ("one", "two"):
        path.write_text(f"{text}\n")
        assert await source.fetch() == Token(text)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(None, id="no file"),
        pytest.param(b"", id="empty"),
        pytest.param(b"\xff\xfe\x00", id="no UTF-8"),
        pytest.param(f"{TOKEN}\n{TOKEN}".encode(), id="two lines"),
    ],
)
async def test_a_file_that_holds_no_token(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "token"

    if content is not None:
        path.write_bytes(content)

    with pytest.raises(CredentialsRefused) as caught:
        await FileToken(path).fetch()

    assert TOKEN not in told(caught.value)


async def test_a_folder_is_no_token_file(tmp_path: Path) -> None:
    with pytest.raises(CredentialsRefused, match="can't be read"):
        await FileToken(str(tmp_path)).fetch()


def python(code: str, *arguments: str) -> list[str]:
    return [sys.executable, "-S", "-c", code, *arguments]


async def test_a_commands_output_is_the_token() -> None:
    source = CommandToken(python("import sys; print(sys.argv[1])", TOKEN))
    assert await source.fetch() == Token(TOKEN)
    assert TOKEN not in repr(source)
    assert repr(sys.executable) in repr(source)


async def test_a_command_is_run_without_a_shell_and_without_input() -> None:
    code = "import sys; assert not sys.stdin.read(); print(sys.argv[1])"
    assert await CommandToken(python(code, "$HOME;`id`")).fetch() == Token("$HOME;`id`")


FAILS: Final = (
    "import sys; sys.stdout.write(sys.argv[1]); sys.stderr.write(sys.argv[2]); sys.exit(3)"
)


@pytest.mark.parametrize(
    ("stdout", "stderr", "said"),
    [
        pytest.param("", "", "exit status 3", id="silent"),
        pytest.param("", "noise\nno such secret\n", "3: no such secret", id="last line"),
        pytest.param("short", "bad token short", "3: bad token …", id="what it printed is cut out"),
        pytest.param("", f"bad token {TOKEN}", "3: bad token …", id="long words are cut out"),
        pytest.param("", "x " * 400, f"3: {'x ' * 100}", id="long line"),
    ],
)
async def test_a_command_that_fails(stdout: str, stderr: str, said: str) -> None:
    with pytest.raises(CredentialsRefused) as caught:
        await CommandToken(python(FAILS, stdout, stderr)).fetch()

    assert str(caught.value).endswith(said)
    assert TOKEN not in told(caught.value)


async def test_a_command_that_dies_by_a_signal() -> None:
    with pytest.raises(CredentialsRefused, match="signal 15"):
        await CommandToken(python("import os; os.kill(os.getpid(), 15)")).fetch()


@pytest.mark.parametrize(
    ("argv", "why"),
    [
        pytest.param(["/no/such/command"], "No such file", id="absent"),
        pytest.param(["/"], "Permission denied", id="a folder"),
    ],
)
async def test_a_command_that_can_not_be_run(argv: Sequence[str], why: str) -> None:
    with pytest.raises(CredentialsRefused, match=why):
        await CommandToken(argv).fetch()


@pytest.mark.parametrize(
    "argv",
    [
        pytest.param([], id="empty"),
        pytest.param("vault read", id="one string"),
        pytest.param(["vault", "a\0b"], id="NUL"),
    ],
)
def test_a_command_must_be_a_list(argv: Sequence[str]) -> None:
    with pytest.raises(ConfigurationError):
        CommandToken(argv)


PARENT: Final = """
import os, subprocess, sys
child = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(600)"])
with open(sys.argv[1], "w") as out: out.write(f"{os.getpid()} {child.pid}")
child.wait()
"""


def alive(pid: int) -> bool:
    """Tell whether a process runs; one that is dead and not yet reaped does not."""
    shown = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, check=False)
    return bool(shown.stdout.strip()) and not shown.stdout.startswith(b"Z")


async def test_a_command_that_takes_too_long_is_killed_with_its_children(tmp_path: Path) -> None:
    pids = tmp_path / "pids"

    with pytest.raises(CredentialsRefused, match=r"within 0\.5 s"):
        await CommandToken(python(PARENT, str(pids)), timeout=0.5).fetch()

    assert [alive(int(pid)) for pid in pids.read_text().split()] == [False, False]


async def test_a_command_whose_fetch_is_cancelled_is_killed(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    os.mkfifo(pids)
    task = asyncio.create_task(CommandToken(python(PARENT, str(pids))).fetch())
    started = await asyncio.to_thread(pids.read_text)
    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task

    assert [alive(int(pid)) for pid in started.split()] == [False, False]


# -- the keeper -------------------------------------------------------------------------------


async def test_the_first_token_is_fetched_once_for_all_who_ask() -> None:
    source = Queue("one", gated=True)
    keeper = TokenKeeper(source)

    async with asyncio.TaskGroup() as group:
        asked = [group.create_task(keeper.current()) for _ in range(3)]
        await wait_all_tasks_blocked()
        source.gate.set()

    assert ([task.result() for task in asked], source.fetched) == ([(Token("one"), 1)] * 3, 1)
    assert repr(keeper) == "<TokenKeeper of Queue, generation 1>"


async def test_a_renewal_is_shared_by_all_who_were_refused() -> None:
    source = Queue("one", "two", gated=True)
    source.gate.set()
    keeper = TokenKeeper(source)
    await keeper.current()
    source.gate.clear()

    async with asyncio.TaskGroup() as group:
        for _ in range(3):
            group.create_task(keeper.renew(1))

        await wait_all_tasks_blocked()
        source.gate.set()

    assert (await keeper.current(), source.fetched) == ((Token("two"), 2), 2)


async def test_a_late_refusal_of_an_old_token_renews_nothing() -> None:
    source = Queue("one", "two")
    keeper = TokenKeeper(source)
    await keeper.current()
    await keeper.renew(1)
    await keeper.renew(1)
    assert (await keeper.current(), source.fetched) == ((Token("two"), 2), 2)


@pytest.mark.parametrize(
    ("results", "renewals"),
    [
        pytest.param(["one", "one"], 1, id="the same"),
        pytest.param(["one", " one\n"], 1, id="the same but for blanks"),
        pytest.param(["one", Token("one")], 1, id="the same as a token"),
        pytest.param(["one", "two", "one"], 2, id="one that was refused before"),
    ],
)
async def test_a_source_without_a_newer_token(results: list[Any], renewals: int) -> None:
    keeper = TokenKeeper(Queue(*results))
    await keeper.current()

    for generation in range(1, renewals):
        await keeper.renew(generation)

    with pytest.raises(CredentialsRefused, match="no newer one"):
        await keeper.renew(renewals)

    assert (await keeper.current())[1] == renewals


@pytest.mark.parametrize(
    ("result", "said"),
    [
        pytest.param(CredentialsRefused("gone"), "gone", id="its own refusal"),
        pytest.param(LedgerLocked("odd"), "odd", id="another of our errors"),
        pytest.param(RuntimeError(TOKEN), "the token source failed with RuntimeError", id="a bug"),
        pytest.param("a b", "the token holds a blank", id="an unfit text"),
        pytest.param(None, "the token source failed with AttributeError", id="no text"),
    ],
)
async def test_a_source_that_fails(result: Any, said: str) -> None:
    keeper = TokenKeeper(Queue(result, "one"))

    with pytest.raises(CredentialsRefused) as caught:
        await keeper.current()

    assert str(caught.value).startswith(said)
    assert await keeper.current() == (Token("one"), 1)


async def test_a_failed_renewal_is_shared_and_a_later_one_asks_anew() -> None:
    source = Queue("one", RuntimeError(), "two")
    keeper = TokenKeeper(source)
    await keeper.current()
    source.gate.clear()
    tasks = [asyncio.create_task(keeper.renew(1)) for _ in range(3)]
    await wait_all_tasks_blocked()
    source.gate.set()
    errors = await asyncio.gather(*tasks, return_exceptions=True)

    assert ([type(error) for error in errors], source.fetched) == ([CredentialsRefused] * 3, 2)
    await keeper.renew(1)
    assert await keeper.current() == (Token("two"), 2)


@pytest.mark.parametrize("cancelled", [0, 1, 2])
async def test_a_waiter_that_is_cancelled_does_not_break_the_others_renewal(
    cancelled: int,
) -> None:
    source = Queue("one", "two")
    keeper = TokenKeeper(source)
    await keeper.current()
    source.gate.clear()
    tasks = [asyncio.create_task(keeper.renew(1)) for _ in range(3)]
    await wait_all_tasks_blocked()
    tasks[cancelled].cancel()
    await wait_all_tasks_blocked()
    source.gate.set()
    await asyncio.wait(tasks)

    assert [task.cancelled() for task in tasks] == [i == cancelled for i in range(3)]
    assert await keeper.current() == (Token("two"), 2)


# -- scrubbing --------------------------------------------------------------------------------


async def keeper_of(*texts: str) -> TokenKeeper:
    keeper = TokenKeeper(Queue(*texts))

    for generation in range(len(texts)):
        await keeper.renew(generation)

    return keeper


def escaped(text: str, form: str) -> str:
    """Return ``text`` with all that is neither letter nor digit written as ``form`` says."""
    return "".join(c if c.isalnum() else form.format(ord(c)) for c in text)


SPELLINGS: Final = [
    pytest.param(str, id="as it is"),
    pytest.param(lambda text: json.dumps(text)[1:-1], id="JSON"),
    pytest.param(lambda text: text.replace("/", r"\/"), id="JSON, slashes escaped"),
    pytest.param(lambda text: escaped(text, r"\u{:04x}"), id="JSON, lower-case digits"),
    pytest.param(lambda text: escaped(text, r"\u{:04X}"), id="JSON, upper-case digits"),
    pytest.param(lambda text: quote(text, safe=""), id="percent-encoded"),
    pytest.param(lambda text: quote(text, safe="/+="), id="percent-encoded in part"),
    pytest.param(lambda text: escaped(text, "%{:02x}"), id="percent-encoded, lower case"),
    pytest.param(lambda text: escaped(text, "&#{};"), id="HTML, decimal"),
    pytest.param(lambda text: escaped(text, "&#x{:X};"), id="HTML, hexadecimal"),
]


@pytest.mark.parametrize("spelled", SPELLINGS)
@given(token=VISIBLE)
def test_a_token_is_cut_out_however_it_is_spelled(spelled: Any, token: str) -> None:
    keeper = asyncio.run(keeper_of(token))
    assert keeper.scrub(f"é {spelled(token)} é") == "é [token] é"


async def test_all_tokens_that_were_ever_in_use_are_cut_out() -> None:
    keeper = await keeper_of("first/token", "second+token")
    text = r"first/token first\/token second+token second\u002Btoken other"
    assert keeper.scrub(text) == "[token] [token] [token] [token] other"


@pytest.mark.parametrize(
    ("text", "scrubbed"),
    [
        pytest.param(f"you sent {TOKEN[:-1]}", "you sent [token]", id="all but its end"),
        pytest.param(f"you sent {TOKEN[:8]}", "you sent [token]", id="eight characters"),
        pytest.param(f"you sent {TOKEN[:7]}", f"you sent {TOKEN[:7]}", id="seven characters"),
        pytest.param(f"{TOKEN[:9]} is bad", f"{TOKEN[:9]} is bad", id="not at the text's end"),
        pytest.param("", "", id="no text"),
    ],
)
async def test_a_token_that_is_cut_off_by_the_texts_end(text: str, scrubbed: str) -> None:
    keeper = await keeper_of(TOKEN)
    assert keeper.scrub(text) == scrubbed


async def test_a_keeper_without_a_token_yet_scrubs_nothing() -> None:
    assert TokenKeeper(Queue()).scrub(TOKEN) == TOKEN
