"""How a request leaves: what the connector tells, and what goes over the wire."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

import aiohttp
import pytest
from aiohttp.client_proto import ResponseHandler
from test_client import JOB, OK, RUN, STARTED, Peer, Step, answer, client_of, request_of

from deslaunch import client as client_module
from deslaunch import transport
from deslaunch.client import DesClient
from deslaunch.errors import Misconfigured, NotSent, OutcomeUnknown
from deslaunch.model import Evidence, StartRequest
from deslaunch.transport import IS_KNOWN, SMALL, Connector, Route, is_known

if TYPE_CHECKING:
    from test_client import Script

JUST_SMALL: Final = b"a" * SMALL


@pytest.mark.parametrize(
    ("body", "quickly"),
    [
        pytest.param(b"{}", True, id="small"),
        pytest.param(JUST_SMALL, True, id="just small"),
        pytest.param(JUST_SMALL + b"a", False, id="large"),
        pytest.param(JUST_SMALL * 40, False, id="larger than the write buffer"),
    ],
)
async def test_a_body_arrives_as_it_is_whichever_way_it_goes(
    body: bytes, quickly: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    posts = 0
    post = aiohttp.ClientSession.post

    def counting(session: aiohttp.ClientSession, *args: Any, **kwargs: Any) -> Any:
        nonlocal posts
        posts += 1
        return post(session, *args, **kwargs)

    monkeypatch.setattr(aiohttp.ClientSession, "post", counting)

    async with Peer([[OK]]).listening() as peer, client_of(peer) as client:
        for _ in range(2):
            assert (await client.start(request_of(body))).job_run_id == RUN

    assert (peer.bodies, peer.connections, posts) == ([body] * 2, 1, 0 if quickly else 2)


async def test_the_headers_are_those_that_are_meant() -> None:
    async with Peer([[OK]]).listening() as peer, client_of(peer) as client:
        await client.start(request_of(b"{}"))

    first, *lines = peer.heads[0].decode().split("\r\n")
    names = [line.partition(":")[0] for line in lines if line]
    assert first == "POST /api/v1/startjob HTTP/1.1"
    assert sorted(names) == [
        "Accept",
        "Accept-Encoding",
        "Authorization",
        "Content-Length",
        "Content-Type",
        "Host",
        "User-Agent",
    ]


async def test_an_aiohttp_that_does_not_ask_our_connector_makes_a_loss_unknown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What can't be seen counts as sent: a start is never taken for unsent by mistake."""
    monkeypatch.setattr(client_module, "Connector", aiohttp.TCPConnector)
    scripts: list[Script] = [[Step.FIN]]
    evidence = Evidence()

    async with Peer(scripts).listening() as peer, client_of(peer) as client:
        with pytest.raises(OutcomeUnknown):
            await client.start(request_of(), evidence)

    assert (evidence.sent, len(peer.heads)) == (True, 1)


async def test_an_unusable_url_is_known_to_have_sent_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def post(*_: object, **__: object) -> None:
        raise aiohttp.InvalidURL("https://")

    evidence = Evidence()

    async with DesClient("https://des.example", token="a-token") as client:
        monkeypatch.setattr(Route, "post", post)

        with pytest.raises(Misconfigured):
            await client.start(StartRequest("k", 1, 1, "default", JOB, "", b"{}", False), evidence)

    assert not evidence.sent


async def test_requests_side_by_side_do_not_share_their_evidence() -> None:
    """One waits for its connection while the other waits for its answer."""
    peer = Peer([[Step.STALL]])
    sent, connecting = Evidence(), Evidence()

    async with (
        peer.listening(),
        Peer([[Step.STALL]], handshake=True).listening() as shy,
        client_of(peer) as client,
        client_of(shy, scheme="https") as other,
    ):
        tasks = [
            asyncio.create_task(client.start(request_of(), sent)),
            asyncio.create_task(other.start(request_of(), connecting)),
        ]
        await peer.arrived.wait()
        await shy.arrived.wait()
        found = (sent.sent, connecting.sent)

        for task in tasks:
            task.cancel()

        await asyncio.wait(tasks)

    assert found == (True, False)


async def test_another_aiohttp_is_left_to_make_its_own_requests(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A constructor that takes other arguments must not keep anything from being sent."""

    class Other:
        def __init__(self) -> None: ...

    monkeypatch.setattr(transport, "IS_KNOWN", False)
    monkeypatch.setattr(aiohttp, "ClientRequest", Other)

    async with Peer([[OK]]).listening() as peer, client_of(peer) as client:
        assert (await client.start(request_of(b"{}"))).job_run_id == RUN


def test_the_quick_way_is_known_of_the_aiohttp_at_hand() -> None:
    assert IS_KNOWN


@pytest.mark.parametrize(
    ("names", "known"),
    [
        pytest.param("self req traces timeout", True, id="as it is"),
        pytest.param("req self timeout traces", True, id="in another order"),
        pytest.param("self req traces", False, id="one more"),
        pytest.param("self req traces timeout more", False, id="one less"),
    ],
)
def test_another_aiohttp_is_told_by_its_parameters(names: str, known: bool) -> None:
    assert is_known({aiohttp.TCPConnector.connect: names}) == known


async def test_a_connection_that_is_not_made_in_time_is_named_as_aiohttp_names_it() -> None:
    async with (
        Peer([[Step.STALL]], handshake=True).listening() as shy,
        client_of(shy, scheme="https", connect_timeout=0.05) as client,
    ):
        with pytest.raises(NotSent) as caught:
            await client.start(request_of())

    assert isinstance(caught.value.__cause__, aiohttp.ConnectionTimeoutError)


async def test_a_request_that_breaks_while_it_is_written_gives_its_connection_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def set_response_params(*_: object, **__: object) -> None:
        raise OSError("the pipe broke")

    async with Peer([[OK]]).listening() as peer, client_of(peer) as client:
        monkeypatch.setattr(ResponseHandler, "set_response_params", set_response_params)

        with pytest.raises(OutcomeUnknown):
            await client.start(request_of(b"{}"))

        monkeypatch.undo()
        assert (await client.start(request_of(b"{}"))).job_run_id == RUN
        assert connections_of(client) == (0, 1)


async def test_a_connection_that_closes_is_not_written_to(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    evidence = Evidence()

    async with Peer([[OK]]).listening() as peer, client_of(peer) as client:
        connect = Connector.connect

        async def closing(connector: Connector, *args: Any) -> Any:
            connection: Any = await connect(connector, *args)
            connection.transport.close()
            return connection

        monkeypatch.setattr(Connector, "connect", closing)

        with pytest.raises(OutcomeUnknown):
            await client.start(request_of(), evidence)

        assert (evidence.sent, peer.heads, connections_of(client)) == (True, [], (0, 0))


async def test_an_answer_that_nobody_asked_for_is_not_taken_for_the_next_ones() -> None:
    """A server, or a proxy, that answers twice must not shift every later answer by one."""
    other = answer(200, STARTED.replace(RUN.encode(), str(UUID(int=1)).encode()))

    async with Peer([[OK, Step.LATER, other], [OK]]).listening() as peer, client_of(peer) as client:
        first = await client.start(request_of())
        [protocol] = protocols_of(client)
        peer.later.set()

        for _ in range(50):
            await asyncio.sleep(0)

        assert len(protocol) == 1
        second = await client.start(request_of())
        assert (first.job_run_id, second.job_run_id, peer.connections) == (RUN, RUN, 2)
        assert connections_of(client) == (0, 1)


async def test_a_request_that_is_cancelled_gives_its_connection_up() -> None:
    async with Peer([[Step.STALL]]).listening() as peer, client_of(peer) as client:
        task = asyncio.create_task(client.start(request_of()))
        await peer.arrived.wait()
        before = connections_of(client)
        task.cancel()
        await asyncio.wait([task])
        assert (before, connections_of(client)) == ((1, 0), (0, 0))


def connections_of(client: DesClient) -> tuple[int, int]:
    """Return how many connections are in use, and how many wait in the pool."""
    connector: Any = client._opened().connector
    return len(connector._acquired), sum(map(len, connector._conns.values()))


def protocols_of(client: DesClient) -> list[Any]:
    """Return what waits in the pool."""
    connector: Any = client._opened().connector
    return [protocol for idle in connector._conns.values() for protocol, _ in idle]
