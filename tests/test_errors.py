"""The exception tree that the docstring draws, and what errors carry."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

import pytest
from test_readme import section

from deslaunch import errors
from deslaunch.errors import DesError, DeslaunchError
from deslaunch.model import RowProblem, Summary, WatchSummary

SECRET = "eyJhbGciOi.token"
BATCH = Summary(1, 1, 0, 0, 0, 0, 0, 0, 0, 1, 0.0, "night.ledger.jsonl")
SUMMARY = WatchSummary(1, 0, 0, 0, 1, BATCH)
PROBLEM = RowProblem("night.csv", 18, 17, "DBGenFrom", "an integer", "x", "DBGenFrom is no integer")


def drawn_tree() -> dict[str, str | None]:
    """Return each drawn name with its parent: four columns are one generation."""
    path: list[str] = []
    parents: dict[str, str | None] = {}

    for match in re.finditer(r"^ {4}([│├└─ ]*)(\w+)$", errors.__doc__ or "", re.MULTILINE):
        depth, name = len(match[1]) // 4, match[2]
        assert len(match[1]) == 4 * depth, name
        assert name not in parents, name
        path[depth:] = [name]
        parents[name] = path[depth - 1] if depth else None

    return parents


def real_tree() -> dict[str, str | None]:
    """Return each exception class of the module with its parent within the module."""
    classes = [
        member
        for _, member in inspect.getmembers(errors, inspect.isclass)
        if member.__module__ == errors.__name__
    ]
    return {
        cls.__name__: cls.__bases__[0].__name__ if cls is not DeslaunchError else None
        for cls in classes
    }


def test_the_drawing_is_true() -> None:
    assert drawn_tree() == real_tree()


def test_the_drawing_lists_children_under_the_right_rails() -> None:
    drawing = [
        line[4:]
        for line in (errors.__doc__ or "").splitlines()
        if re.fullmatch(r" {4}([│├└─ ]*)(\w+)", line)
    ]
    depths = [len(re.match(r"[│├└─ ]*", line)[0]) for line in drawing]  # type: ignore[index]

    for number, (line, depth) in enumerate(zip(drawing, depths, strict=True)):
        if not depth:
            continue

        following = (later for later in depths[number + 1 :] if later <= depth)
        siblings = next(following, 0) == depth
        assert line[depth - 4 : depth] == ("├── " if siblings else "└── "), line


def test_the_page_says_of_each_class_what_to_do() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (.+?) \| (.+?) \|$", section("The library"), re.MULTILINE)

    assert [name for name, *_ in rows] == list(drawn_tree())
    assert all(len(told) > 5 for _, *both in rows for told in both)


def test_the_page_names_only_what_an_error_has() -> None:
    """The attributes that a row names behind its class are the class's own."""
    rows = re.findall(r"^\| `(\w+)` \| (.+?) \|$", section("The library"), re.MULTILINE)
    errors_by_name = {named(error): error for error in every_error()}
    fields = {name for error in every_error() for name in vars(error)} - {"hint"}

    told = [(name, word) for name, text in rows for word in re.findall(r"`(\w+)`", text)]
    of_fields = [(name, word) for name, word in told if word in fields]

    assert len(of_fields) > 5
    assert [both for both in of_fields if not hasattr(errors_by_name[both[0]], both[1])] == []


WITHOUT_HINT = {
    "Declined",  # whoever said no knows what to do next
    "Interrupted",  # whoever sent the signal knows what to do next
    "Unauthorized",  # the client renews the token; who calls it sees CredentialsRefused
}


def raised_without_hint() -> list[str]:
    """Return where the package makes an error and says nothing of what to do next."""
    found = []

    for path in sorted(Path(errors.__file__).parent.rglob("*.py")):
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
                continue

            if call.func.id in real_tree() and "hint" not in {word.arg for word in call.keywords}:
                found.append(f"{call.func.id} at {path.name}:{call.lineno}")

    return found


def test_whatever_is_raised_says_what_to_do_next() -> None:
    assert [one for one in raised_without_hint() if one.split()[0] not in WITHOUT_HINT] == []
    assert {one.split()[0] for one in raised_without_hint()} == WITHOUT_HINT


def test_a_clause_is_added_behind_the_message() -> None:
    error = errors.NotSent("no way")
    error.add("the schema is old")

    assert str(error) == "no way; the schema is old"


def every_error() -> list[DeslaunchError]:
    return [
        errors.DeslaunchError("m", hint="h"),
        errors.ConfigurationError("m", hint="h"),
        errors.CredentialsRefused("m", hint="h"),
        *(
            cls("m", hint="h", status=503, answer="a", retry_after=1.5, job_run_id="id")
            for cls in (
                errors.DesError,
                errors.NotSent,
                errors.Misconfigured,
                errors.Throttled,
                errors.ServerError,
                errors.Rejected,
                errors.Redirected,
                errors.OutcomeUnknown,
                errors.QueryFailed,
            )
        ),
        errors.Unauthorized("m", generation=3, answer="a"),
        errors.SchemaError("m", hint="h"),
        errors.ManifestError("m", hint="h"),
        errors.InvalidManifest("m", problems=[PROBLEM], count=1, hint="h"),
        errors.ManifestChanged("m", hint="h"),
        errors.ManifestConflict("m", changed=["c"], gone=["g"], new=["n"], hint="h"),
        errors.Declined("m", hint="h"),
        errors.Interrupted("m", hint="h"),
        errors.Unfinished("m", summary=SUMMARY, hint="h"),
        errors.LedgerError("m", hint="h"),
        errors.LedgerExists("m", hint="h"),
        errors.LedgerLocked("m", hint="h"),
        errors.LedgerDamaged("m", offset=4_711, hint="h"),
        errors.LedgerForeign("m", hint="h"),
        errors.LedgerWriteFailed("m", unrecorded=[("k", "id")], hint="h"),
    ]


def named(error: object) -> str:
    return type(error).__name__


def test_every_class_is_tried_below() -> None:
    assert {named(error) for error in every_error()} == set(real_tree())


@pytest.mark.parametrize("error", every_error(), ids=named)
def test_an_error_reads_as_its_message_and_keeps_its_hint(error: DeslaunchError) -> None:
    assert str(error) == "m"
    assert repr(error) == f"{named(error)}('m')"
    assert error.hint == ("" if isinstance(error, errors.Unauthorized) else "h")


@pytest.mark.parametrize("error", every_error(), ids=named)
def test_every_class_says_what_it_means(error: DeslaunchError) -> None:
    assert type(error).__doc__


@pytest.mark.parametrize(
    "cls", [errors.DesError, errors.Rejected, errors.OutcomeUnknown], ids=lambda cls: cls.__name__
)
def test_an_answer_never_gets_into_the_printed_error(cls: type[DesError]) -> None:
    error = cls("DES answered 400", status=400, answer=f"bad token {SECRET}", job_run_id="id")

    assert (error.status, error.answer, error.job_run_id) == (400, f"bad token {SECRET}", "id")
    assert SECRET not in f"{error!s} {error!r} {error.args}"


def test_what_an_error_leaves_out_is_empty() -> None:
    error = errors.NotSent("m")

    assert (error.hint, error.status, error.answer, error.retry_after, error.job_run_id) == (
        "",
        None,
        "",
        None,
        None,
    )


def test_a_refused_token_is_a_401_of_its_generation() -> None:
    error = errors.Unauthorized("m", generation=3, answer="a")

    assert (error.status, error.generation, error.answer) == (401, 3, "a")


def test_errors_keep_what_the_caller_needs() -> None:
    invalid = errors.InvalidManifest("m", problems=[PROBLEM], count=2_000)
    conflict = errors.ManifestConflict("m", changed=["c"], gone=["g"], new=["n"])
    failed = errors.LedgerWriteFailed("m", unrecorded=[("k", "id")])

    assert (invalid.problems, invalid.count) == ((PROBLEM,), 2_000)
    assert (conflict.changed, conflict.gone, conflict.new) == (("c",), ("g",), ("n",))
    assert failed.unrecorded == (("k", "id"),)
    assert errors.LedgerDamaged("m", offset=4_711).offset == 4_711


@pytest.mark.parametrize(
    ("error", "may_be_sent_again"),
    [
        pytest.param(errors.NotSent("m"), True, id="not-sent"),
        pytest.param(errors.Misconfigured("m"), True, id="misconfigured"),
        pytest.param(errors.Throttled("m"), True, id="throttled"),
        pytest.param(errors.ServerError("m"), False, id="server-error"),
        pytest.param(errors.Rejected("m"), False, id="rejected"),
        pytest.param(errors.OutcomeUnknown("m"), False, id="unknown"),
    ],
)
def test_what_started_nothing_is_told_by_class(error: DesError, may_be_sent_again: bool) -> None:
    assert isinstance(error, errors.NotSent | errors.Throttled) is may_be_sent_again
