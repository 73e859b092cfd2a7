"""Servers and manifests that mean harm: no traceback, bounded memory, and nothing sent twice."""

from __future__ import annotations

import gzip
import json
import random
import re
import socketserver
import sys
import threading
import time
from collections import Counter
from contextlib import contextmanager
from itertools import chain, repeat
from typing import TYPE_CHECKING, Final

from stage import POS_USAGE, QUICK, workplace

from deslaunch.simulator import DEFAULT_JOBS

from .tally import Tally, shown, side_by_side

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from stage import Workplace

ROWS: Final = 6
MOST_KIB: Final = 200 * 1024
"""Of memory, resident."""

ENDED: Final = {0, 2, 3, 4, 5, 6, 7}
ROW: Final = re.compile(rb'"DBGenFrom":\s*\{[^}]*"valueStringEncoded":\s*"(\d+)"')
RUN: Final = "00000000-0000-4000-8000-000000000001"

# Runs a command, writes to a file how many KiB it took at most, and ends as it ended.
MEASURE: Final = """
import resource, subprocess, sys
code = subprocess.call(sys.argv[2:])
with open(sys.argv[1], "w") as file:
    file.write(str(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss))
sys.exit(code)
"""


def _ok(
    body: bytes, *headers: str, status: str = "200 OK", length: int | str | None = None
) -> bytes:
    size = len(body) if length is None else length
    head = [f"HTTP/1.1 {status}", f"Content-Length: {size}", "Content-Type: application/json"]
    return "\r\n".join([*head, *headers, "", ""]).encode("latin-1") + body


def _json(**more: object) -> bytes:
    return json.dumps({"jobId": POS_USAGE, "jobRunId": RUN} | more).encode()


def _ever(first: bytes, again: bytes) -> Iterable[bytes]:
    return chain([first], repeat(again))


HEAD: Final = b"HTTP/1.1 200 OK\r\n"
CHUNKED: Final = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
BLOCK: Final = b"x" * 65_536
BOMB: Final = gzip.compress(bytes(300_000_000), 9)

SAYS: Final[dict[str, Callable[[], Iterable[bytes]]]] = {
    "endless headers": lambda: _ever(HEAD, b"X-More: " + b"a" * 4000 + b"\r\n"),
    "an endless header": lambda: _ever(HEAD + b"X: ", BLOCK),
    "an endless status line": lambda: _ever(b"HTTP/1.1 200 ", BLOCK),
    "an endless body": lambda: _ever(HEAD + b"\r\n", BLOCK),
    "an endless body of JSON": lambda: _ever(HEAD + b"\r\n{", b'"a": 1, ' * 8000),
    "endless chunks": lambda: _ever(CHUNKED, b"10000\r\n" + BLOCK + b"\r\n"),
    "an endless size of a chunk": lambda: _ever(CHUNKED, b"0" * 65_536),
    "endless trailers": lambda: _ever(CHUNKED + b"0\r\n", b"X: y\r\n" * 5000),
    "endless 100 Continue": lambda: repeat(b"HTTP/1.1 100 Continue\r\n\r\n" * 500),
    "byte by byte": lambda: _slowly(_ok(_json())),
    "a bomb": lambda: [_ok(BOMB, "Content-Encoding: gzip")],
    "a bomb of deflate": lambda: [_ok(BOMB, "Content-Encoding: deflate")],
    "a bomb in chunks": lambda: [
        CHUNKED[:-2] + b"Content-Encoding: gzip\r\n\r\n%x\r\n" % len(BOMB) + BOMB + b"\r\n0\r\n\r\n"
    ],
    "twice": lambda: [_ok(_json()) * 2],
    "a thousand times": lambda: [_ok(_json()) * 1000],
    "a shorter length": lambda: [_ok(_json(), length=5)],
    "a longer length": lambda: [_ok(_json(), length=100_000)],
    "a negative length": lambda: [_ok(_json(), length=-1)],
    "a vast length": lambda: [_ok(_json(), length=10**30)],
    "two lengths": lambda: [_ok(_json(), "Content-Length: 3")],
    "two ways of length": lambda: [_ok(_json(), "Transfer-Encoding: chunked")],
    "302 to itself": lambda: [_ok(b"", "Location: /api/v1/startjob", status="302 Found")],
    "307 to itself": lambda: [_ok(b"", "Location: /api/v1/startjob", status="307 Again")],
    "308 to nowhere": lambda: [_ok(b"", "Location: \x01//[::", status="308 Again")],
    "101": lambda: [_ok(_json(), status="101 Switching Protocols")],
    "status 999": lambda: [_ok(_json(), status="999 No")],
    "status -1": lambda: [_ok(_json(), status="-1 No")],
    "TLS": lambda: [b"\x15\x03\x01\x00\x02\x02\x28"],
    "HTTP/2": lambda: [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(64)],
    "NULs": lambda: [bytes(100_000)],
    "deep JSON": lambda: [_ok(b'{"jobId":' + b"[" * 900_000)],
    "a vast number": lambda: [_ok(b'{"jobId": 1%s}' % (b"0" * 900_000))],
    "a vast jobRunId": lambda: [_ok(_json(jobRunId="r" * 900_000))],
    "a jobRunId that steers": lambda: [_ok(_json(jobRunId="\x1b]0;owned\x07\r\n\0"))],
    "a jobRunId that is none": lambda: [_ok(_json(jobRunId=["a", {"b": None}]))],
    "half a surrogate": lambda: [
        _ok(b'{"jobId": "%s", "jobRunId": "\\ud800"}' % POS_USAGE.encode())
    ],
    "400 that steers": lambda: [_ok(b"\x1b[2J\0\xff" * 9000, status="400 \x1b[2JNo")],
    "cookies": lambda: [_ok(_json(), *[f"Set-Cookie: a{n}=b" for n in range(400)])],
    "429 for ever": lambda: [_ok(b"", f"Retry-After: {10**100}", status="429 No")],
    "503 for no time": lambda: [_ok(b"", "Retry-After: -5", status="503 No")],
    "503 for an odd time": lambda: [_ok(b"", "Retry-After: nan", status="503 No")],
}
SENT_AGAIN: Final = {"429 for ever", "503 for no time", "503 for an odd time"}
"""What allows it."""


def _slowly(data: bytes) -> Iterator[bytes]:
    for at in range(len(data)):
        time.sleep(0.05)
        yield data[at : at + 1]


class _Handler(socketserver.StreamRequestHandler):
    server: _Server

    def handle(self) -> None:
        while head := self._read_head():
            length = re.search(rb"(?i)content-length: *(\d+)", head)
            body = self.rfile.read(int(length[1]) if length else 0)

            if b"startjob" in head.split(b"\r\n")[0] and (found := ROW.search(body)):
                self.server.posts[int(found[1])] += 1

            try:
                for data in self.server.say():
                    self.wfile.write(data)
            except OSError:  # the client has had enough
                return

    def _read_head(self) -> bytes:
        lines = []

        try:
            while (line := self.rfile.readline()) not in (b"", b"\r\n"):
                lines.append(line)
        except OSError:
            return b""

        return b"".join(lines)


class _Server(socketserver.ThreadingTCPServer):
    """A DES that says the same whatever it is asked for.

    Attributes:
        posts: start requests by row.
    """

    daemon_threads = True
    block_on_close = False

    def __init__(self, say: Callable[[], Iterable[bytes]]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.say = say
        self.posts: Counter[int] = Counter()

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of a connection that broke off."""


@contextmanager
def _listening(say: Callable[[], Iterable[bytes]]) -> Iterator[_Server]:
    with _Server(say) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()

        try:
            yield server
        finally:
            server.shutdown()


def servers(folder: Path, *, fast: bool, rng: random.Random) -> Tally:
    """Let a server respond as none should, to starts and to questions."""
    tally = Tally("hostile servers")
    most = [0]

    def one(name: str) -> None:
        with (
            workplace(folder / name.replace("/", "-")) as place,
            _listening(SAYS[name]) as server,
            tally.case(name),
        ):
            place.manifest(ROWS)
            (place.folder / "jobs.json").write_text(json.dumps(DEFAULT_JOBS))
            place.environment["DES_BASE_URL"] = f"http://127.0.0.1:{server.server_address[1]}"
            place.environment.update(DESLAUNCH_TIMEOUT="1.5", DESLAUNCH_GIVE_UP_AFTER="1.5")

            # A check waits for a quarter of an hour where DES says that it is busy.
            if name not in SENT_AGAIN:
                _measured(place, most, "check", "night.jsonl")

            command = ("run", "night.jsonl", "--schema", "jobs.json", *QUICK)
            _measured(place, most, *command, "--concurrency", "2")
            judge = place.judge()
            judge.assert_whole()
            twice = {row for row, number in server.posts.items() if number > 1}
            silent = set() if name in SENT_AGAIN else twice
            tally.cases += 1
            tally.starts += server.posts.total()
            tally.twice += len(silent)
            tally.unknown += len(judge.unknown)
            assert not silent, f"sent twice: {server.posts}"
            assert server.posts, "nothing was sent to it"

    names = rng.sample(sorted(SAYS), 3) if fast else sorted(SAYS)
    side_by_side(one, [(name,) for name in names], width=4)  # most of them wait
    tally.notes.append(f"at most {most[0] // 1024} MiB resident")
    return tally


def _measured(place: Workplace, most: list[int], *command: str) -> subprocess.CompletedProcess[str]:
    """Run a command; it ends by itself, in a known way, and takes little memory."""
    told = place.folder / "most"
    done = place.run(*command, wrap=(sys.executable, "-c", MEASURE, str(told)))
    used = int(told.read_text())
    most[0] = max(most[0], used)
    assert "Traceback" not in done.stderr, shown(done)
    assert done.returncode in ENDED, shown(done)
    assert used <= MOST_KIB, f"{command[0]} took {used // 1024} MiB"
    assert "\x1b" not in done.stderr + done.stdout, "a control character is shown"
    return done


LINE: Final = json.dumps({"key": "k", "jobId": POS_USAGE, "parameters": {"DBGenFrom": 1}})


def _lines(*lines: bytes) -> bytes:
    return b"\n".join([LINE.encode(), *lines, b""])


def _row_of(value: bytes, key: bytes = b"x") -> bytes:
    text = b'{"key": "%s", "jobId": "%s", "parameters": {"DBGenFrom": %s}}'
    return text % (key, POS_USAGE.encode(), value)


def _csv(header: bytes, *lines: bytes) -> bytes:
    return b"\n".join([b"key,jobId,DBGenFrom" + header, *lines, b""])


JOB: Final = POS_USAGE.encode()
MANIFESTS: Final[dict[str, Callable[[], bytes]]] = {
    "steers.csv": lambda: _csv(b"", b"\x1b]0;x\x07,%s,1" % JOB, b"b,%s,\x1b[2J" % JOB),
    "steers.jsonl": lambda: _lines(_row_of(b'"\\u001b[2J"'), _row_of(b"1", b"\\u001b[2J")),
    "header.csv": lambda: _csv(b",\x1b[2J\x00", b"a,%s,1,2" % JOB),
    "cell.csv": lambda: _csv(b"", b"a,%s,%s" % (JOB, b"9" * 1_040_000)),
    "cells.csv": lambda: _csv(b"", *[b"a%d,%s,%s" % (n, JOB, b"9" * 1_000_000) for n in range(20)]),
    "nul.csv": lambda: _csv(b"", b"a\0,%s,1" % JOB),
    "nul.jsonl": lambda: _lines(_row_of(b'"\\u0000"'), bytes(1000)),
    "columns.csv": lambda: _csv(
        b"," + b",".join(b"c%d" % n for n in range(100_000)), b"a" + b"," * 9
    ),
    "names.jsonl": lambda: _lines(
        b"{%s}" % b",".join(b'"c%d": %d' % (n, n) for n in range(60_000))
    ),
    "deep.jsonl": lambda: _lines(b'{"a":' * 100_000 + b"1" + b"}" * 100_000),
    "deeper.jsonl": lambda: _lines(_row_of(b"[" * 500_000 + b"]" * 500_000)),
    "number.jsonl": lambda: _lines(_row_of(b"9" * 900_000), _row_of(b"1e999999999", b"y")),
    "digits.jsonl": lambda: _lines(_row_of(b"1." + b"0" * 900_000), _row_of(b"-0", b"y")),
    "nan.jsonl": lambda: _lines(_row_of(b"NaN"), _row_of(b"-Infinity", b"y")),
    "bom.jsonl": lambda: _lines(b"\xef\xbb\xbf" + _row_of(b"2")),
    "bom.csv": lambda: b"\xef\xbb\xbf" + _csv(b"", b"\xef\xbb\xbfa,%s,1" % JOB),
    "ends.csv": lambda: b"key,jobId,DBGenFrom\r\na,%s,1\nb,%s,2\r\rc,%s,3\n\r" % (JOB, JOB, JOB),
    "ends.jsonl": lambda: b"\r\n".join([LINE.encode(), b"\r", _row_of(b"2")]) + b"\r",
    "quote.csv": lambda: _csv(b"", b'a,%s,"1' % JOB, *[b"b,%s,2" % JOB] * 200_000),
    "long.jsonl": lambda: b'{"key": "' + b"k" * 50_000_000,
    "lines.jsonl": lambda: b"x\n" * 200_000,
    "lines.csv": lambda: _csv(b"", *[b"a,b"] * 200_000),
    "blank.jsonl": lambda: b"\n" * 5_000_000,
    "latin.csv": lambda: _csv(b"", b"\xe9,%s,1" % JOB),
    "utf16.csv": lambda: _csv(b"", b"a,%s,1" % JOB).decode().encode("utf-16"),
    "surrogate.jsonl": lambda: _lines(_row_of(b"2", b"\\ud800")),
    "repeats.jsonl": lambda: _lines(b'{%s"key": 1}' % (b'"key": 1, ' * 60_000)),
    "bomb.jsonl.gz": lambda: gzip.compress(bytes(500_000_000), 1),
    "bomb.csv.gz": lambda: gzip.compress(_csv(b"", b"a,%s,%s" % (JOB, b"1" * 300_000_000)), 1),
    "twice.jsonl.gz": lambda: gzip.compress(gzip.compress(LINE.encode())),
    "empty.jsonl.gz": lambda: b"",
    "noise.jsonl.gz": lambda: b"\x1f\x8b\x08" + random.Random(1).randbytes(10_000),
    "noise.csv": lambda: random.Random(2).randbytes(300_000),
}


def manifests(folder: Path, *, fast: bool, rng: random.Random) -> Tally:
    """Check and launch manifests that were made to break a reader."""
    tally = Tally("hostile manifests")
    most = [0]

    def one(name: str) -> None:
        with workplace(folder / name) as place, tally.case(name):
            (place.folder / name).write_bytes(MANIFESTS[name]())
            _measured(place, most, "check", name)
            _measured(place, most, "run", name, "--skip-invalid", "--quiet")
            tally.cases += 1
            tally.starts += place.simulator.requests
            ledgers = [*place.folder.glob("*.ledger.db")]
            started = place.judge(ledgers[0]).status["started"] if ledgers else 0
            assert started == len(place.simulator.runs), "a run is not told, or made twice"

    names = rng.sample(sorted(MANIFESTS), 3) if fast else sorted(MANIFESTS)
    side_by_side(one, [(name,) for name in names])
    tally.notes.append(f"at most {most[0] // 1024} MiB resident")
    return tally
