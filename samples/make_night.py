"""Make ``night.csv`` and ``night.jsonl``: 2,000 rows, one night's exports of 1,000 stores.

The two files say the same in both formats. Each store has two rows: its POS usage, and its
sales as CSV. Most rows ask for a range of database generations, every fifth store for its
trading day instead. The output depends on nothing but this file:

    python samples/make_night.py [FOLDER]
"""

from __future__ import annotations

import csv
import io
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

POS_USAGE_EXPORT = "43f87799-62c6-4001-92f9-6b3df816a6d6"
CSV_SALES_EXPORT = "8d0c3c7e-5b0f-4d5e-9a51-0f6a2f1c9e04"

STORES = 1000
PARAMETERS = ("DBGenFrom", "DBGenTo", "TradingDate", "TradingDateFrom", "TradingDateTo")
NULL = r"\N"

Row = tuple[str, str, dict[str, int | str | None]]
"""Key, jobId, parameters."""


def rows() -> Iterator[Row]:
    """Yield the night's rows in manifest order."""
    for store in range(1, STORES + 1):
        first = 100_000 + store * 737
        last = first + 180 + store * 31 % 240
        yield f"store-{store:04}-pos", POS_USAGE_EXPORT, _pos_usage(store, first, last)
        yield f"store-{store:04}-sales", CSV_SALES_EXPORT, _csv_sales(store, first, last)


def _pos_usage(store: int, first: int, last: int) -> dict[str, int | str | None]:
    if store % 5:
        return {"DBGenFrom": first, "DBGenTo": last}

    # DBGenFrom is required: a row that names a trading day sends it as null. The time of the
    # day at which a store closes its books tells one store's row from another's.
    return {"DBGenFrom": None, "TradingDate": f"2026-01-31T{_closing_time(store)}Z"}


def _csv_sales(store: int, first: int, last: int) -> dict[str, int | str | None]:
    if store % 5:
        return {"DBGenFrom": first, "DBGenTo": last}

    time = _closing_time(store)
    return {
        "TradingDateFrom": f"2026-01-30T{time}Z",
        "TradingDateTo": f"2026-01-31T{time}Z",
    }


def _closing_time(store: int) -> str:
    minutes, seconds = divmod(store * 7, 60)
    return f"{2 + minutes // 60:02}:{minutes % 60:02}:{seconds:02}"


def as_csv() -> str:
    """Return the night as CSV: an empty cell is left out, null is spelt out."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("key", "jobId", *PARAMETERS))

    for key, job_id, parameters in rows():
        said = {name: NULL if value is None else value for name, value in parameters.items()}
        writer.writerow((key, job_id, *(said.get(name, "") for name in PARAMETERS)))

    return text.getvalue()


def as_jsonl() -> str:
    """Return the night as JSONL: one object a line."""
    return "".join(
        json.dumps({"key": key, "jobId": job_id, "parameters": parameters}) + "\n"
        for key, job_id, parameters in rows()
    )


def main(folder: Path) -> None:
    """Write both files into ``folder``."""
    (folder / "night.csv").write_text(as_csv(), encoding="utf-8", newline="\n")
    (folder / "night.jsonl").write_text(as_jsonl(), encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
