"""What ``--help`` says of each command below its options: limits, exit codes, environment."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_TOKEN: Final = {
    "DES_BASE_URL": "where DES is",
    "DES_TOKEN, DES_TOKEN_FILE, DES_TOKEN_COMMAND": "the token, a file, or a command; one of them",
    "DES_ORG_ID, DES_CLIENT_ID, DES_CLIENT_SECRET, DES_USERNAME, DES_PASSWORD": "or a login",
    "DES_AUTH_URL": "another auth server for the login",
    "HTTPS_PROXY, NO_PROXY": "the way to DES",
}
_CACHE: Final = {"DESLAUNCH_CACHE_DIR": "where the jobs' parameters are kept"}
_TERMINAL: Final = {"NO_COLOR": "set: no colours on a terminal"}
_SIMULATED: Final = {
    "DESLAUNCH_SIMULATE_TOKENS": "the tokens that are good, with blanks between them",
    "DES_ORG_ID, DES_CLIENT_ID, DES_CLIENT_SECRET, DES_USERNAME, DES_PASSWORD": (
        "the one login that is good"
    ),
}

_FAULTS: Final = {
    "status": "a status, with retryAfter, retryAfterDate and body where given",
    "outage": "from request from to request to: no answer, or a status where given",
    "redirect": "a status 3XX to location",
    "close, reset, hang": "no answer, and nothing was started",
    "close-after-start": "no answer, and the run was started",
    "reset-after-start": "the same, by RST",
    "hang-after-start": "the same, on an open connection",
    "close-after-answer": "a good answer, then the connection is closed",
    "cut-head, cut-body": "a part of the answer; the run was started",
    "stall-body": "the same, on an open connection",
    "garbage, not-json": "an answer that can't be read; the run was started",
    "no-id, other-job": "an answer without the jobRunId, or of another job",
    "huge-body": "a good answer of 2 MiB, or of bytes",
    "latency": "a good answer, seconds later",
    "hold": "no answer until Simulator.release(): for tests in Python",
    "fail-run": "a good answer, and a run that will fail, with the text error",
}
_SELECTORS: Final = {
    "at": "these numbers, a list; they count from 1",
    "every": "every n-th",
    "share": "this share of them, 0 to 1",
    "from, to": "this range of numbers",
    "match": "jobId, or text of the body",
    "on": "startjob (default), queryjobs, queryrunstatus, token or connection",
}

_BUG: Final = {"1": "a bug in deslaunch"}
_USAGE: Final = {"2": "usage or configuration"}
_ASKING: Final = {
    "5": "DES gave no usable answer",
    "6": "credentials refused",
    "129, 130, 143": "interrupted",
}
_LEDGER: Final = {"7": "the ledger is not there, damaged, foreign, or can't be read"}
_TOLD: Final = {"0": "it was told, whatever became of the rows"} | _BUG | _USAGE | _LEDGER


class Page(NamedTuple):
    """What is told of one command.

    Attributes:
        limits: what it does not do, one sentence a line.
        codes: meanings of its exit codes; None where its own section is given with it.
        environment: meanings of the variables that it reads, besides those of its options.
        tables: names and their meanings, under the title of a section of their own.
    """

    limits: tuple[str, ...]
    codes: Mapping[str, str] | None
    environment: Mapping[str, str]
    tables: Mapping[str, Mapping[str, str]] = {}


PAGES: Final[Mapping[str, Page]] = {
    "check": Page(
        (
            "It starts nothing and writes no ledger.",
            "It knows no rule that DES does not declare: DES may refuse a valid row.",
        ),
        {"0": "every row is valid"}
        | _BUG
        | {"2": "usage, configuration, or an invalid row"}
        | _ASKING,
        _TOKEN | _CACHE,
    ),
    "run": Page(
        (
            "It sends nothing while any row is invalid, unless --skip-invalid is given.",
            "It never sends a row again whose run may exist, and never follows a redirect.",
            "It does not wait for the runs to finish, unless --watch is given.",
        ),
        None,
        _TOKEN | _CACHE | _TERMINAL,
    ),
    "resume": Page(
        (
            "It never sends a started row again, and an unknown one only when it is told to.",
            "It does not remember options such as --concurrency: give them again.",
        ),
        None,
        _TOKEN | _CACHE | _TERMINAL,
    ),
    "status": Page(
        ("It asks DES nothing, takes no lock and changes nothing: a launch may go on meanwhile.",),
        _TOLD,
        {},
    ),
    "results": Page(
        ("It asks DES nothing, takes no lock and changes nothing: a launch may go on meanwhile.",),
        _TOLD,
        {},
    ),
    "report": Page(
        ("It asks DES nothing, and the page loads nothing: it may be sent by mail.",), _TOLD, {}
    ),
    "resolve": Page(
        ("It asks DES nothing: it believes what it is told, and sends nothing; resume does.",),
        {"0": "all of it is recorded"}
        | _BUG
        | {"2": "usage or configuration, or the answer was no: nothing was recorded"}
        | _LEDGER,
        {},
    ),
    "jobs": Page(
        ("It starts nothing.",), {"0": "they are listed"} | _BUG | _USAGE | _ASKING, _TOKEN
    ),
    "template": Page(
        ("It starts nothing, and never writes over a file.",),
        {"0": "it is written"} | _BUG | _USAGE | _ASKING,
        _TOKEN,
    ),
    "targets": Page(
        ("It starts nothing, and shows no token.",),
        {"0": "all of them work"} | _BUG | _USAGE | _ASKING,
        _TOKEN,
    ),
    "watch": Page(
        ("It starts nothing, and changes no row's state.", "It fetches no output files."),
        None,
        _TOKEN | _TERMINAL,
    ),
    "simulate": Page(
        ("It runs no job and makes no files: it only answers as DES does.",),
        {"0": "it was ended by a signal"} | _BUG | _USAGE,
        _SIMULATED,
        {"Faults of a script": _FAULTS, "Requests that a fault is for": _SELECTORS},
    ),
    "completion": Page(
        ("It installs nothing: write what it prints where the shell looks for it.",),
        {"0": "the script is printed"} | _BUG | _USAGE,
        {},
    ),
}


def sections(name: str, examples: str, codes: str) -> Iterator[str]:
    """Yield what stands below a command's options, a section each, in click's notation.

    Args:
        name: the command's.
        examples: lines of examples, or nothing.
        codes: the section of exit codes for a page that has none of its own.
    """
    page = PAGES.get(name, Page((), None, {}))

    if page.limits:
        yield _kept("What it does not do", (f"  {limit}" for limit in page.limits))

    if examples:
        yield _kept("Examples", examples.splitlines())

    yield codes if page.codes is None else _kept("Exit codes", _listed(page.codes))

    for title, meanings in page.tables.items():
        yield _kept(title, _table(meanings))

    if page.environment:
        yield _kept("Environment", _entries(page.environment))


def _kept(title: str, lines: Iterator[str] | list[str]) -> str:
    """Return a section whose lines click leaves as they are."""
    return "\n".join(["\b", f"{title}:", *lines])


def _listed(meanings: Mapping[str, str]) -> Iterator[str]:
    return (f"  {code}  {meaning}" for code, meaning in meanings.items())


def _table(meanings: Mapping[str, str]) -> Iterator[str]:
    width = max(map(len, meanings))
    return (f"  {name:{width}}  {meaning}" for name, meaning in meanings.items())


def _entries(meanings: Mapping[str, str]) -> Iterator[str]:
    for names, meaning in meanings.items():
        yield f"  {names}"
        yield f"      {meaning}"
