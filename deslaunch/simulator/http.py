"""HTTP/1.1 by hand: requests out of bytes, responses into bytes. No I/O."""

from __future__ import annotations

import re
from email.utils import formatdate
from enum import Enum
from functools import lru_cache
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

_HEAD_LIMIT: Final = 64 * 1024
_BODY_LIMIT: Final = 16 * 1024 * 1024
_CHUNK_SIZE: Final = re.compile(rb"([0-9a-fA-F]{1,8})(?:;.*)?", re.DOTALL)

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
        body: decoded of any chunks.
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


class RequestParser:
    """Bytes in, requests out: the same ones, and the same error, however the bytes are split."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._head: tuple[Request, int | None] | None = None

    def feed(self, data: bytes) -> None:
        """Add bytes as they came from the socket."""
        self._buffer += data

    def next_request(self) -> Request | None:
        """Return the next whole request, or None until more bytes are fed.

        Raises:
            BadRequest: the bytes are no request; or a head over 64 KiB, a body over 16 MiB.
        """
        buffer = self._buffer

        if self._head is None:
            end = _find(buffer, b"\r\n\r\n")

            if end is None:
                return None

            self._head = _parse_head(bytes(buffer[:end]))
            del buffer[: end + 4]

        request, length = self._head

        if length is None:
            read = _read_chunks(buffer)

            if read is None:
                return None

            body, length = read
        elif len(buffer) < length:
            return None
        else:
            body = bytes(buffer[:length])

        del buffer[:length]
        self._head = None
        return request._replace(body=body)


def _find(data: bytearray, marker: bytes, start: int = 0) -> int | None:
    """Return the place of a marker that ends lines, or None where it is still to come."""
    end = data.find(marker, start)
    least = end if end >= 0 else len(data) - len(marker) + 1

    if least - start > _HEAD_LIMIT:
        raise BadRequest(f"a head over {_HEAD_LIMIT} bytes")

    return end if end >= 0 else None


def _read_chunks(data: bytearray) -> tuple[bytes, int] | None:
    """Return a body that came in chunks, and its length with all that frames it."""
    body, place = bytearray(), 0

    while (line_end := _find(data, b"\r\n", place)) is not None:
        size = _chunk_size(bytes(data[place:line_end]))

        if not size:
            end = _find(data, b"\r\n\r\n", line_end)  # behind any trailers
            return None if end is None else (bytes(body), end + 4)

        start, place = line_end + 2, line_end + 2 + size + 2

        if len(data) < place:
            return None

        if data[place - 2 : place] != b"\r\n":
            raise BadRequest("a chunk longer than it says")

        body += data[start : place - 2]

        if len(body) > _BODY_LIMIT:
            raise BadRequest(f"a body over {_BODY_LIMIT} bytes")

    return None


@lru_cache(maxsize=256)  # one client's heads differ in little but their Content-Length
def _parse_head(data: bytes) -> tuple[Request, int | None]:
    """Return a request without its body, and the body's length, None where it comes in chunks."""
    request_line, *fields = data.decode("latin-1").split("\r\n")
    words = request_line.split(" ")

    if len(words) != 3 or words[2] not in ("HTTP/1.0", "HTTP/1.1"):  # noqa: PLR2004
        raise BadRequest(f"no request line: {shorten(request_line)}")

    headers = dict(map(_parse_field, fields))
    connection = headers.get("connection", "").lower()
    is_last = connection == "close" or (words[2] == "HTTP/1.0" and connection != "keep-alive")
    path = words[1].partition("?")[0]
    return Request(words[0], path, headers, b"", is_last), _body_length(headers)


def _parse_field(line: str) -> tuple[str, str]:
    name, colon, value = line.partition(":")

    if not colon or not name or name != name.strip():
        raise BadRequest(f"no header: {shorten(line)}")

    return name.lower(), value.strip()


def _body_length(headers: Mapping[str, str]) -> int | None:
    if headers.get("transfer-encoding", "").lower() == "chunked":
        return None

    text = headers.get("content-length", "0")

    if not (text.isascii() and text.isdigit() and len(text) <= 19):  # noqa: PLR2004  # 64 bits
        raise BadRequest(f"no Content-Length: {shorten(text)}")

    if int(text) > _BODY_LIMIT:
        raise BadRequest(f"a body over {_BODY_LIMIT} bytes")

    return int(text)


def _chunk_size(line: bytes) -> int:
    match = _CHUNK_SIZE.fullmatch(line)
    size = int(match[1], 16) if match is not None else -1

    if not 0 <= size <= _BODY_LIMIT:
        raise BadRequest(f"no chunk size, or one over {_BODY_LIMIT} bytes: {shorten(line)}")

    return size
