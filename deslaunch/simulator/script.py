"""Fault scripts: JSON in, :class:`Script` out. Pure but for :func:`load_script`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

from deslaunch.simulator import files
from deslaunch.simulator.endpoints import CONNECTION, ENDPOINTS
from deslaunch.simulator.errors import FaultScriptError
from deslaunch.simulator.faults import CONNECTION_KINDS, KINDS, Fault, Kind, Script
from deslaunch.simulator.files import Rule, Shape, is_count, is_list_of, is_number, one_of

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

_SELECTORS: Final = frozenset({"at", "every", "share", "from", "to", "on", "match"})

_FAULT_RULES: Final[Mapping[str, Rule]] = {
    "fault": one_of(KINDS),
    "on": one_of([*ENDPOINTS.values(), CONNECTION]),
    "at": Rule(
        "a list of whole numbers from 1, not empty",
        lambda v: bool(v) and is_list_of(is_count)(v),
    ),
    "every": files.COUNT,
    "share": Rule("a number from 0 to 1", lambda v: is_number(v) and 0 <= v <= 1),
    "from": files.COUNT,
    "to": files.COUNT,
    "match": files.OBJECT,
    "start": files.TRUTH,
    "status": Rule("a status from 200 to 599", lambda v: is_count(v) and 200 <= v <= 599),  # noqa: PLR2004
    "retryAfter": Rule(
        "a number of seconds, or a string", lambda v: is_number(v) or isinstance(v, str)
    ),
    "retryAfterDate": Rule("a number of seconds", is_number),
    "seconds": files.SECONDS,
    "bytes": Rule("a whole number from 0", lambda v: v == 0 or is_count(v)),
    "location": files.TEXT,
    "body": files.TEXT,
    "error": files.TEXT,
}

_SCRIPT_SHAPE: Final = Shape(
    FaultScriptError,
    {
        "seed": files.WHOLE,
        "latency": files.SECONDS,
        "finishAfter": files.SECONDS,
        "tokens": files.OBJECT,
        "faults": Rule("a list of objects", is_list_of(files.is_a(dict))),
    },
)
_TOKENS_SHAPE: Final = Shape(
    FaultScriptError,
    {"expireAfter": files.COUNT, "which": one_of(["first", "all"])},
    required={"expireAfter"},
)
_MATCH_SHAPE: Final = Shape(FaultScriptError, {"jobId": files.GUID_TEXT, "text": files.TEXT})


def load_script(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the JSON of a fault script, checked; the package's docstring tells its format.

    Raises:
        FaultScriptError: it is malformed; says where, what was expected and what stands there.
        OSError: it can't be read.
    """
    script: dict[str, Any] = files.load(path, FaultScriptError)
    read_script(script)
    return script


def read_script(script: Any) -> Script:
    """Return what a fault script's JSON says.

    Raises:
        FaultScriptError: it is malformed.
    """
    top = _SCRIPT_SHAPE.check(script, "")
    tokens = _TOKENS_SHAPE.check(top["tokens"], "tokens") if "tokens" in top else {}
    return Script(
        seed=top.get("seed", 0),
        latency=top.get("latency", 0.0),
        finish_after=top.get("finishAfter", 0.0),
        expire_after=tokens.get("expireAfter"),
        expire_all=tokens.get("which") == "all",
        faults=tuple(_read_fault(i, entry) for i, entry in enumerate(top.get("faults", []))),
    )


def _read_fault(index: int, entry: dict[str, Any]) -> Fault:
    where = f"faults[{index}]"
    kind = _kind_of(entry, where)
    match = _MATCH_SHAPE.check(entry.get("match", {}), f"{where}.match")
    retry_after = entry.get("retryAfter")
    given: dict[str, Any] = {
        "on": entry.get("on"),
        "at": frozenset(entry["at"]) if "at" in entry else None,
        "every": entry.get("every"),
        "share": entry.get("share"),
        "first": entry.get("from"),
        "last": entry.get("to"),
        "job_id": match["jobId"].lower() if "jobId" in match else None,
        "text": match["text"].encode() if "text" in match else None,
        "status": entry.get("status"),
        "retry_after": None if retry_after is None else str(retry_after),
        "retry_after_date": entry.get("retryAfterDate"),
        "seconds": entry.get("seconds"),
        "size": entry.get("bytes"),
        "location": entry.get("location"),
        "body": entry.get("body"),
        "error": entry.get("error"),
    }
    return Fault(
        entry["fault"],
        index,
        start=entry.get("start", kind.start),
        **{name: value for name, value in given.items() if value is not None},
    )


def _kind_of(entry: dict[str, Any], where: str) -> Kind:
    name = entry.get("fault")

    if not isinstance(name, str) or name not in KINDS:
        raise FaultScriptError(f"{where}.fault", expected=_FAULT_RULES["fault"].expected, got=name)

    kind = KINDS[name]
    keys = {"fault", "seconds"} | _SELECTORS | kind.needs | kind.takes
    rules = {key: rule for key, rule in _FAULT_RULES.items() if key in keys}
    Shape(FaultScriptError, rules, kind.needs).check(entry, where)

    if entry.get("on") == CONNECTION and name not in CONNECTION_KINDS:
        expected = one_of(CONNECTION_KINDS).expected
        raise FaultScriptError(f"{where}.fault", expected=f"{expected} on a connection", got=name)

    if entry.get("from", 1) > entry.get("to", math.inf):
        expected = f"a number from {entry['from']}, where the fault begins"
        raise FaultScriptError(f"{where}.to", expected=expected, got=entry["to"])

    return kind
