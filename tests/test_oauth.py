"""Tokens from the auth server: which grant is sent when, where a token leads, and what is told."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import traceback
from typing import TYPE_CHECKING, Any, Final

import pytest
import trustme
from anyio import wait_all_tasks_blocked
from authserver import ACCESS, LOGIN, REFRESH, SECRETS, auth_server, granted, http, refused
from stage import JOB

from deslaunch.client import DesClient
from deslaunch.errors import (
    ConfigurationError,
    CredentialsRefused,
    DeslaunchError,
    Misconfigured,
    NotSent,
)
from deslaunch.oauth import OAuthToken
from deslaunch.simulator import Simulator
from deslaunch.tokens import Token, TokenKeeper

if TYPE_CHECKING:
    from collections.abc import Iterator

    from authserver import AuthServer

SPENT: Final = refused(400, error="invalid_grant", error_description=REFRESH)


@pytest.fixture(
    params=[
        pytest.param(("asyncio", {"use_uvloop": False}), id="asyncio"),
        pytest.param(("asyncio", {"use_uvloop": True}), id="uvloop"),
    ]
)
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    return request.param


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
    with pytest.raises(DeslaunchError) as caught:
        await source_of(server, **options).fetch()

    assert_no_secret(caught.value)
    return caught.value


# -- grants -----------------------------------------------------------------------------------


async def test_a_password_buys_the_first_token() -> None:
    async with auth_server(granted()) as server:
        token = await source_of(server).fetch()

    assert token == Token(f"{ACCESS}1", svc="https://des.example", expires_in=28800)
    assert server.asked == [
        {"grant_type": "password", **LOGIN, "scope": "des offline_access"},
    ]


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


async def test_without_a_refresh_token_the_password_is_sent_again() -> None:
    async with auth_server(granted(1, refresh_token=None), granted(2)) as server:
        source = source_of(server)
        await source.fetch()
        await source.fetch()

    assert server.grants == ["password", "password"]


async def test_one_grant_at_a_time() -> None:
    async with auth_server(granted(1), granted(2)) as server:
        source = source_of(server)
        server.gate.clear()
        tasks = [asyncio.create_task(source.fetch()) for _ in range(2)]

        await server.arrived.wait()
        await wait_all_tasks_blocked()
        under_way = len(server.asked)
        server.gate.set()
        await asyncio.gather(*tasks)

    assert (under_way, server.grants) == (1, ["password", "refresh_token"])


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
        pytest.param(SPENT, " answered 400 invalid_grant", "user name", id="login"),
        pytest.param(
            refused(401, error="invalid_client"),
            " 401 invalid_client",
            "client secret",
            id="client",
        ),
        pytest.param(refused(400, error=LOGIN["password"]), " answered 400", "user name", id="odd"),
        pytest.param(http(403, b"<html>"), " answered 403", "password", id="no-json"),
        pytest.param(granted(org_id="CAFE"), "another organisation than BISTRO", "id", id="org"),
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
        pytest.param(http(500, b"{}"), NotSent, "answered 500", id="500"),
        pytest.param(http(429, b""), NotSent, "answered 429", id="429"),
        pytest.param(http(404, b""), Misconfigured, "answered 404", id="404"),
        pytest.param(
            http(302, b"", "Location: http://127.0.0.1:9/"), Misconfigured, "302", id="redirect"
        ),
        pytest.param(http(200, b"<html>"), NotSent, "no token's", id="html"),
        pytest.param(http(200, b"{}"), NotSent, "no token's", id="no-token"),
        pytest.param(http(200, b'{"access_token": 5}'), NotSent, "no token's", id="number"),
        pytest.param(http(200, b'{"access', length=99), NotSent, "no token's", id="cut"),
        pytest.param(
            http(200, b" " * 70_000 + b'{"access_token": "x"}'), NotSent, "no token's", id="huge"
        ),
        pytest.param(b"\0\1\2\r\n\r\n", NotSent, "no usable answer", id="no-http"),
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

    assert (type(error), "in time" in str(error)) == (NotSent, True)


async def test_an_auth_server_that_is_not_there() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"

        with pytest.raises(NotSent, match="no connection can be made") as caught:
            await source_at(url).fetch()

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
        pytest.param("http://auth.example", "in the clear", id="http"),
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
        pytest.param("http://des.example", "in the clear", id="http"),
        pytest.param("file:///etc/passwd", "can't be used", id="scheme"),
        pytest.param("https://u:p@des.example", "user name or password", id="password"),
        pytest.param("", "tells no base URL", id="empty"),
        pytest.param(None, "tells no base URL", id="none"),
        pytest.param(7, "tells no base URL", id="number"),
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


async def test_a_token_is_renewed_a_minute_ahead_of_its_end() -> None:
    now = 0.0

    async with auth_server(granted(1, expires_in=600), granted(2), granted(3)) as server:
        keeper = TokenKeeper(source_of(server), clock=lambda: now)
        await keeper.current()
        now = 539.9
        before = await keeper.current()
        now = 540.0
        after = await asyncio.gather(*(keeper.current() for _ in range(50)))

    assert before == (Token(f"{ACCESS}1", "https://des.example", 600), 1)
    assert {(token.text, generation) for token, generation in after} == {(f"{ACCESS}2", 2)}
    assert server.grants == ["password", "refresh_token"]


async def test_a_short_token_is_not_renewed_in_the_first_half_of_its_life() -> None:
    now = 0.0

    async with auth_server(granted(1, expires_in=60), granted(2, expires_in=60)) as server:
        keeper = TokenKeeper(source_of(server), clock=lambda: now)
        await keeper.current()
        now = 29.9
        before = (await keeper.current())[1]
        now = 30.0
        after = (await keeper.current())[1]

    assert (before, after) == (1, 2)


@pytest.mark.parametrize(
    "answer", [pytest.param(http(500, b""), id="later"), pytest.param(SPENT, id="refused")]
)
async def test_a_token_that_can_not_be_renewed_ahead_stays_in_use(answer: bytes) -> None:
    now = 0.0

    async with auth_server(granted(1, expires_in=600), answer) as server:
        keeper = TokenKeeper(source_of(server), clock=lambda: now)
        await keeper.current()
        now = 540.0
        found = [await keeper.current() for _ in range(3)]
        asked = len(server.asked)

        with pytest.raises((NotSent, CredentialsRefused)):
            await keeper.renew(1)

    assert {(token.text, generation) for token, generation in found} == {(f"{ACCESS}1", 1)}
    assert asked == (2 if answer != SPENT else 3)


async def test_a_refused_token_is_not_sent_again_while_no_newer_one_can_be_had() -> None:
    async with auth_server(granted(1), http(500, b""), http(500, b""), granted(2)) as server:
        keeper = TokenKeeper(source_of(server))
        await keeper.current()

        with pytest.raises(NotSent, match="500"):
            await keeper.renew(1)

        with pytest.raises(NotSent, match="500"):
            await keeper.current()

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
