"""Ledgers made by hand, of any size: what the tests of the report and its pictures share."""

from __future__ import annotations

import random
import uuid
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import orjson

from deslaunch import records
from deslaunch.keys import row_digest
from deslaunch.model import Row, StartRequest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import BinaryIO, Self

JOBS: Final = ("43f87799-62c6-4001-92f9-6b3df816a6d6", "0a3b5c7d-9e1f-4a2b-8c3d-5e6f708192a3")
BEGAN: Final = datetime(2026, 11, 24, 1, 2, 3, tzinfo=UTC)


class Clockwork:
    """Writes records to a ledger, each at the time it is given.

    Args:
        path: the ledger.
        rows: that its manifest has.
        manifest: where that is; it need not be there.
    """

    def __init__(self, path: Path, rows: int, *, manifest: str = "night.csv") -> None:
        self.path = path
        self._stream: BinaryIO = path.open("wb")
        found = sha256(Path(manifest).read_bytes()) if Path(manifest).exists() else sha256()
        self._said = {"path": manifest, "sha256": found.hexdigest(), "rows": rows}
        header = records.batch(
            batch_id="b",
            manifest=self._said,
            format="csv",
            job_id=None,
            target=None,
            allow=(),
            skip_invalid=True,
            version="0",
        )
        self.at(0, header)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def at(self, seconds: float, *written: records.Record) -> None:
        """Write records, so many seconds after the batch began."""
        utc = utc_of(seconds)
        self._stream.writelines(records.encode(record, utc) for record in written)

    def session(self, seconds: float) -> None:
        """Write that a launcher begins to work."""
        targets = {"default": {"baseUrl": "https://des.example", "orgId": None}}
        options = {"timeout": 60.0}
        self.at(
            seconds,
            records.session(
                pid=4711, host="night", manifest=self._said, targets=targets, options=options
            ),
        )


def utc_of(seconds: float) -> str:
    time = BEGAN + timedelta(seconds=seconds)
    return time.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def request_of(
    row: int, key: str, *, job: str = JOBS[0], target: str = "default", value: str | None = None
) -> StartRequest:
    said = Row(row, row + 1, key, target, job, {"DBGenFrom": value or str(row)})
    body = {
        "jobId": job,
        "parameters": {"DBGenFrom": {"type": 2, "valueStringEncoded": value or str(row)}},
    }
    return StartRequest(
        key, row, row + 1, target, job, row_digest(said), orjson.dumps(body), auto=False
    )


def run_status(
    key: str, run: str, created: float, seconds: float, *, error: str | None = None
) -> records.Record:
    """Return the record of a watched run that has ended."""
    return {
        "record": "runStatus",
        "optional": True,
        "key": key,
        "jobRunId": run,
        "finished": True,
        "success": error is None,
        "status": error,
        "createdUtc": utc_of(created),
        "finishedUtc": utc_of(created + seconds),
        "outputFiles": [],
    }


class Night:
    """A batch with a bit of everything that can go wrong, the same for the same arguments.

    Args:
        path: the ledger to write.
        rows: how many.
        rate: starts a second.
        digests: keys are digests, so that nothing in the page repeats; there is no manifest.
    """

    def __init__(
        self, path: Path, rows: int, *, rate: float = 400.0, digests: bool = False
    ) -> None:
        self._rng = random.Random(7)
        self._rows = rows
        self._rate = rate
        self._digests = digests
        self._runs: dict[str, str] = {}
        manifest = path.with_suffix(".csv")

        if not digests:
            manifest.write_text("".join(_manifest_lines(rows)))

        self._writer = Clockwork(path, rows, manifest=str(manifest))

    def write(self) -> None:
        """Write the ledger: a launch that pauses, and another some hours later."""
        cut = max(1, self._rows * 9 // 10)
        morning = self._rows / self._rate + 7 * 3600

        with self._writer as writer:
            writer.session(1)
            self._launch(range(1, cut + 1), 1.5)
            writer.session(morning)
            self._launch(range(cut + 1, self._rows + 1), morning + 0.5)
            self._watch(morning + 3600)

    def _launch(self, numbers: range, begin: float) -> None:
        pause_at = numbers.start + len(numbers) // 3
        late = 0.0

        for number in numbers:
            sent = begin + late + (number - numbers.start) / self._rate

            if number == pause_at and len(numbers) > 5:
                told = "HTTP 503, Retry-After 8 s: DES is starting up"
                self._writer.at(sent, records.pause("default", cause=told, seconds=8))
                late += 8
                sent += 8

            self._row(number, sent)

        end = begin + late + len(numbers) / self._rate + 2
        self._writer.at(end, records.end({"started": 0}))

    def _row(self, number: int, sent: float) -> None:
        rng, writer = self._rng, self._writer
        key = f"{rng.getrandbits(128):032x}" if self._digests else _key(number)
        request = request_of(number, key, job=JOBS[number % 2])
        attempt = 1
        writer.at(sent, records.sending(request, attempt, with_body=True))
        answer = sent + rng.lognormvariate(-3.2, 0.7)
        chance = rng.random()

        if chance < 0.05:
            writer.at(answer, records.answered(key, 1, status=500, error="database is locked"))
            attempt, sent, answer = 2, answer + 0.4, answer + 0.5
            writer.at(sent, records.sending(request, attempt, with_body=False))

        writer.at(answer, self._outcome(key, attempt, number, chance))

    def _outcome(self, key: str, attempt: int, number: int, chance: float) -> records.Record:
        if 0.98 < chance < 0.99 or number == 3:
            error = f"DBGenFrom {number}: a range or a TradingDate, never both"
            return records.rejected(key, attempt, status=400, error=error)

        if 0.99 < chance < 0.995 or number == 5:
            error = f"internal error {uuid.UUID(int=self._rng.getrandbits(128))}"
            return records.failed(key, attempt, status=500, error=error)

        if number in {7, 12, 600}:
            return records.unknown(key, attempt, cause="the server disconnected after sending")

        run = self._runs[key] = self._guid()
        return records.started(key, attempt, job_run_id=run)

    def _guid(self) -> str:
        return str(uuid.UUID(int=self._rng.getrandbits(128)))

    def _watch(self, begin: float) -> None:
        for number in range(1, min(self._rows, 2_000) + 1):
            run = self._runs.get(_key(number))

            if run is None:
                continue

            error = "no rows in the range" if number % 50 == 9 else None
            seconds = self._rng.lognormvariate(4, 1)
            record = run_status(_key(number), run, 0, seconds, error=error)
            self._writer.at(begin + number / 100, record)


def _key(number: int) -> str:
    return f"store-{number:06}-pos"


def _manifest_lines(rows: int) -> Iterator[str]:
    yield "key,jobId,DBGenFrom\n"
    yield from (f"{_key(number)},{JOBS[number % 2]},{number}\n" for number in range(1, rows + 1))


def records_in(path: Path) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in path.read_bytes().splitlines()]


HOSTILE: Final = (
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(2)>",
    '" onmouseover="alert(3)',
    "' autofocus onfocus=alert(4) '",
    "nul\0 escape\x1b[31m tab\t line\nbreak",
    "\N{RIGHT-TO-LEFT OVERRIDE}gpj.exe\N{RIGHT-TO-LEFT MARK}",
    "<!--<script>",
    "{{ 7 * 7 }}",
    "javascript:alert(5)",
    "עברית",
    "x" * 240,
    "]]>&lt;&amp;\N{ZERO WIDTH SPACE}",
    "-rf",
)
"""Texts that a page must show and never obey."""


def hostile_ledger(path: Path) -> None:
    """Write a ledger whose every text is hostile: keys, targets, values, errors, causes."""
    with Clockwork(path, len(HOSTILE) * 3, manifest=HOSTILE[0]) as writer:
        writer.session(1)

        for number, text in enumerate(HOSTILE, start=1):
            rejected, unknown, watched = f"r{text}", text, f"w{text}"
            job = text

            for row, key in enumerate((rejected, unknown, watched), start=3 * number):
                request = request_of(row, key, job=job, target=text, value=text)
                writer.at(number, records.sending(request, 1, with_body=True))

            writer.at(number + 0.1, records.rejected(rejected, 1, status=400, error=text))
            writer.at(number + 0.2, records.unknown(unknown, 1, cause=text, job_run_id=text))
            writer.at(number + 0.3, records.started(watched, 1, job_run_id=text))
            writer.at(number + 0.4, records.pause(text, cause=text, seconds=1))
            writer.at(number + 0.5, run_status(watched, text, 0, number, error=text))
