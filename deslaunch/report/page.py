"""The report's contents → one page that asks nothing of any network.

Whatever comes from a ledger is hostile: it is made visible, and escaped, where it is put into
the page, and the page's policy lets no other script run than its own.
"""

from __future__ import annotations

import base64
from functools import partial
from hashlib import sha256
from importlib import resources
from typing import TYPE_CHECKING, Any, Final

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from deslaunch.model import counted
from deslaunch.report.charts import shares, spread, time_chart
from deslaunch.report.table import encoded
from deslaunch.report.text import cut, duration, percent, shown, time_of, utc_text

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from deslaunch.report.contents import Contents

STATIC_ROWS: Final = 100
"""Rows that are part of the page itself, so that it can be read without its script."""

SHOWN_CAUSES: Final = 30
_TEXT_LIMIT: Final = 300


def page_of(contents: Contents) -> Iterator[str]:
    """Yield the report's page in pieces. The same contents make the same page."""
    rows, held = encoded(contents.columns)
    style, script = _file("page.css"), _file("page.js")
    yield from (
        _environment()
        .get_template("page.html")
        .generate(
            batches=contents.batches,
            totals=contents.totals,
            shares=shares(contents.totals),
            verdict=verdict(contents),
            chart=time_chart(contents.figures),
            figures=contents.figures,
            answers=spread(contents.figures.answers),
            run_times=spread(contents.figures.run_times),
            causes=contents.causes,
            attempts=sorted((sent, rows) for sent, rows in contents.attempts.items() if sent),
            shown_causes=SHOWN_CAUSES,
            columns=contents.columns,
            static_rows=min(held, STATIC_ROWS),
            held=held,
            rows=contents.rows,
            data=Markup(rows),  # noqa: S704  # base 85 without <, & and >
            style=style,
            script=script,
            policy=_policy(style, script),
        )
    )


def verdict(contents: Contents) -> str:
    """Return in one sentence how the rows of a report stand, and how many of their runs failed."""
    failed = contents.failed_runs
    rows = _verdict_on_rows(contents.totals)
    return f"{rows.removesuffix('.')}, and {counted(failed, 'run')} failed." if failed else rows


def _verdict_on_rows(totals: Mapping[str, int]) -> str:
    rows, started = totals["rows"], totals["started"]

    if not rows:
        return "There are no rows."

    if started == rows:
        return "The one row is started." if rows == 1 else f"All {rows:,} rows are started."

    return f"{started:,} of {counted(rows, 'row')} {'is' if started == 1 else 'are'} started."


def _environment() -> Environment:
    made = Environment(
        loader=PackageLoader("deslaunch.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_visible,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "cell": _cell,
        "counted": counted,
        "cut": partial(cut, limit=_TEXT_LIMIT),
        "duration": duration,
        "iso": _iso,
        "number": "{:,}".format,
        "percent": percent,
        "place": "{:.2f}".format,
        "utc": utc_text,
    }
    return made


def _visible(value: Any) -> Any:
    """Make hostile text visible, wherever the template puts it; markup is the template's own."""
    return shown(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _cell(value: Any, kind: str) -> str:
    if value is None:
        return ""

    if kind == "time":
        return utc_text(_iso(value))

    if kind == "duration":
        return duration(value)

    return f"{value:,}" if kind == "number" else str(value)


def _iso(ms: int) -> str:
    return time_of(ms).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _file(name: str) -> Markup:
    text = resources.files("deslaunch.report").joinpath(name).read_text(encoding="utf-8")
    return Markup(text)  # noqa: S704  # the package's own file


def _policy(style: str, script: str) -> str:
    """Return a policy that forbids all but this page's own style and script."""
    return f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(script)}"


def _hash(text: str) -> str:
    digest = sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
