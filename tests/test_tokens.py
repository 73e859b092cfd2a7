"""Tokens: where they come from, which grant is sent when, and that none is ever shown."""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
import os
import ssl
import subprocess
import sys
import time
import traceback
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

import pytest
import trustme
from anyio import wait_all_tasks_blocked
from authserver import ACCESS, LOGIN, REFRESH, SECRETS, auth_server, granted, http, refused
from hypothesis import given
from hypothesis import strategies as st
from peer import JOB, unused_port
from stage import workplace

from deslaunch.des.client import DesClient
from deslaunch.des.tokens import (
    CommandToken,
    EnvToken,
    FileToken,
    OAuthToken,
    Token,
    TokenKeeper,
)
from deslaunch.errors import (
    ConfigurationError,
    CredentialsRefused,
    DeslaunchError,
    LedgerLocked,
    Misconfigured,
    NotSent,
)
from deslaunch.simulator import Simulator

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterator, Sequence
    from pathlib import Path

    from authserver import AuthServer


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
    source = Token(TOKEN)
    assert await source.fetch() == Token(TOKEN)
    assert TOKEN not in repr(source)


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


async def test_a_large_file_is_no_token_file(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("t" * 65_537)

    with pytest.raises(CredentialsRefused, match="can't be read: it is over 64 KiB"):
        await FileToken(path).fetch()


async def test_a_token_may_come_through_a_pipe(tmp_path: Path) -> None:
    path = tmp_path / "token"
    os.mkfifo(path)
    fetched = asyncio.create_task(FileToken(path).fetch())
    await asyncio.to_thread(path.write_text, TOKEN)

    assert await fetched == Token(TOKEN)


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


def are_dead(pids: str) -> bool:
    """Return True once no process runs; one that is dead and not yet reaped does not."""
    for _ in range(500):  # who was killed may need a moment to die
        command = ["ps", "-o", "stat=", "-p", ",".join(pids.split())]
        shown = subprocess.run(command, capture_output=True, text=True, check=False).stdout

        if all(line.startswith("Z") for line in shown.split()):
            return True

    return False


async def test_a_command_that_takes_too_long_is_killed_with_its_children(tmp_path: Path) -> None:
    pids = tmp_path / "pids"

    with pytest.raises(CredentialsRefused, match=r"timed out after 0\.5 s"):
        await CommandToken(python(PARENT, str(pids)), timeout=0.5).fetch()

    assert are_dead(pids.read_text())


LINGERS: Final = """
import os, subprocess, sys
child = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(600)"])
with open(sys.argv[1], "w") as out: out.write(f"{os.getpid()} {child.pid}")
print(sys.argv[2])
"""


async def test_what_a_command_printed_counts_at_its_end_and_what_it_left_is_killed(
    tmp_path: Path,
) -> None:
    """A helper of its own, an agent for example, keeps the output open."""
    pids = tmp_path / "pids"

    assert await CommandToken(python(LINGERS, str(pids), TOKEN)).fetch() == Token(TOKEN)
    assert are_dead(pids.read_text())


@pytest.mark.parametrize(
    "code",
    [
        pytest.param("import sys\nwhile True: sys.stdout.write('x' * 9999)", id="without end"),
        pytest.param("print('x' * 70_000)", id="and ends"),
    ],
)
async def test_a_command_that_prints_too_much_is_not_read_to_its_end(code: str) -> None:
    with pytest.raises(CredentialsRefused, match="more than 65,536 bytes of output"):
        await CommandToken(python(code)).fetch()


async def test_errors_without_end_are_no_output() -> None:
    code = "import sys; sys.stderr.write('x' * 200_000); print(sys.argv[1])"

    assert await CommandToken(python(code, TOKEN)).fetch() == Token(TOKEN)


async def test_a_command_whose_fetch_is_cancelled_is_killed(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    os.mkfifo(pids)
    task = asyncio.create_task(CommandToken(python(PARENT, str(pids))).fetch())
    started = await asyncio.to_thread(pids.read_text)
    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task

    assert are_dead(started)


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
    now = 100.0
    keeper = TokenKeeper(Queue(result, "one"), clock=lambda: now)

    with pytest.raises(CredentialsRefused) as caught:
        await keeper.current()

    now += 1.0
    assert str(caught.value).startswith(said)
    assert await keeper.current() == (Token("one"), 1)


async def test_where_a_failure_happened_is_told_once() -> None:
    """Each who gets the failure may add to it: a target's name, say."""
    error = CredentialsRefused("gone")
    error.__cause__ = OSError()
    keeper = TokenKeeper(Queue(error), clock=lambda: 100.0)

    for _ in range(3):
        with pytest.raises(CredentialsRefused) as caught:
            await keeper.current()

        caught.value.locate("target acme")
        assert str(caught.value) == "target acme: gone"
        first = caught.value if caught.value is error else caught.value.__cause__
        assert isinstance(first and first.__cause__, OSError)


async def test_a_failed_renewal_is_shared_and_a_later_one_asks_anew() -> None:
    now = 100.0
    source = Queue("one", RuntimeError(), "two")
    keeper = TokenKeeper(source, clock=lambda: now)
    await keeper.current()
    source.gate.clear()
    tasks = [asyncio.create_task(keeper.renew(1)) for _ in range(3)]
    await wait_all_tasks_blocked()
    source.gate.set()
    errors = await asyncio.gather(*tasks, return_exceptions=True)

    assert ([type(error) for error in errors], source.fetched) == ([CredentialsRefused] * 3, 2)
    now += 1.0
    await keeper.renew(1)
    assert await keeper.current() == (Token("two"), 2)


async def test_a_new_launch_asks_the_source_at_once() -> None:
    source = Queue("one", "one", "two", "two", "two")
    keeper = TokenKeeper(source, clock=lambda: 100.0)
    await keeper.current()

    with pytest.raises(CredentialsRefused):
        await keeper.renew(1)

    keeper.forget_refusal()
    assert await keeper.current() == (Token("two"), 2)
    keeper.forget_refusal()
    assert (await keeper.current(), source.fetched) == ((Token("two"), 2), 3), "it was not refused"

    with pytest.raises(CredentialsRefused):
        await keeper.renew(2)

    keeper.forget_refusal()
    assert await keeper.current() == (Token("two"), 3), "DES may accept it by now"


async def test_a_new_launch_waits_for_the_auth_server_as_an_old_one() -> None:
    keeper = TokenKeeper(Queue(NotSent("busy", retry_after=9.0)), clock=lambda: 100.0)

    for _ in range(2):
        with pytest.raises(NotSent, match="busy"):
            await keeper.current()

        keeper.forget_refusal()


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


@pytest.mark.parametrize(
    ("token", "text", "scrubbed"),
    [
        pytest.param("t", "https://host can't start", "https://host can't start", id="letters"),
        pytest.param("t", "token 't', t=t", "token '[token]', [token]=[token]", id="words"),
        pytest.param("a/b-c", "xa/b-c a%2fb-c", "xa/b-c [token]", id="escaped"),
        pytest.param("7letter", "7letters", "7letters", id="seven characters"),
        pytest.param("8letters", "18lettersX", "1[token]X", id="eight characters"),
    ],
)
async def test_a_short_token_is_cut_out_as_a_whole_word(
    token: str, text: str, scrubbed: str
) -> None:
    keeper = await keeper_of(token)
    assert keeper.scrub(text) == scrubbed


async def test_a_keeper_without_a_token_yet_scrubs_nothing() -> None:
    assert TokenKeeper(Queue()).scrub(TOKEN) == TOKEN


# -- the auth server --------------------------------------------------------------------------

SPENT: Final = refused(400, error="invalid_grant", error_description=REFRESH)


@pytest.fixture(autouse=True)
def no_secret_is_logged(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    caplog.set_level(logging.DEBUG)
    yield
    assert not [secret for secret in SECRETS if secret in caplog.text]


def source_of(server: AuthServer | Simulator, **options: Any) -> OAuthToken:
    url = server.base_url if isinstance(server, Simulator) else server.url
    return OAuthToken(**{**LOGIN, "auth_url": url, **options})


def assert_no_secret(error: BaseException) -> None:
    told = "".join(traceback.format_exception(error)) + f"{error!r} {error.args!r} {vars(error)!r}"
    assert not [secret for secret in SECRETS if secret in told]


def source_at(url: str) -> OAuthToken:
    options: Any = LOGIN
    return OAuthToken(**options, auth_url=url)


async def failure(server: AuthServer, **options: Any) -> DeslaunchError:
    return await failure_of(source_of(server, **options).fetch())


async def failure_of(asked: Coroutine[Any, Any, object]) -> DeslaunchError:
    with pytest.raises(DeslaunchError) as caught:
        await asked

    assert_no_secret(caught.value)
    return caught.value


# -- grants -----------------------------------------------------------------------------------


async def test_a_password_buys_the_first_token() -> None:
    async with auth_server(granted()) as server:
        token = await source_of(server).fetch()

    assert token == Token(f"{ACCESS}1", svc="https://des.example")
    assert server.asked == [
        {"grant_type": "password", **LOGIN, "scope": "des offline_access"},
    ]


async def test_a_grant_is_read_also_where_it_is_packed() -> None:
    _, _, body = granted().partition(b"\r\n\r\n")
    packed = http(200, gzip.compress(body), "Content-Encoding: gzip")

    async with auth_server(packed) as server:
        assert (await source_of(server).fetch()).text == f"{ACCESS}1"


async def test_each_refresh_token_is_used_once() -> None:
    async with auth_server(granted(1), granted(2), granted(3)) as server:
        source = source_of(server)
        texts = [(await source.fetch()).text for _ in range(3)]

    assert texts == [f"{ACCESS}{number}" for number in (1, 2, 3)]
    assert server.grants == ["password", "refresh_token", "refresh_token"]
    assert [form.get("refresh_token") for form in server.asked[1:]] == [
        f"{REFRESH}1",
        f"{REFRESH}2",
    ]
    assert server.asked[1].keys() == {
        "grant_type",
        "client_id",
        "client_secret",
        "refresh_token",
    }


async def test_where_a_refresh_is_refused_the_password_buys_a_token() -> None:
    async with auth_server(granted(1), SPENT, granted(2), granted(3)) as server:
        source = source_of(server)
        texts = [(await source.fetch()).text for _ in range(3)]

    assert texts == [f"{ACCESS}{number}" for number in (1, 2, 3)]
    assert server.grants == ["password", "refresh_token", "password", "refresh_token"]


async def test_a_refresh_whose_answer_was_lost_is_not_sent_again() -> None:
    async with auth_server(granted(1), http(200, b"{", length=9), granted(2)) as server:
        source = source_of(server)
        await source.fetch()

        with pytest.raises(NotSent):
            await source.fetch()

        token = await source.fetch()

    assert token.text == f"{ACCESS}2"
    assert server.grants == ["password", "refresh_token", "password"]


async def test_a_refresh_that_brings_no_new_refresh_token_leaves_the_old_one_good() -> None:
    async with auth_server(granted(1), granted(2, refresh_token=None), granted(3)) as server:
        source = source_of(server)

        for _ in range(3):
            await source.fetch()

    assert server.grants == ["password", "refresh_token", "refresh_token"]
    assert [form.get("refresh_token") for form in server.asked[1:]] == [f"{REFRESH}1"] * 2


@pytest.mark.parametrize(
    ("answer", "silence"),
    [
        pytest.param(SPENT, 1.0, id="refused"),
        pytest.param(http(429, b"", "Retry-After: 4, 30"), 30.0, id="throttled"),
        pytest.param(http(503, b"", "Retry-After: 0"), 1.0, id="starting up"),
    ],
)
async def test_an_auth_server_that_failed_is_left_alone(answer: bytes, silence: float) -> None:
    now = 100.0

    async with auth_server(answer) as server:
        keeper = TokenKeeper(source_of(server), clock=lambda: now)
        first = await failure_of(keeper.current())
        now += silence - 0.01
        second = await failure_of(keeper.current())
        early = len(server.asked)
        now += 0.02
        await failure_of(keeper.current())

    assert (early, len(server.asked)) == (1, 2)
    assert (type(second), str(second)) == (type(first), str(first))


async def test_without_a_refresh_token_the_password_is_sent_again() -> None:
    async with auth_server(granted(1, refresh_token=None), granted(2)) as server:
        source = source_of(server)
        await source.fetch()
        await source.fetch()

    assert server.grants == ["password", "password"]


async def test_the_secrets_are_asked_for_at_each_grant() -> None:
    secrets = iter(["old", "new"])

    async with auth_server(granted(1), granted(2)) as server:
        source = source_of(server, client_secret=lambda: next(secrets))
        await source.fetch()
        await source.fetch()

    assert [form["client_secret"] for form in server.asked] == ["old", "new"]


# -- refusals and faults ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "said", "hint"),
    [
        pytest.param(SPENT, " responded 400 invalid_grant", "user name", id="login"),
        pytest.param(
            refused(401, error="invalid_client"),
            " 401 invalid_client",
            "client secret",
            id="client",
        ),
        pytest.param(
            refused(400, error=LOGIN["password"]), " responded 400", "user name", id="odd"
        ),
        pytest.param(http(403, b"<html>"), " responded 403", "password", id="no-json"),
        pytest.param(granted(org_id="CAFE"), "organisation BISTRO, got one for", "id", id="org"),
        pytest.param(granted(access_token="two words"), "a blank", "bare token", id="unfit"),
    ],
)
async def test_a_refusal(answer: bytes, said: str, hint: str) -> None:
    async with auth_server(answer) as server:
        error = await failure(server)

    assert type(error) is CredentialsRefused
    assert said in str(error)
    assert hint in error.hint


@pytest.mark.parametrize(
    ("answer", "kind", "said"),
    [
        pytest.param(http(500, b"{}"), NotSent, "responded 500", id="500"),
        pytest.param(http(429, b""), NotSent, "responded 429", id="429"),
        pytest.param(http(404, b""), Misconfigured, "responded 404", id="404"),
        pytest.param(
            http(302, b"", "Location: http://127.0.0.1:9/"), Misconfigured, "302", id="redirect"
        ),
        pytest.param(http(200, b"<html>"), NotSent, "without an access_token", id="html"),
        pytest.param(http(200, b"{}"), NotSent, "without an access_token", id="no-token"),
        pytest.param(
            http(200, b'{"access_token": 5}'), NotSent, "without an access_token", id="number"
        ),
        pytest.param(
            http(200, b'{"access', length=99), NotSent, "without an access_token", id="cut"
        ),
        pytest.param(
            http(200, b" " * 70_000 + b'{"access_token": "x"}'),
            NotSent,
            "without an access_token",
            id="huge",
        ),
        pytest.param(b"\0\1\2\r\n\r\n", NotSent, "the response is not HTTP", id="no-http"),
    ],
)
async def test_what_is_no_refusal(answer: bytes, kind: type[DeslaunchError], said: str) -> None:
    async with auth_server(answer) as server:
        error = await failure(server)

    assert type(error) is kind
    assert said in str(error)
    assert error.hint
    assert len(server.asked) == 1


async def test_a_silent_auth_server_is_given_up() -> None:
    async with auth_server(b"") as server:
        error = await failure(server, timeout=0.2)

    assert (type(error), "timed out" in str(error)) == (NotSent, True)


async def test_an_auth_server_that_is_not_there() -> None:
    with pytest.raises(NotSent, match="can't connect") as caught:
        await source_at(f"http://127.0.0.1:{unused_port()}").fetch()

    assert_no_secret(caught.value)


async def test_an_auth_server_whose_certificate_is_not_trusted() -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)

    async with Simulator(ssl=context) as simulator:
        with pytest.raises(Misconfigured, match="certificate is not trusted"):
            await source_of(simulator).fetch()


async def test_the_wait_that_an_auth_server_asks_for_is_kept() -> None:
    async with auth_server(http(503, b"", "Retry-After: 7")) as server:
        error = await failure(server)

    assert isinstance(error, NotSent)
    assert error.retry_after == 7


@pytest.mark.parametrize(
    ("url", "said"),
    [
        pytest.param("http://auth.example", "unencrypted", id="http"),
        pytest.param("https://u:pa55@auth.example", "user name or password", id="password"),
        pytest.param("ftp://auth.example", "can't be used", id="scheme"),
    ],
)
def test_an_auth_server_that_no_password_is_sent_to(url: str, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said) as caught:
        source_at(url)

    assert "pa55" not in str(caught.value)


async def test_no_secret_is_shown() -> None:
    async with auth_server(granted()) as server:
        source = source_of(server)
        client = DesClient(None, token=source)
        token = await source.fetch()
        shown = f"{source!r} {client!r} {token!r} {TokenKeeper(source)!r}"

    assert shown.startswith(f"<OAuthToken of BISTRO from {server.url}> <DesClient organisation")
    assert not [secret for secret in SECRETS if secret in shown]


# -- where a token leads ----------------------------------------------------------------------


async def test_a_client_goes_where_its_token_says() -> None:
    async with Simulator(tokens=()) as simulator:
        async with DesClient(None, token=source_of(simulator)) as des:
            before = des.base_url
            run = await des.start_job(JOB, {"DBGenFrom": 1})

        assert (before, des.base_url, des.org_id) == (None, simulator.base_url, "BISTRO")
        assert [known.job_run_id for known in simulator.runs] == [run.job_run_id]


async def test_a_des_that_moves_is_followed_at_the_next_grant() -> None:
    async with (
        Simulator(tokens=[f"{ACCESS}1"]) as old,
        Simulator(tokens=[f"{ACCESS}2"]) as new,
        auth_server(granted(1, svc=old.base_url), granted(2, svc=new.base_url)) as server,
        DesClient(None, token=source_of(server)) as des,
    ):
        await des.query_jobs()
        old.revoke(f"{ACCESS}1")
        await des.query_jobs()

        assert (old.count("queryjobs"), new.count("queryjobs")) == (2, 1)
        assert (des.base_url, des.home) == (new.base_url, "organisation BISTRO")


async def test_a_base_url_that_is_given_wins_over_the_tokens() -> None:
    async with (
        Simulator(tokens=[f"{ACCESS}1"]) as simulator,
        auth_server(granted(1, svc="https://des.example")) as server,
        DesClient(simulator.base_url, token=source_of(server)) as des,
    ):
        await des.query_jobs()

        assert (simulator.count("queryjobs"), des.home) == (1, simulator.base_url)


@pytest.mark.parametrize(
    ("svc", "said"),
    [
        pytest.param("http://des.example", "unencrypted", id="http"),
        pytest.param("file:///etc/passwd", "can't be used", id="scheme"),
        pytest.param("https://u:p@des.example", "user name or password", id="password"),
        pytest.param("", "names no base URL", id="empty"),
        pytest.param(None, "names no base URL", id="none"),
        pytest.param(7, "names no base URL", id="number"),
    ],
)
async def test_a_place_that_no_token_is_sent_to(svc: Any, said: str) -> None:
    async with (
        auth_server(granted(svc=svc)) as server,
        DesClient(None, token=source_of(server)) as des,
    ):
        for _ in range(2):
            with pytest.raises(Misconfigured, match=said) as caught:
                await des.query_jobs()

            assert_no_secret(caught.value)

    assert len(server.asked) == 1


def test_a_client_without_a_base_url_needs_tokens_that_tell_it() -> None:
    with pytest.raises(ConfigurationError, match="there is no base URL"):
        DesClient(None, token="t")


async def test_the_proxy_is_chosen_for_the_place_that_the_token_names() -> None:
    chosen = []

    def choose(base_url: str) -> None:
        chosen.append(base_url)

    async with Simulator(tokens=()) as simulator:
        async with DesClient(None, token=source_of(simulator), proxy=choose) as des:
            await des.query_jobs()

        assert chosen == [simulator.base_url]


# -- renewals ---------------------------------------------------------------------------------


async def test_a_storm_of_refusals_is_one_refresh() -> None:
    script = {"tokens": {"expireAfter": 1, "which": "first"}}

    async with Simulator(tokens=(), script=script) as simulator:
        async with DesClient(None, token=source_of(simulator)) as des:
            await des.start_job(JOB, {"DBGenFrom": 0})
            await asyncio.gather(*(des.query_jobs() for _ in range(50)))

        assert (simulator.count("token"), simulator.count("queryjobs")) == (2, 100)


async def test_a_refused_token_is_not_sent_again_while_no_newer_one_can_be_had() -> None:
    now = 100.0

    async with auth_server(granted(1), http(500, b""), http(500, b""), granted(2)) as server:
        keeper = TokenKeeper(source_of(server), clock=lambda: now)
        await keeper.current()

        with pytest.raises(NotSent, match="500"):
            await keeper.renew(1)

        now += 1.0

        with pytest.raises(NotSent, match="500"):
            await keeper.current()

        now += 1.0
        token, generation = await keeper.current()

    assert (token.text, generation) == (f"{ACCESS}2", 2)


async def test_all_who_wait_share_what_kept_the_token_away() -> None:
    answer = http(503, b"", "Retry-After: 9")

    async with auth_server(granted(1), answer) as server:
        keeper = TokenKeeper(source_of(server))
        await keeper.current()
        errors = await asyncio.gather(*(keeper.renew(1) for _ in range(50)), return_exceptions=True)

    assert len(server.asked) == 2
    assert {(type(error), getattr(error, "retry_after", None)) for error in errors} == {
        (NotSent, 9.0)
    }


# -- a whole launch ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "at"),
    [
        pytest.param(429, 1, id="429 before the import"),
        pytest.param(503, 1, id="503 before the import"),
        pytest.param(429, 2, id="429 to a refresh"),
        pytest.param(503, 2, id="503 to a refresh"),
    ],
)
def test_a_launch_waits_as_long_as_the_auth_server_asks(
    tmp_path: Path, status: int, at: int
) -> None:
    busy = {"fault": "status", "on": "token", "at": [at], "status": status, "retryAfter": 2}
    script = {"tokens": {"expireAfter": 3}, "faults": [busy]}

    with workplace(tmp_path, script, tokens=()) as place:
        place.environment.update(environment_of(place.simulator))
        place.manifest(8)
        began = time.monotonic()
        done = place.run("run", "night.jsonl", token=None)
        took = time.monotonic() - began

        assert (done.returncode, len(place.simulator.runs)) == (0, 8), done.stderr
        assert (place.simulator.count("token"), took >= 2) == (3, True)  # one is spent


def test_a_login_that_is_refused_is_sent_once(tmp_path: Path) -> None:
    script = {"faults": [{"fault": "status", "on": "token", "status": 400}]}

    with workplace(tmp_path, script) as place:
        place.environment.update(environment_of(place.simulator))
        place.manifest(8)
        done = place.run("run", "night.jsonl", token=None)

        assert (done.returncode, place.simulator.count("token")) == (6, 1)
        assert not [secret for secret in SECRETS if secret in done.stderr]


def environment_of(simulator: Simulator) -> dict[str, str]:
    login = {f"DES_{name.upper()}": text for name, text in LOGIN.items()}
    return {**login, "DES_AUTH_URL": simulator.base_url}
