"""HTTP/1.1 by hand: requests out of bytes, answers into bytes. No I/O."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, Self

import orjson

from deslaunch.simulator.errors import BadRequest, shorten

if TYPE_CHECKING:
    from collections.abc import Mapping

_HEAD_LIMIT: Final = 64 * 1024
_BODY_LIMIT: Final = 16 * 1024 * 1024
_CHUNK_SIZE: Final = re.compile(rb"([0-9a-fA-F]{1,8})(?:;.*)?", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Request:
    """One HTTP request.

    Attributes:
        method: as sent.
        path: as sent, without the query.
        headers: names in lower case; of a name given twice, the last.
        body: decoded of any chunks.
        closing: whether the client wants the connection closed after the answer.
    """

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes
    closing: bool


@dataclass(frozen=True, slots=True)
class Answer:
    """One HTTP answer as it should be, before any fault.

    Attributes:
        status: 200 to 599.
        body: the payload, any bytes.
        headers: names and values in the order in which they are sent, after the content's own.
        content_type: media type of the body.
    """

    status: int
    body: bytes
    headers: tuple[tuple[str, str], ...] = ()
    content_type: str = "application/json"

    @classmethod
    def json(cls, status: int, value: object) -> Self:
        """Return an answer whose body is ``value`` as JSON."""
        return cls(status, orjson.dumps(value))

    def head(self) -> bytes:
        """Return status line and headers, with the empty line that ends them."""
        fields = (
            ("Content-Type", self.content_type),
            ("Content-Length", str(len(self.body))),
            *self.headers,
        )
        lines = "".join(f"{name}: {value}\r\n" for name, value in fields)
        return f"HTTP/1.1 {self.status} {_reason(self.status)}\r\n{lines}\r\n".encode("latin-1")

    def encode(self) -> bytes:
        """Return the whole answer as it goes over the wire."""
        return self.head() + self.body


def _reason(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Unknown"


class End(Enum):
    """What becomes of a connection after the bytes of an answer."""

    KEEP = "it serves the next request"
    CLOSE = "FIN"
    RESET = "RST"
    HANG = "nothing more is sent; it stays open until the client hangs up"


@dataclass(frozen=True, slots=True)
class Delivery:
    """The exact bytes of an answer, perhaps none, and what follows them."""

    data: bytes
    end: End = End.KEEP


@dataclass(frozen=True, slots=True)
class _Head:
    method: str
    path: str
    headers: Mapping[str, str]
    closing: bool
    length: int | None
    """Bytes of the body, or None where it comes in chunks."""


class RequestParser:
    """Bytes in, requests out; no I/O.

    However the bytes are split, the same requests come out, and the same error.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._head: _Head | None = None
        self._chunks = bytearray()

    def feed(self, data: bytes) -> None:
        """Add bytes as they came from the socket."""
        self._buffer += data

    def next_request(self) -> Request | None:
        """Return the next whole request, or None until more bytes are fed.

        Raises:
            BadRequest: the bytes are no request; or a head over 64 KiB, a body over 16 MiB.
        """
        if self._head is None:
            self._head = self._take_head()

        if self._head is None:
            return None

        head, body = self._head, self._take_body(self._head)

        if body is None:
            return None

        self._head = None
        return Request(head.method, head.path, head.headers, body, head.closing)

    def _take_head(self) -> _Head | None:
        end = self._find(b"\r\n\r\n")

        if end is None:
            return None

        text = self._buffer[:end].decode("latin-1")
        del self._buffer[: end + 4]
        return _parse_head(text)

    def _take_body(self, head: _Head) -> bytes | None:
        if head.length is None:
            return self._take_chunks()

        if len(self._buffer) < head.length:
            return None

        body = bytes(self._buffer[: head.length])
        del self._buffer[: head.length]
        return body

    def _take_chunks(self) -> bytes | None:
        while (chunk := self._take_chunk()) is not None:
            self._chunks += chunk

            if len(self._chunks) > _BODY_LIMIT:
                raise BadRequest(f"a body over {_BODY_LIMIT} bytes")

            if not chunk:
                body, self._chunks = bytes(self._chunks), bytearray()
                return body

        return None

    def _take_chunk(self) -> bytes | None:
        """Cut one chunk off the buffer; the empty one goes with the trailers behind it."""
        line_end = self._find(b"\r\n")

        if line_end is None:
            return None

        size = _chunk_size(bytes(self._buffer[:line_end]))
        return self._cut_chunk(line_end + 2, size) if size else self._cut_trailers(line_end)

    def _cut_chunk(self, start: int, size: int) -> bytes | None:
        end = start + size

        if len(self._buffer) < end + 2:
            return None

        if self._buffer[end : end + 2] != b"\r\n":
            raise BadRequest("a chunk longer than it says")

        chunk = bytes(self._buffer[start:end])
        del self._buffer[: end + 2]
        return chunk

    def _cut_trailers(self, start: int) -> bytes | None:
        end = self._find(b"\r\n\r\n", start)

        if end is None:
            return None

        del self._buffer[: end + 4]
        return b""

    def _find(self, marker: bytes, start: int = 0) -> int | None:
        end = self._buffer.find(marker, start)
        least = end if end >= 0 else len(self._buffer) - len(marker) + 1

        if least > _HEAD_LIMIT:
            raise BadRequest(f"a head over {_HEAD_LIMIT} bytes")

        return end if end >= 0 else None


def _parse_head(text: str) -> _Head:
    request_line, *fields = text.split("\r\n")
    words = request_line.split(" ")

    if len(words) != 3 or words[2] not in ("HTTP/1.0", "HTTP/1.1"):  # noqa: PLR2004
        raise BadRequest(f"no request line: {shorten(request_line)}")

    headers = dict(map(_parse_field, fields))
    connection = headers.get("connection", "").lower()
    return _Head(
        method=words[0],
        path=words[1].partition("?")[0],
        headers=headers,
        closing=connection == "close" or (words[2] == "HTTP/1.0" and connection != "keep-alive"),
        length=_body_length(headers),
    )


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
    size = int(match[1], 16) if match is not None else _BODY_LIMIT + 1

    if size > _BODY_LIMIT:
        raise BadRequest(f"no chunk size, or one over {_BODY_LIMIT}: {shorten(line)}")

    return size
