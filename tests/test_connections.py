"""Connections: whether a byte may have left, which are reused, and how long anything waits."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import runpy
import socket
import ssl
from contextlib import AsyncExitStack, suppress
from typing import TYPE_CHECKING, Any, Final, TypeVar
from uuid import UUID

import aiohttp
import pytest
import trustme
from aiohttp.client_proto import ResponseHandler
from peer import (
    JOB,
    OK,
    PASSWORD,
    RUN,
    STARTED,
    TOKEN,
    WAYS,
    Peer,
    Step,
    Tunnel,
    chunked,
    client_of,
    refused,
    response,
    seconds_for,
    start_of,
    unused_port,
)

from deslaunch.des import http, quick
from deslaunch.des.client import DesClient
from deslaunch.des.http import GRACE, Deadlines
from deslaunch.errors import (
    DesError,
    Misconfigured,
    NotSent,
    OutcomeUnknown,
    Rejected,
    ServerError,
    TooLate,
)
from deslaunch.model import Sent, StartedRun

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

    from peer import Script

T = TypeVar("T")


@pytest.fixture(params=WAYS)
def anyio_backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    use_uvloop, is_known = request.param
    monkeypatch.setattr(quick, "IS_KNOWN", is_known)
    return ("asyncio", {"use_uvloop": use_uvloop})


@pytest.fixture(autouse=True)
def nothing_left_open(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Surface ResourceWarnings in the test that caused them, and read what was logged."""
    caplog.set_level(logging.DEBUG)
    yield
    gc.collect()
    gc.freeze()
    assert TOKEN not in caplog.text
    assert "never retrieved" not in caplog.text
    assert "Unclosed" not in caplog.text


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def server_tls(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    return context


@pytest.fixture
def trusting(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


# -- what happens before anything is sent -----------------------------------------------------


@pytest.mark.parametrize(
    ("base_url", "kind"),
    [
        pytest.param(f"http://127.0.0.1:{unused_port()}", NotSent, id="refused"),
        pytest.param(f"https://127.0.0.1:{unused_port()}", NotSent, id="refused, TLS"),
        pytest.param("https://no-such-host.invalid", NotSent, id="DNS"),
        pytest.param("https://127.1", Misconfigured, id="no canonical IPv4 address"),
    ],
)
async def test_an_address_that_can_not_be_connected_to(base_url: str, kind: type) -> None:
    async with DesClient(base_url, token=TOKEN) as client:
        error, sent = await refused(client)

    assert (type(error), error.status, sent) == (kind, None, False)
    assert base_url in str(error)


@pytest.mark.parametrize(
    ("script", "kind"),
    [
        pytest.param([Step.FIN], NotSent, id="FIN in the handshake"),
        pytest.param([Step.RST], NotSent, id="RST in the handshake"),
        pytest.param([b"\x15\x03\x03\x00\x02\x01\x00"], NotSent, id="close_notify"),
        pytest.param([Step.STALL], NotSent, id="stalled handshake"),
        pytest.param([response(400)], Misconfigured, id="plain HTTP"),
        pytest.param([b"\x15\x03\x03\x00\x02\x02\x28"], Misconfigured, id="handshake alert"),
        pytest.param([b"\x15\x03\x03\x00\x02\x02\x46"], Misconfigured, id="version alert"),
    ],
)
async def test_a_fault_in_the_tls_handshake(script: Script, kind: type[DesError]) -> None:
    peer = Peer([script], handshake=True)

    async with (
        peer.listening(),
        client_of(peer, scheme="https", connect_timeout=seconds_for(script)) as client,
    ):
        error, sent = await refused(client)

    assert (type(error), error.status, sent) == (kind, None, False)


async def test_a_tcp_connection_that_is_not_accepted_in_time() -> None:
    with socket.socket() as listener, socket.socket() as first, socket.socket() as second:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)

        for taken in (first, second):
            taken.setblocking(False)
            taken.connect_ex(listener.getsockname())

        peer = Peer([], port=listener.getsockname()[1])

        async with client_of(peer, connect_timeout=0.1) as client:
            error, sent = await refused(client)

    assert (type(error), error.status, sent) == (NotSent, None, False)


async def test_a_total_timeout_while_connecting_is_unsent_by_the_hook_alone() -> None:
    peer = Peer([[Step.STALL]], handshake=True)

    async with peer.listening(), client_of(peer, scheme="https", timeout=0.1) as client:
        error, sent = await refused(client)

    assert (type(error), sent, type(error.__cause__)) == (NotSent, False, TimeoutError)


async def test_a_certificate_of_an_unknown_authority(server_tls: ssl.SSLContext) -> None:
    async with (
        Peer([[OK]]).listening(server_tls) as peer,
        client_of(peer, scheme="https") as client,
    ):
        error, sent = await refused(client)

    assert (type(error), sent, len(peer.heads)) == (Misconfigured, False, 0)
    assert "certificate" in str(error)


async def test_a_certificate_of_another_host(
    authority: trustme.CA, trusting: ssl.SSLContext
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("des.example").configure_cert(context)

    async with (
        Peer([[OK]]).listening(context) as peer,
        client_of(peer, scheme="https", ssl=trusting) as client,
    ):
        error, sent = await refused(client)

    assert (type(error), sent, len(peer.heads)) == (Misconfigured, False, 0)


async def test_where_tls_has_worked_a_bad_certificate_is_that_of_one_node(
    server_tls: ssl.SSLContext, trusting: ssl.SSLContext
) -> None:
    bad = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(bad)
    served = response(200, b'{"jobs": []}', "Connection: close")
    peer = Peer([[served]])

    async with peer.listening(server_tls), client_of(peer, scheme="https", ssl=trusting) as client:
        await client.query_jobs()
        server_tls.sni_callback = lambda tls, *_: setattr(tls, "context", bad)
        error, sent = await refused(client)
        server_tls.sni_callback = None

    assert (type(error), sent) == (NotSent, False)
    assert "certificate is not trusted" in str(error)


async def test_a_fingerprint_that_does_not_match(server_tls: ssl.SSLContext) -> None:
    pinned: Any = aiohttp.Fingerprint(b"\0" * 32)

    async with (
        Peer([[OK]]).listening(server_tls) as peer,
        client_of(peer, scheme="https", ssl=pinned) as client,
    ):
        error, sent = await refused(client)

    assert (type(error), sent, len(peer.heads)) == (Misconfigured, False, 0)


async def test_the_pool_has_no_limit() -> None:
    peer = Peer([[Step.STALL]])

    async with peer.listening(), client_of(peer, timeout=1.5) as client:
        outcomes = await asyncio.gather(*(refused(client) for _ in range(150)))

    assert {(type(error), sent) for error, sent in outcomes} == {(OutcomeUnknown, True)}


@pytest.mark.parametrize(
    "script",
    [
        pytest.param([Step.FIN], id="FIN"),
        pytest.param([Step.RST], id="RST"),
        pytest.param([Step.STALL], id="no answer in time"),
        pytest.param([b"garbage\r\n\r\n", Step.FIN], id="garbage"),
    ],
)
async def test_a_fault_after_sending_over_tls_is_unknown(
    script: Script, server_tls: ssl.SSLContext, trusting: ssl.SSLContext
) -> None:
    async with (
        Peer([script]).listening(server_tls) as peer,
        client_of(peer, scheme="https", ssl=trusting, timeout=seconds_for(script)) as client,
    ):
        error, sent = await refused(client)

    assert (type(error), error.status, sent, len(peer.heads)) == (OutcomeUnknown, None, True, 1)


def refuse_handshake(listener: socket.socket, context: ssl.SSLContext) -> None:
    """Accept one connection and its request, and end the handshake with an alert."""
    connection, _ = listener.accept()
    connection.settimeout(10)

    with context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False) as tls:
        with pytest.raises(ssl.SSLError):
            tls.do_handshake()

        with suppress(OSError):
            while socket.socket.recv(tls, 65_536):  # unread, it would make the alert a reset
                pass


async def test_a_client_certificate_that_is_missing_looks_unknown_under_tls_1_3(
    authority: trustme.CA, trusting: ssl.SSLContext
) -> None:
    """The client's part of the handshake is over before the server has looked at it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    authority.configure_trust(context)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        peer = Peer([], port=listener.getsockname()[1])
        server = asyncio.create_task(asyncio.to_thread(refuse_handshake, listener, context))

        async with client_of(peer, scheme="https", ssl=trusting, timeout=30) as client:
            error, sent = await refused(client)

        await server

    assert (type(error), sent) == (OutcomeUnknown, True)
    assert "CERTIFICATE_REQUIRED" in str(error)


# -- proxies ----------------------------------------------------------------------------------


def proxy_of(port: int) -> str:
    return f"http://agent:{PASSWORD}@127.0.0.1:{port}"


async def test_a_proxy_tunnels_and_sees_no_token(
    server_tls: ssl.SSLContext, trusting: ssl.SSLContext
) -> None:
    async with Peer([[OK]]).listening(server_tls) as peer:
        proxy = Peer([[response(200), Tunnel(peer.port)]])

        async with (
            proxy.listening(),
            client_of(peer, scheme="https", ssl=trusting, proxy=proxy_of(proxy.port)) as client,
        ):
            run = await client.start(start_of())

    connect = proxy.heads[0]
    assert (run.job_run_id, len(peer.heads), len(proxy.heads)) == (RUN, 1, 1)
    assert connect.startswith(b"CONNECT 127.0.0.1:")
    assert b"Proxy-Authorization: Basic YWdlbnQ6cHIweHktcGFzcw==" in connect
    assert TOKEN.encode() not in connect
    assert b"Proxy-Authorization" not in peer.heads[0]


async def test_plain_http_through_a_proxy_authenticates_to_it() -> None:
    async with (
        Peer([[OK]]).listening() as proxy,
        DesClient(
            "http://des.example", token=TOKEN, allow_http=True, proxy=proxy_of(proxy.port)
        ) as client,
    ):
        run = await client.start(start_of())

    assert run.job_run_id == RUN
    assert proxy.heads[0].startswith(b"POST http://des.example/api/v1/startjob HTTP/1.1")
    assert b"Proxy-Authorization: Basic YWdlbnQ6cHIweHktcGFzcw==" in proxy.heads[0]


@pytest.mark.parametrize(
    "script",
    [
        pytest.param([response(407)], id="407"),
        pytest.param([response(502, b"<html>")], id="502"),
        pytest.param([response(302, b"", "Location: http://x/")], id="302"),
        pytest.param([b"garbage\r\n\r\n", Step.FIN], id="garbage"),
        pytest.param([Step.FIN], id="FIN"),
        pytest.param([Step.RST], id="RST"),
        pytest.param([Step.STALL], id="stalled"),
        pytest.param([response(200), Step.FIN], id="200, then FIN in the handshake"),
        pytest.param([response(200), Step.STALL], id="200, then a stalled handshake"),
    ],
)
async def test_a_proxy_that_makes_no_tunnel_sent_nothing(script: Script) -> None:
    async with (
        Peer([script]).listening() as proxy,
        DesClient(
            "https://des.example",
            token=TOKEN,
            proxy=proxy_of(proxy.port),
            connect_timeout=seconds_for(script),
        ) as client,
    ):
        error, sent = await refused(client)

    assert (type(error), error.status, sent, len(proxy.heads)) == (NotSent, None, False, 1)


async def test_what_a_proxy_says_is_told() -> None:
    async with (
        Peer([[b"HTTP/1.1 407 Who are you\r\nContent-Length: 0\r\n\r\n"]]).listening() as proxy,
        DesClient("https://des.example", token=TOKEN, proxy=proxy_of(proxy.port)) as client,
    ):
        error, _ = await refused(client)

    assert str(error) == "https://des.example: the proxy refused to connect (Who are you)"
    assert "Authorization" not in repr(error.__cause__)  # the headers that were sent


async def test_a_proxy_that_refuses_connections_sent_nothing() -> None:
    async with DesClient(
        "https://des.example", token=TOKEN, proxy=proxy_of(unused_port())
    ) as client:
        error, sent = await refused(client)

    assert (type(error), error.status, sent) == (NotSent, None, False)


async def test_a_bad_certificate_behind_a_proxy_is_misconfigured(
    server_tls: ssl.SSLContext,
) -> None:
    async with Peer([[OK]]).listening(server_tls) as peer:
        proxy = Peer([[response(200), Tunnel(peer.port)]])

        async with (
            proxy.listening(),
            client_of(peer, scheme="https", proxy=proxy_of(proxy.port)) as client,
        ):
            error, sent = await refused(client)

    assert (type(error), sent, len(peer.heads)) == (Misconfigured, False, 0)


async def test_the_environments_proxy_and_netrc_are_not_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login a password b\n")
    monkeypatch.setenv("NETRC", str(netrc))
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{unused_port()}")

    async with Peer([[OK]]).listening() as peer, client_of(peer) as client:
        assert await client.start(start_of()) == StartedRun(JOB, RUN)


# -- cancellation -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scheme", "handshake", "script", "left"),
    [
        pytest.param("https", True, [Step.STALL], False, id="while connecting"),
        pytest.param("http", False, [Step.STALL], True, id="while waiting for the response"),
    ],
)
async def test_a_cancelled_start_tells_whether_bytes_had_left(
    scheme: str, handshake: bool, script: Script, left: bool
) -> None:
    peer, sent = Peer([script], handshake=handshake), Sent()

    async with peer.listening(), client_of(peer, scheme=scheme) as client:
        task = asyncio.create_task(client.start(start_of(), sent))
        await peer.arrived.wait()
        task.cancel()

        with pytest.raises(asyncio.CancelledError):
            await task

    assert (bool(sent), len(peer.heads)) == (left, int(left))


async def test_a_start_cancelled_in_the_response_s_body_closes_its_connection() -> None:
    scripts: list[Script] = [[response(200, STARTED, length=999), Step.STALL], [OK]]
    peer, sent = Peer(scripts), Sent()

    async with peer.listening(), client_of(peer) as client:
        task = asyncio.create_task(client.start(start_of(), sent))
        await peer.arrived.wait()

        await peer.said.wait()
        await asyncio.sleep(0)
        task.cancel()

        with pytest.raises(asyncio.CancelledError):
            await task

        assert await client.start(start_of()) == StartedRun(JOB, RUN)

    assert (bool(sent), peer.connections) == (True, 2)


async def test_a_start_cancelled_at_every_turn_of_the_loop_is_never_said_to_be_unsent() -> None:
    """Cancel after n turns for every n until a start goes through: the server is the witness."""
    turns = 0

    while True:
        peer, sent = Peer([[OK]]), Sent()

        async with peer.listening(), client_of(peer) as client:
            task = asyncio.create_task(client.start(start_of(), sent))

            for _ in range(turns):
                await asyncio.sleep(0)

            task.cancel()
            done = (await asyncio.gather(task, return_exceptions=True))[0]

            for _ in range(20):
                await asyncio.sleep(0)

        assert sent or not peer.heads
        turns += 1

        if isinstance(done, StartedRun):
            return

        assert isinstance(done, asyncio.CancelledError)


# -- what is reused ---------------------------------------------------------------------------

OTHER_RUN: Final = str(UUID(int=1))
SECOND: Final = response(200, STARTED.replace(RUN.encode(), OTHER_RUN.encode()))


@pytest.fixture
def quickly(anyio_backend: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep connections: without the quick way each request has one of its own."""
    monkeypatch.setattr(quick, "IS_KNOWN", True)


@pytest.fixture
def without_rest(quickly: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a kept connection be used at once, as with very many rows at a time."""
    monkeypatch.setattr(quick, "REST", 0.0)


def noting(client: DesClient) -> list[str]:
    notes: list[str] = []
    client.on_note = notes.append
    return notes


async def turns(number: int = 50) -> None:
    for _ in range(number):
        await asyncio.sleep(0)


@pytest.mark.usefixtures("without_rest")
async def test_over_tls_many_starts_share_one_connection(
    server_tls: ssl.SSLContext, trusting: ssl.SSLContext
) -> None:
    async with (
        Peer([[OK]]).listening(server_tls) as peer,
        client_of(peer, scheme="https", ssl=trusting) as client,
    ):
        runs = [await client.start(start_of()) for _ in range(3)]

    assert (runs, len(peer.heads), peer.connections) == ([StartedRun(JOB, RUN)] * 3, 3, 1)


async def test_without_the_quick_way_no_connection_is_reused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(quick, "IS_KNOWN", False)

    async with Peer([[OK]]).listening() as peer, client_of(peer) as client:
        for _ in range(3):
            await client.start(start_of())

    assert peer.connections == 3


@pytest.mark.usefixtures("quickly", "without_rest")
@pytest.mark.parametrize(
    ("scripts", "parsed"),
    [
        pytest.param([[OK]], 1, id="the same"),
        pytest.param([[response(200, STARTED, f"X-Id: {n}")] for n in range(4)], 4, id="others"),
        pytest.param([[OK], [response(200, STARTED + b" ")]], 2, id="of another length"),
    ],
)
async def test_a_head_is_parsed_once(
    monkeypatch: pytest.MonkeyPatch, scripts: list[Script], parsed: int
) -> None:
    """The same bytes before a body of the same length mean the same."""
    feed, fed = ResponseHandler.data_received, []

    def count(handler: ResponseHandler, data: bytes) -> None:
        fed.append(data)
        feed(handler, data)

    monkeypatch.setattr(ResponseHandler, "data_received", count)

    async with Peer([*scripts]).listening() as peer, client_of(peer) as client:
        runs = [await client.start(start_of()) for _ in range(4)]

    assert (runs, peer.connections, len(fed)) == ([StartedRun(JOB, RUN)] * 4, 1, parsed)


@pytest.mark.usefixtures("quickly", "without_rest")
async def test_heads_that_differ_take_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quick, "KNOWN_HEADS", 2)
    scripts: list[Script] = [[response(200, STARTED, f"X-Id: {n}")] for n in range(7)]

    async with Peer(scripts).listening() as peer, client_of(peer) as client:
        for _ in range(7):
            await client.start(start_of())

        way = client._sender
        assert isinstance(way, quick.QuickSender)
        assert 0 < len(way._heads) <= 2


@pytest.mark.usefixtures("quickly", "without_rest")
@pytest.mark.parametrize(
    ("script", "kind"),
    [
        pytest.param([OK[:-9], Step.FIN], OutcomeUnknown, id="cut off"),
        pytest.param([OK[:-1] + b"]"], OutcomeUnknown, id="no JSON"),
        pytest.param([OK + b"x"], OutcomeUnknown, id="too long"),
        pytest.param([OK + OK], OutcomeUnknown, id="another response"),
        pytest.param([OK.replace(b"200", b"503", 1)], ServerError, id="of another status"),
    ],
)
async def test_a_head_that_is_known_says_nothing_of_what_follows(
    script: Script, kind: type[DesError]
) -> None:
    async with Peer([[OK], script]).listening() as peer, client_of(peer) as client:
        await client.start(start_of())
        error, sent = await refused(client)

    assert (type(error), sent, peer.connections) == (kind, True, 1)


@pytest.mark.usefixtures("quickly", "without_rest")
async def test_a_known_head_whose_body_comes_in_pieces() -> None:
    peer = Peer([[OK], [OK[:-9], Step.LATER, OK[-9:]]])

    async with peer.listening(), client_of(peer) as client:
        await client.start(start_of())
        second = asyncio.create_task(client.start(start_of()))
        await peer.arrived.wait()
        await turns()
        peer.later.set()
        run = await second

    assert (run, peer.connections) == (StartedRun(JOB, RUN), 1)


@pytest.mark.usefixtures("quickly", "without_rest")
async def test_a_body_that_looks_like_a_response_is_none() -> None:
    peer = Peer([[OK], [response(200, length=len(OK)), Step.LATER, OK]])

    async with peer.listening(), client_of(peer) as client:
        await client.start(start_of())
        second = asyncio.create_task(refused(client))
        await peer.arrived.wait()
        await turns()
        peer.later.set()
        error, _ = await second

    assert "its body is no StartJobResponse" in str(error)


@pytest.mark.usefixtures("quickly", "without_rest")
async def test_a_head_that_ends_its_connection_does_so_each_time() -> None:
    peer = Peer([[response(200, STARTED, "Connection: close")]])

    async with peer.listening(), client_of(peer) as client:
        for _ in range(3):
            await client.start(start_of())

    assert peer.connections == 3


@pytest.mark.usefixtures("quickly")
@pytest.mark.parametrize(
    ("rest", "connections"),
    [pytest.param(30.0, 3, id="it rests"), pytest.param(0.0, 1, id="it has rested")],
)
async def test_a_connection_rests_before_it_is_used_again(
    monkeypatch: pytest.MonkeyPatch, rest: float, connections: int
) -> None:
    assert quick.REST > 0.02  # a second response, or a FIN, is seen meanwhile
    monkeypatch.setattr(quick, "REST", rest)

    async with Peer([[OK]]).listening() as peer, client_of(peer) as client:
        for _ in range(3):
            await client.start(start_of())

    assert peer.connections == connections


@pytest.mark.usefixtures("quickly")
@pytest.mark.parametrize("slots", [1, 4])
async def test_a_connection_rests_however_few_the_slots(
    monkeypatch: pytest.MonkeyPatch, slots: int
) -> None:
    """A second response is noticed only by time: not by what else may be in flight."""
    monkeypatch.setattr(quick, "REST", 30.0)

    async with Peer([[OK]]).listening() as peer, client_of(peer, concurrency=slots) as client:
        for _ in range(10):
            await asyncio.gather(*(client.start(start_of()) for _ in range(slots)))

    assert (len(peer.heads), peer.connections) == (10 * slots, 10 * slots)


@pytest.mark.usefixtures("quickly")
async def test_where_no_other_connection_can_be_made_one_that_rests_is_used() -> None:
    peer = Peer([[OK]])

    async with peer.listening(), client_of(peer) as client:
        await client.start(start_of())
        await peer.accept_no_more()
        runs = [await client.start(start_of()) for _ in range(3)]

    assert (len(runs), peer.connections) == (3, 1)


@pytest.mark.usefixtures("quickly")
async def test_many_targets_share_the_connections_that_rest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(quick, "REST", 30.0)
    monkeypatch.setattr(quick, "SPARE", 4)
    peers = [Peer([[OK]]) for _ in range(3)]

    async with AsyncExitStack() as stack:
        clients: list[DesClient] = []

        for peer in peers:
            await stack.enter_async_context(peer.listening())
            clients.append(await stack.enter_async_context(client_of(peer)))

            for _ in range(4):
                await clients[-1].start(start_of())

        ways = [repr(client._sender) for client in clients]

    # Each as many as its part was while it sent: all of four, a half, a third.
    assert ways == [f"<QuickSender: {idle} idle, reusing>" for idle in (4, 2, 1)]
    assert [len(peer.heads) for peer in peers] == [4, 4, 4]


@pytest.mark.usefixtures("without_rest")
async def test_a_server_that_says_how_long_it_waits_is_believed() -> None:
    brief = response(200, STARTED, "Keep-Alive: timeout=0, max=100")

    async with Peer([[brief], [OK]]).listening() as peer, client_of(peer) as client:
        for _ in range(3):
            await client.start(start_of())

    assert peer.connections == 2


@pytest.mark.usefixtures("quickly")
async def test_a_server_that_hangs_up_after_each_response_costs_no_row() -> None:
    async with Peer([[OK, Step.FIN]]).listening() as peer, client_of(peer) as client:
        notes = noting(client)
        runs = [await client.start(start_of()) for _ in range(20)]

    assert (len(runs), len(peer.heads), notes) == (20, 20, [])


@pytest.mark.usefixtures("without_rest")
async def test_one_loss_on_a_kept_connection_ends_the_reuse() -> None:
    scripts: list[Script] = [[OK], [Step.FIN], [OK]]

    async with Peer(scripts).listening() as peer, client_of(peer) as client:
        notes = noting(client)
        await client.start(start_of())
        error, sent = await refused(client)
        before = peer.connections
        runs = [await client.start(start_of()) for _ in range(3)]

    assert (type(error), sent, len(peer.heads)) == (OutcomeUnknown, True, 5)
    assert (before, peer.connections, len(runs)) == (1, 4, 3)
    assert [note.partition(":")[0] for note in notes] == [
        "a kept connection was lost while a request was sent"
    ]


async def test_a_loss_on_a_new_connection_says_nothing_of_kept_ones() -> None:
    async with Peer([[Step.FIN]]).listening() as peer, client_of(peer) as client:
        notes = noting(client)
        await refused(client)

    assert notes == []


@pytest.mark.usefixtures("quickly")
@pytest.mark.parametrize(
    "first",
    [
        pytest.param(OK, id="two good ones"),
        pytest.param(response(400, STARTED), id="a refusal and a good one"),
        pytest.param(response(503, STARTED, "Retry-After: 1"), id="a pause and a good one"),
    ],
)
async def test_a_second_response_at_once_leaves_its_row_in_doubt(first: bytes) -> None:
    async with Peer([[first + SECOND], [OK]]).listening() as peer, client_of(peer) as client:
        notes = noting(client)
        error, sent = await refused(client)
        runs = [await client.start(start_of()) for _ in range(2)]

    assert (type(error), error.job_run_id, sent) == (OutcomeUnknown, RUN, True)
    assert OTHER_RUN in error.response
    assert (len(runs), peer.connections, len(notes)) == (2, 3, 1)
    assert OTHER_RUN in notes[0]


IN_CHUNKS: Final = chunked(b"%x\r\n%b\r\n0\r\n\r\n" % (len(STARTED), STARTED))


@pytest.mark.usefixtures("quickly")
@pytest.mark.parametrize("length", [1, 17, 30])
@pytest.mark.parametrize(
    ("first", "run_id"),
    [
        pytest.param(OK, RUN, id="a good one"),
        pytest.param(IN_CHUNKS, RUN, id="in chunks"),
        pytest.param(response(429), "", id="without a body"),
    ],
)
async def test_the_beginning_of_a_second_response_leaves_its_row_in_doubt(
    first: bytes, run_id: str, length: int
) -> None:
    """Whoever would use the connection next would get the rest of it."""
    script = [first + SECOND[:length]]

    async with Peer([script, [OK]]).listening() as peer, client_of(peer) as client:
        notes = noting(client)
        error, sent = await refused(client)
        runs = [await client.start(start_of()) for _ in range(2)]

    assert (type(error), error.job_run_id or "", sent) == (OutcomeUnknown, run_id, True)
    assert (len(runs), peer.connections, len(notes)) == (2, 3, 1)


@pytest.mark.usefixtures("quickly", "without_rest")
@pytest.mark.parametrize(
    "first",
    [
        pytest.param(OK + b"\r\n", id="line break"),
        pytest.param(IN_CHUNKS, id="in chunks"),
        pytest.param(IN_CHUNKS[:-2] + b"X: y\r\n\r\n", id="with a trailer"),
        pytest.param(OK.replace(b"\r\n", b"\n"), id="lines without CR"),
        pytest.param(response(200, STARTED + b"\r\n"), id="a body with a line break"),
        pytest.param(response(200, STARTED + b" " * 500_000), id="long"),
    ],
)
@pytest.mark.parametrize("cut", [None, -1, -3, -9])
async def test_what_follows_no_response_is_no_second_one(first: bytes, cut: int | None) -> None:
    pieces: Script = [first] if cut is None else [first[:cut], Step.LATER, first[cut:]]

    async with Peer([pieces, [OK]]).listening() as peer, client_of(peer) as client:
        run = asyncio.create_task(client.start(start_of()))
        await peer.arrived.wait()
        await turns()
        peer.later.set()
        runs = [await run, await client.start(start_of())]

    assert (runs, peer.connections) == ([StartedRun(JOB, RUN)] * 2, 1)


@pytest.mark.usefixtures("quickly")
async def test_a_second_response_later_is_not_taken_for_the_next_row_s() -> None:
    """A server, or a proxy, that responds twice must not shift every later response by one."""
    peer = Peer([[OK, Step.LATER, SECOND], [OK]])

    async with peer.listening(), client_of(peer) as client:
        notes = noting(client)
        first = await client.start(start_of())
        second = await client.start(start_of())
        peer.later.set()
        await turns()
        third = await client.start(start_of())

    assert {run.job_run_id for run in (first, second, third)} == {RUN}
    assert (peer.connections, len(notes)) == (3, 1)
    assert notes[0].startswith(
        f"a response was received without a request (it names the run {OTHER_RUN}): "
    )


@pytest.mark.usefixtures("quickly")
async def test_a_server_that_closes_with_a_408_asked_for_nothing() -> None:
    peer = Peer([[OK, Step.LATER, response(408), Step.FIN], [OK]])

    async with peer.listening(), client_of(peer) as client:
        notes = noting(client)
        await client.start(start_of())
        peer.later.set()
        await turns()
        await client.start(start_of())

    assert (peer.connections, notes) == (2, [])


@pytest.mark.usefixtures("without_rest")
async def test_a_client_that_is_opened_again_remembers_its_doubts() -> None:
    async with Peer([[OK]]).listening() as peer:
        client = client_of(peer)
        client.stop_reusing("two rows got one run")

        async with client:
            await client.start(start_of())
            await client.start(start_of())

    assert peer.connections == 2


async def test_whoever_stops_the_reuse_is_told_once() -> None:
    async with Peer([[OK]]).listening() as peer, client_of(peer) as client:
        notes = noting(client)
        await client.start(start_of())
        client.stop_reusing("two rows got one run")
        client.stop_reusing("again")
        await client.start(start_of())

    assert peer.connections == 2
    assert notes == [f"two rows got one run: connections to {client.home} are no longer reused"]


@pytest.mark.usefixtures("quickly")
async def test_an_idle_connection_is_closed_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quick, "KEEPALIVE", 0.05)

    async with Peer([[OK]]).listening() as peer, client_of(peer) as client:
        await client.start(start_of())
        idle = repr(client._sender)

        async with asyncio.timeout(10):
            while repr(client._sender) == idle:  # noqa: ASYNC110  # there is no callback
                await asyncio.sleep(0.01)

        assert repr(client._sender) == "<QuickSender: 0 idle, reusing>"


LONG_BODY: Final = b" " * 30_000_000


@pytest.mark.usefixtures("without_rest")
@pytest.mark.parametrize("status", [200, 413])
async def test_an_upload_that_has_not_ended_ends_with_its_connection(status: int) -> None:
    """What is left of it must not stand before the next request, nor stay in memory."""
    peer = Peer(
        [[response(status, STARTED), Step.STALL], [response(status, STARTED)]], read_body=False
    )

    async with peer.listening(), client_of(peer) as client:
        before = open_files()

        with suppress(Rejected):
            await client.start(start_of(LONG_BODY))

        await turns()
        left = open_files() - before
        await client.start(start_of()) if status == 200 else await refused(client)

    assert (left, peer.connections) == (1, 2)  # the peer has not closed its end


def open_files() -> int:
    return len(os.listdir("/dev/fd"))  # noqa: PTH208  # only their number


async def test_a_connection_that_closes_is_not_written_to(
    quickly: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect = aiohttp.TCPConnector.connect

    async def closing(connector: aiohttp.TCPConnector, *args: Any) -> Any:
        connection: Any = await connect(connector, *args)
        connection.transport.close()
        return connection

    async with Peer([[OK]]).listening() as peer, client_of(peer) as client:
        monkeypatch.setattr(aiohttp.TCPConnector, "connect", closing)
        error, sent = await refused(client)

    assert (type(error), sent, peer.heads) == (NotSent, False, [])


# -- another aiohttp --------------------------------------------------------------------------


CONNECT: Final = "aiohttp:TCPConnector.connect"
REQUEST: Final = "aiohttp:ClientRequest.__init__"


def test_the_quick_way_is_known_of_the_aiohttp_at_hand() -> None:
    assert quick.is_known()


@pytest.mark.parametrize(
    ("parts", "known"),
    [
        pytest.param({CONNECT: "req self timeout traces"}, True, id="the same"),
        pytest.param({REQUEST: "self method url"}, True, id="more that need not be passed"),
        pytest.param({CONNECT: "self req traces"}, False, id="one more"),
        pytest.param({CONNECT: "self req traces timeout x"}, False, id="less"),
        pytest.param({"aiohttp:TCPConnector.link": "self"}, False, id="a part is gone"),
        pytest.param({"aiohttp.client_link:Handler": "self"}, False, id="its module is gone"),
    ],
)
def test_another_aiohttp_is_told_by_its_parts(parts: dict[str, str], known: bool) -> None:
    assert quick.is_known(parts) == known


@pytest.mark.parametrize("part", quick.PARTS)
def test_the_quick_way_is_imported_where_a_part_is_gone(
    part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, _, name = part.partition(":")
    monkeypatch.delattr(f"{module}.{name.partition('.')[0]}")

    assert runpy.run_path(quick.__file__)["IS_KNOWN"] is False


@pytest.mark.parametrize(
    "name",
    [
        "client_proto.ResponseHandler.should_close",
        "connector.Connection.protocol",
        "connector.Connection.transport",
        "EMPTY_PAYLOAD",
    ],
)
def test_what_is_only_looked_at_is_a_part_too(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.delattr(f"aiohttp.{name}")
        known = quick.is_known()

    assert (known, quick.is_known()) == (False, True)


async def test_another_aiohttp_is_left_to_make_its_own_requests(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A constructor that takes other arguments must not keep anything from being sent."""

    class Other:
        def __init__(self) -> None: ...

    monkeypatch.setattr(quick, "IS_KNOWN", False)
    monkeypatch.setattr(aiohttp, "ClientRequest", Other)

    async with Peer([[OK]]).listening() as peer, client_of(peer) as client:
        assert (await client.start(start_of(b"{}"))).job_run_id == RUN


async def test_an_aiohttp_that_repeats_posts_sends_none_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(quick, "IS_KNOWN", False)
    monkeypatch.setattr(aiohttp.client, "IDEMPOTENT_METHODS", frozenset({"POST"}))

    async with Peer([[Step.FIN], [OK]]).listening() as peer, client_of(peer) as client:
        error, sent = await refused(client)

    assert (type(error), sent, len(peer.heads)) == (OutcomeUnknown, True, 1)


async def test_what_is_not_seen_to_be_unsent_counts_as_sent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An aiohttp that calls none of its hooks makes outcomes unknown, never unsent."""
    monkeypatch.setattr(quick, "IS_KNOWN", False)
    monkeypatch.setattr(http, "_calling", lambda _: no_note)

    async with Peer([[Step.FIN]]).listening() as peer, client_of(peer) as client:
        error, sent = await refused(client)

    assert (type(error), sent, len(peer.heads)) == (OutcomeUnknown, True, 1)


async def no_note(*_: object) -> None: ...


# -- the last moment --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("now", "is_late"),
    [
        pytest.param(1_014.9, False, id="in time"),
        pytest.param(1_015.1, True, id="too late"),
    ],
)
async def test_a_start_that_comes_too_late_is_handed_back(now: float, is_late: bool) -> None:
    """Its intent is 10 s (to connect) and 5 s old: its session may be taken for dead by now."""
    sent = Sent()

    async with (
        Peer([[OK]]).listening() as peer,
        client_of(peer, boottime=lambda: now) as client,
    ):
        if is_late:
            with pytest.raises(TooLate):
                await client.start(start_of(meant=1_000.0), sent)
        else:
            await client.start(start_of(meant=1_000.0), sent)

        await client.start(start_of())  # 0 is no limit, and the client goes on

    assert (bool(sent), len(peer.heads)) == (not is_late, 1 if is_late else 2)


async def test_the_clock_is_read_after_the_connection_was_made() -> None:
    moments = iter([1_000.0])

    async with (
        Peer([[OK]]).listening() as peer,
        client_of(peer, boottime=lambda: next(moments, 2_000.0)) as client,
    ):
        assert (await client.start(start_of(meant=1_000.0))).job_run_id == RUN


# -- what leaves ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"{}", id="small"),
        pytest.param(b"a" * 600_000, id="larger than the write buffer"),
    ],
)
async def test_a_body_arrives_as_it_is(body: bytes) -> None:
    async with Peer([[OK]]).listening() as peer, client_of(peer) as client:
        assert (await client.start(start_of(body))).job_run_id == RUN

    assert peer.bodies == [body]


async def test_the_headers_are_those_that_are_meant() -> None:
    async with Peer([[OK]]).listening() as peer, client_of(peer) as client:
        await client.start(start_of(b"{}"))

    first, *lines = peer.heads[0].decode().split("\r\n")
    names = {line.partition(":")[0] for line in lines if line}
    assert first == "POST /api/v1/startjob HTTP/1.1"
    assert names - {"Connection"} == {
        "Accept",
        "Accept-Encoding",
        "Authorization",
        "Content-Length",
        "Content-Type",
        "Host",
        "User-Agent",
    }


async def test_requests_side_by_side_do_not_share_what_is_known_of_them() -> None:
    """One waits for its connection while the other waits for its response."""
    peer = Peer([[Step.STALL]])
    left, connecting = Sent(), Sent()

    async with (
        peer.listening(),
        Peer([[Step.STALL]], handshake=True).listening() as shy,
        client_of(peer) as client,
        client_of(shy, scheme="https") as other,
    ):
        tasks = [
            asyncio.create_task(client.start(start_of(), left)),
            asyncio.create_task(other.start(start_of(), connecting)),
        ]
        await peer.arrived.wait()
        await shy.arrived.wait()
        found = (bool(left), bool(connecting))

        for task in tasks:
            task.cancel()

        await asyncio.wait(tasks)

    assert found == (True, False)


# -- time limits ------------------------------------------------------------------------------

SECONDS: Final = 10.0


class SetLoop(asyncio.SelectorEventLoop):
    """A loop whose time stands still until it is set forward."""

    now = 0.0

    def time(self) -> float:
        return self.now

    async def pass_(self, seconds: float) -> None:
        """Let time jump, and then whatever is due happen."""
        self.now += seconds

        for _ in range(6):
            await asyncio.sleep(0)


def run(test: Callable[[SetLoop], Coroutine[None, None, T]]) -> T:
    loop = SetLoop()

    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        return runner.run(test(loop))


async def limited(deadlines: Deadlines, response: asyncio.Future[str]) -> str:
    with deadlines:
        return await response


def test_a_block_that_lasts_too_long_raises_a_timeout() -> None:
    async def test(loop: SetLoop) -> tuple[bool, bool, int]:
        deadlines = Deadlines(SECONDS)
        task = asyncio.create_task(limited(deadlines, loop.create_future()))
        await loop.pass_(0)
        await loop.pass_(SECONDS)
        before = task.done()
        await loop.pass_(GRACE)
        assert isinstance(task.exception(), TimeoutError)
        return before, task.done(), task.cancelling()

    assert run(test) == (False, True, 0)


def test_limits_run_out_in_the_order_in_which_they_began() -> None:
    async def test(loop: SetLoop) -> list[list[bool]]:
        deadlines = Deadlines(SECONDS)
        tasks = []

        for _ in range(3):
            tasks.append(asyncio.create_task(limited(deadlines, loop.create_future())))
            await loop.pass_(1)

        found = []

        for second in range(3):
            await loop.pass_(SECONDS + 1 + second - loop.now)
            await loop.pass_(GRACE)
            found.append([task.done() for task in tasks])

        await asyncio.gather(*tasks, return_exceptions=True)
        return found

    assert run(test) == [[True, False, False], [True, True, False], [True, True, True]]


def test_a_response_that_waited_while_the_loop_stood_still_is_taken() -> None:
    async def test(loop: SetLoop) -> str:
        deadlines = Deadlines(SECONDS)
        response: asyncio.Future[str] = loop.create_future()
        task = asyncio.create_task(limited(deadlines, response))
        await loop.pass_(0)
        await loop.pass_(100 * SECONDS)  # the timer rang, and only now the socket is read
        response.set_result("a run")
        await loop.pass_(GRACE)
        return await task

    assert run(test) == "a run"


def test_a_limit_that_was_ended_does_nothing_more() -> None:
    async def test(loop: SetLoop) -> str:
        with Deadlines(SECONDS):
            pass

        await loop.pass_(2 * SECONDS)
        await loop.pass_(GRACE)
        return "not cancelled"

    assert run(test) == "not cancelled"


def test_the_timer_serves_limits_that_begin_after_a_silence() -> None:
    async def test(loop: SetLoop) -> bool:
        deadlines = Deadlines(SECONDS)

        with deadlines:
            pass

        await loop.pass_(2 * SECONDS)
        await loop.pass_(GRACE)
        task = asyncio.create_task(limited(deadlines, loop.create_future()))
        await loop.pass_(0)
        await loop.pass_(SECONDS)
        await loop.pass_(GRACE)
        return isinstance(task.exception(), TimeoutError)

    assert run(test)


def test_a_cancellation_by_somebody_else_stays_one() -> None:
    async def test(loop: SetLoop) -> bool:
        task = asyncio.create_task(limited(Deadlines(SECONDS), loop.create_future()))
        await loop.pass_(0)
        task.cancel()
        await asyncio.wait([task])
        return task.cancelled()

    assert run(test)


def test_a_cancellation_by_somebody_else_at_the_same_time_stays_one() -> None:
    async def test(loop: SetLoop) -> bool:
        task = asyncio.create_task(limited(Deadlines(SECONDS), loop.create_future()))
        await loop.pass_(0)
        await loop.pass_(SECONDS)
        loop.now += GRACE
        loop.call_soon(task.cancel)
        await asyncio.wait([task])
        return task.cancelled()

    assert run(test)
