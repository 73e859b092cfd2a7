"""HTTP/1.1 by hand: requests out of bytes, responses into bytes."""

import asyncio
from collections.abc import Mapping
from email.utils import formatdate
from enum import Enum
from functools import lru_cache
from http import HTTPStatus
from typing import Final, NamedTuple

_HEAD_LIMIT: Final = 64 * 1024
_BODY_LIMIT: Final = 16 * 1024 * 1024
_REASONS: Final = {status.value: status.phrase for status in HTTPStatus}

Headers = tuple[tuple[str, str], ...]


class BadRequest(Exception):
    """The bytes on a connection are no HTTP/1.1 request. Nothing after them can be read."""


def shorten(value: object) -> str:
    """Return the value as Python writes it, at most 80 characters."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:79]}…"  # noqa: PLR2004  # a line of a terminal


class Request(NamedTuple):
    """One HTTP request.

    Attributes:
        method: as sent.
        path: as sent, without the query.
        headers: names in lower case; of a name given twice, the last.
        body: as sent.
        is_last: the client wants the connection closed after the response.
    """

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes
    is_last: bool


class Response(NamedTuple):
    """One HTTP response as it should be, before any fault.

    Attributes:
        status: 200 to 599.
        body: any bytes.
        headers: sent after the content's own, in this order.
        content_type: media type of the body.
    """

    status: int
    body: bytes
    headers: Headers = ()
    content_type: str = "application/json"

    def head(self, now: float) -> bytes:
        """Return status line and headers, with the empty line that ends them.

        Args:
            now: Unix time in seconds, for the ``Date`` header.
        """
        more = "".join([f"{name}: {value}\r\n" for name, value in self.headers])
        reason = _REASONS.get(self.status, "Unknown")
        return (
            f"HTTP/1.1 {self.status} {reason}\r\nDate: {_http_date(int(now))}\r\n"
            f"Content-Type: {self.content_type}\r\nContent-Length: {len(self.body)}\r\n{more}\r\n"
        ).encode("latin-1")

    def encode(self, now: float) -> bytes:
        """Return the whole response as it goes over the wire."""
        return self.head(now) + self.body


@lru_cache(maxsize=2)
def _http_date(second: int) -> str:
    return formatdate(second, usegmt=True)


class End(Enum):
    """What becomes of a connection after the bytes of a response."""

    KEEP = "keep"
    """It serves the next request."""
    CLOSE = "close"
    """FIN."""
    RESET = "reset"
    """RST."""
    HANG = "hang"
    """Nothing more is sent; it stays open until the client hangs up."""


class Delivery(NamedTuple):
    """What one request gets.

    Attributes:
        data: the exact bytes of the response, perhaps none.
        end: what follows them.
        after: seconds between the bytes and ``more`` and ``end``; no request is served meanwhile.
        more: bytes that nobody asked for.
    """

    data: bytes
    end: End = End.KEEP
    after: float = 0.0
    more: bytes = b""


async def read_request(reader: asyncio.StreamReader, buffer: bytearray) -> Request | None:
    """Return the next whole request, or None where the client has hung up before its end.

    Args:
        reader: of the connection.
        buffer: what of the connection was read and is not served yet; kept from call to call.

    Raises:
        BadRequest: see :func:`take_request`.
        OSError: the connection broke off.
    """
    while (request := take_request(buffer)) is None:
        data = await reader.read(_HEAD_LIMIT)

        if not data:
            return None

        buffer += data

    return request


def take_request(buffer: bytearray) -> Request | None:
    """Take the first request out of a buffer; None, and nothing taken, until it is there whole.

    Raises:
        BadRequest: the bytes are no request; a head over 64 KiB, a body over 16 MiB; or a body
            without a Content-Length.
    """
    head_end = buffer.find(b"\r\n\r\n")

    if (head_end if head_end >= 0 else len(buffer) - 3) > _HEAD_LIMIT:
        raise BadRequest(f"a head over {_HEAD_LIMIT} bytes")

    if head_end < 0:
        return None

    request, length = _parse_head(bytes(buffer[:head_end]))
    begin, end = head_end + 4, head_end + 4 + length

    if len(buffer) < end:
        return None

    body = bytes(buffer[begin:end])
    del buffer[:end]
    return request._replace(body=body)


@lru_cache(maxsize=256)  # one client's heads differ in little but their Content-Length
def _parse_head(data: bytes) -> tuple[Request, int]:
    """Return a request without its body, and the body's length."""
    request_line, *fields = data.decode("latin-1").split("\r\n")
    words = request_line.split(" ")

    if len(words) != 3 or words[2] not in ("HTTP/1.0", "HTTP/1.1"):  # noqa: PLR2004
        raise BadRequest(f"no request line: {shorten(request_line)}")

    headers = {}

    for line in fields:
        name, colon, value = line.partition(":")

        if not colon or not name or name != name.strip():
            raise BadRequest(f"no header: {shorten(line)}")

        headers[name.lower()] = value.strip()

    connection = headers.get("connection", "").lower()
    is_last = connection == "close" or (words[2] == "HTTP/1.0" and connection != "keep-alive")
    path = words[1].partition("?")[0]
    text = headers.get("content-length", "0")

    if "transfer-encoding" in headers:
        raise BadRequest("a body in chunks is not taken: send its Content-Length")

    if not (text.isascii() and text.isdigit() and len(text) <= 19):  # noqa: PLR2004  # 64 bits
        raise BadRequest(f"no Content-Length: {shorten(text)}")

    if int(text) > _BODY_LIMIT:
        raise BadRequest(f"a body over {_BODY_LIMIT} bytes")

    return Request(words[0], path, headers, b"", is_last), int(text)
