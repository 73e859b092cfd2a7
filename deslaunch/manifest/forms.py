"""The quick way of plain rows: read without a second look, and checked by their form.

The rows of one job that name the same parameters in the same order are one *form*, compiled once,
from a row that the careful way (``rows`` and ``schema``) has found valid. Only the texts differ
from row to row, so one pattern holds them all, and body and row are written by a template.

Nothing is refused here. What is not surely valid by its form is None, and goes the careful way,
which alone knows every rule and names every problem; a plain row is to the byte what that way
makes of it.
"""

import re
from collections.abc import Callable, Mapping
from operator import itemgetter
from typing import Any, Final, NamedTuple

import orjson

from deslaunch.des import wire
from deslaunch.manifest.rows import RESERVED, RowRules, dump_row, lower_guid
from deslaunch.manifest.schema import KINDS, Body, Schema
from deslaunch.model import PlainRow

_MOST_FORMS: Final = 1_000  # a file may have a form for every row
_MARK: Final = "\ufdd0"  # stands for a text in a template: a character that is none
_RESERVED: Final = frozenset(RESERVED)

# Printable ASCII that needs neither an escape nor a second look; a new key holds no ~.
_is_plain_name = re.compile(r"[!#-\[\]-}](?:[ !#-\[\]-}]{0,126}[!#-\[\]-}])?").fullmatch
_TYPED: Final = {dict}
_BARE: Final = {str}
_INTEGERS: Final = {int}
_TYPES: Final = frozenset(wire.TYPE_NAMES)
_type_and_text = itemgetter("type", "valueStringEncoded")


def read_line(line: bytes, number: int, rules: RowRules, at: int) -> PlainRow | None:
    """Return the row of a line of JSONL of which orjson is sure to lose nothing, or None.

    orjson keeps the last of two members of one name. But no name is given twice where a line has
    just the quotes that its object's names and texts need: a dropped one would have two more. And
    it makes floats of long integers, which are not plain, and 0 of -0, which is looked for.
    """
    types: tuple[int, ...] = ()

    try:
        said = orjson.loads(line)
        parameters = said.pop("parameters")
        texts: Any = parameters.values()
        strings = 1 + 2 * (len(said) + len(parameters))
        kinds = set(map(type, texts))

        if kinds == _TYPED:
            types, texts = zip(*map(_type_and_text, texts))  # noqa: B905  # all are pairs
            strings += 2 * len(parameters)

            if set(map(type, types)) != _INTEGERS or not _TYPES.issuperset(types):
                return None

            kinds = set(map(type, texts))
        elif int in kinds and not (0 in texts and b"-0" in line):
            strings -= list(map(type, texts)).count(int)
            texts = map(str, texts)
            kinds.remove(int)

        if not kinds <= _BARE or line.count(b'"') != 2 * strings or b"\\" in line:
            return None

        if "" in parameters or not said.keys() <= _RESERVED or None in said.values():
            return None

        return plain_row(number, at, said, tuple(parameters), types, tuple(texts), rules)
    except (AttributeError, KeyError, TypeError, ValueError):  # not of this form at all
        return None


def plain_row(
    number: int,
    line: int,
    said: Mapping[str, str],
    names: tuple[str, ...],
    types: tuple[int, ...],
    texts: tuple[str, ...],
    rules: RowRules,
) -> PlainRow | None:
    """Return the row that has ``said`` (key, target and jobId, each optional), or None."""
    key, target, job_id = said.get("key"), said.get("target"), said.get("jobId")
    job_id = rules.job_id if job_id is None else lower_guid(job_id)

    if job_id is None or not (key is None or _is_plain_name(key)):
        return None

    if not (target is None or _is_plain_name(target)):
        return None

    return PlainRow(number, line, key, target or rules.target, job_id, names, types, texts)


class _Form(NamedTuple):
    match: Callable[[str], object]  # of the texts, with NULs between
    body: str  # with a %s for each text
    says: str  # with one for the key too


class Forms:
    """The forms of one batch's rows, compiled as their first rows come."""

    def __init__(self) -> None:
        self._forms: dict[tuple[object, ...], _Form | None] = {}

    def check(self, row: PlainRow, schema: Schema) -> tuple[Body, str] | None:
        """Return what is sent for a row and what is kept of it, or None."""
        form = self._forms.get(_shape(row, schema))

        if form is None or not form.match("\0".join(row.texts)):
            return None

        told = row.texts if row.key is None else (row.key, *row.texts)
        return Body((form.body % row.texts).encode(), auto=False), form.says % told

    def learn(self, row: PlainRow, schema: Schema) -> None:
        """Compile the form of a row that the careful way found valid by this schema."""
        shape = _shape(row, schema)

        if shape not in self._forms and len(self._forms) < _MOST_FORMS:
            self._forms[shape] = _compile(row, schema)


def _shape(row: PlainRow, schema: Schema) -> tuple[object, ...]:
    """Return what the rows of a form share.

    The types that a row declares are among it: where the job declares none, they are sent, and
    they are kept in any case. So is the schema, which a newer one may replace.
    """
    return schema, row.target, row.key is None, row.names, row.types


def _compile(row: PlainRow, schema: Schema) -> _Form | None:
    """Return the form of a valid row; None where more than texts may differ from row to row."""
    numbers = {parameter.name: parameter.type for parameter in schema.job.parameters}
    patterns = [KINDS[numbers[name]].plain for name in row.names if numbers[name] in KINDS]

    # Each text of an unknown type is warned of.
    if len(patterns) < len(row.names) or _MARK in row.target + "".join(row.names):
        return None

    marked = row._replace(key=row.key and _MARK, texts=(_MARK,) * len(row.texts)).row()
    values = {name: wire.parameter_value(numbers[name], _MARK) for name in row.names}
    body, says = wire.start_job_body(row.job_id, values).decode(), dump_row(marked)
    body, says = (text.replace("%", "%%").replace(_MARK, "%s") for text in (body, says))
    return _Form(re.compile("\0".join(patterns)).fullmatch, body, says)
