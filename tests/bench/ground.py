"""What all contenders share: the rows, the schema, the environment and the files."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TOKEN: Final = "tOken-of-one-organisation/0123456789"
JOB_ID: Final = "5b6ddf1c-2c0e-4b7e-9d39-6f6f0c1b7a42"
TYPES: Final = {"DBGenFrom": 2, "DBGenTo": 2, "TradingDateFrom": 4, "TradingDateTo": 4}
"""Each parameter's type number, as the job's schema declares it."""

JOBS: Final = json.dumps(
    {
        "jobs": [
            {
                "jobId": JOB_ID,
                "name": "Sales as CSV",
                "jobRunParameters": [
                    {"name": name, "type": number, "required": name == "DBGenFrom"}
                    for name, number in TYPES.items()
                ],
            }
        ]
    }
)
"""What the service answers to QueryJobs."""


class BenchFailed(Exception):
    """A contender did not do what it was measured for, or the bench can't begin."""


class Ground:
    """A folder with one manifest, and the service that its starts go to.

    Attributes:
        folder: where the contenders leave their files.
        rows: data rows of the manifest.
        base_url: the service.
    """

    def __init__(self, folder: Path, rows: int, base_url: str) -> None:
        self.folder = folder
        self.rows = rows
        self.base_url = base_url

    @property
    def jsonl(self) -> Path:
        """The manifest as JSONL, written when it is first asked for."""
        path = self.folder / f"night-{self.rows}.jsonl"

        if not path.exists():
            with path.open("w", encoding="utf-8") as file:
                file.writelines(f"{json.dumps(row)}\n" for row in rows(self.rows))

        return path

    @property
    def typed(self) -> Path:
        """The same manifest as JSONL that gives each value with its type, as DES takes it."""
        path = self.folder / f"typed-{self.rows}.jsonl"

        if not path.exists():
            with path.open("w", encoding="utf-8") as file:
                for row in rows(self.rows):
                    row["parameters"] = _typed(row)
                    file.write(f"{json.dumps(row)}\n")

        return path

    @property
    def csv(self) -> Path:
        """The same manifest as CSV."""
        path = self.folder / f"night-{self.rows}.csv"

        if not path.exists():
            with path.open("w", encoding="utf-8") as file:
                file.write(",".join(("key", "jobId", *TYPES)) + "\n")
                file.writelines(f"{_csv_line(row)}\n" for row in rows(self.rows))

        return path

    @property
    def schema(self) -> Path:
        """The job's parameters as a schema file."""
        path = self.folder / "jobs.json"
        path.write_text(JOBS, encoding="utf-8")
        return path

    def new_ledger(self, name: str = "night") -> Path:
        """Return where a contender writes its ledger; what an earlier one left is removed."""
        path = self.folder / f"{name}.ledger.db"

        for left in self.folder.glob(f"{path.name}*"):
            left.unlink()

        return path

    def bodies(self) -> Iterator[str]:
        """Yield the body of each start, as deslaunch sends it."""
        return map(body, rows(self.rows))

    @property
    def environment(self) -> dict[str, str]:
        """The environment that leads a contender to the service, and through no proxy.

        Python may keep what it compiled: where a package is installed, that was done before.
        """
        clean = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("DES_", "DESLAUNCH_", "PYTHONDONTWRITEBYTECODE"))
            and not name.lower().endswith("_proxy")
        }
        return clean | {
            "DES_BASE_URL": self.base_url,
            "DES_TOKEN": TOKEN,
            "DESLAUNCH_CACHE_DIR": str(self.folder / "cache"),
            "DESLAUNCH_STATE_DIR": str(self.folder / "state"),
            "NO_COLOR": "1",
        }


def rows(count: int) -> Iterator[dict[str, Any]]:
    """Yield rows in the form of a JSONL manifest: four parameters, and a key of its own each."""
    for number in range(1, count + 1):
        day = f"2026-{1 + number % 12:02}-{1 + number % 28:02}"
        yield {
            "key": f"store-{number:07}",
            "jobId": JOB_ID,
            "parameters": {
                "DBGenFrom": 100 * number,
                "DBGenTo": 100 * number + 99,
                "TradingDateFrom": f"{day}T00:00:00Z",
                "TradingDateTo": f"{day}T23:59:59Z",
            },
        }


def body(row: dict[str, Any]) -> str:
    """Return the StartJobBody of a row."""
    return json.dumps({"jobId": row["jobId"], "parameters": _typed(row)}, separators=(",", ":"))


def _typed(row: dict[str, Any]) -> dict[str, Any]:
    return {
        name: {"type": TYPES[name], "valueStringEncoded": str(value)}
        for name, value in row["parameters"].items()
    }


def _csv_line(row: dict[str, Any]) -> str:
    return ",".join((row["key"], row["jobId"], *map(str, row["parameters"].values())))
