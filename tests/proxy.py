"""A way to PostgreSQL that a test breaks: between a client and the server, on a port of its own.

What it forwards it may change, hold back, or cut; each connection is two threads.
"""

from __future__ import annotations

import contextlib
import re
import socket
import threading
from typing import TYPE_CHECKING, Final, Self

if TYPE_CHECKING:
    from collections.abc import Callable

CHUNK: Final = 65_536

_KEY_DATA: Final = re.compile(rb"(K\x00\x00\x00\x0c)(....)", re.DOTALL)
"""What a server tells a client of its process: its number, and a secret."""


def hide_process(reply: bytes) -> bytes:
    """Let a client believe that another process serves it, as a pooler does."""
    return _KEY_DATA.sub(lambda found: found[1] + bytes(3) + b"\7", reply)


class Proxy:
    """Forwards connections to a port of loopback, while its ``with`` block runs.

    Args:
        port: the server's.
        change: what becomes of what the server says.

    Attributes:
        port: its own.
        frozen: nothing is forwarded and nothing is closed, as where packets are dropped.
    """

    def __init__(self, port: int, change: Callable[[bytes], bytes] = lambda reply: reply) -> None:
        self._server_port = port
        self._change = change
        self._flows = threading.Event()
        self._flows.set()
        self._ends = False
        self._sockets: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends = True
        self._flows.set()
        _shut(self._listener)
        self.cut()

    @property
    def frozen(self) -> bool:
        return not self._flows.is_set()

    @frozen.setter
    def frozen(self, is_frozen: bool) -> None:
        (self._flows.clear if is_frozen else self._flows.set)()

    def cut(self) -> None:
        """Close all connections."""
        while self._sockets:
            _shut(self._sockets.pop())

    def _accept(self) -> None:
        while not self._ends:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return

            self._flows.wait()  # a client waits for a response to its SYN, as it sees it

            try:
                server = socket.create_connection(("127.0.0.1", self._server_port))
            except OSError:
                _shut(client)
                continue

            self._sockets += [client, server]

            for ends in ((client, server, bytes), (server, client, self._change)):
                threading.Thread(target=self._forward, args=ends, daemon=True).start()

    def _forward(
        self, source: socket.socket, sink: socket.socket, change: Callable[[bytes], bytes]
    ) -> None:
        with contextlib.suppress(OSError):
            while chunk := source.recv(CHUNK):
                self._flows.wait()
                sink.sendall(change(chunk))

        _shut(source)
        _shut(sink)


def _shut(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)

    end.close()
