"""A manifest to begin with: one example row of a job, and what each of its parameters takes.

Pure. The text is a manifest that ``check`` accepts as it is. Only what a job requires has a value:
DES may refuse a row that says both of what excludes each other, and declares no such rule. What
can't stand in it, since neither form has comments, is told beside it.
"""

from collections.abc import Iterator
from typing import Final

import orjson

from deslaunch.des import wire
from deslaunch.manifest.readers import column_of, csv_line
from deslaunch.manifest.schema import KINDS, UNKNOWN_KIND
from deslaunch.model import DEFAULT_TARGET, Format, Job, JobParameter

KEY: Final = "example-1"


def manifest_of(job: Job, form: Format, target: str = DEFAULT_TARGET) -> str:
    """Return a manifest of one example row, in which every required parameter has a value.

    Args:
        job: whose parameters are the columns of CSV, in their order.
        form: of the manifest.
        target: named in the row unless it is the default one.
    """
    said = {"key": KEY, "jobId": job.job_id}

    if target != DEFAULT_TARGET:
        said["target"] = target

    values = {
        parameter.name: KINDS.get(parameter.type, UNKNOWN_KIND).example
        for parameter in job.parameters
        if parameter.required
    }

    if form == "csv":
        header = [*said, *(column_of(parameter.name) for parameter in job.parameters)]
        cells = [values.get(parameter.name, "") for parameter in job.parameters]
        return (csv_line(header) + csv_line([*said.values(), *cells])).decode()

    numbers = {p.name for p in job.parameters if p.type in (wire.INTEGER, wire.DECIMAL)}
    parameters = {
        name: orjson.Fragment(value) if name in numbers else value for name, value in values.items()
    }
    return orjson.dumps({**said, "parameters": parameters}).decode() + "\n"


def explanation(job: Job, form: Format) -> Iterator[str]:
    """Yield what a person must know to fill the manifest in, a line at a time.

    Args:
        job: the job.
        form: of the manifest: it says how null, the auto value and nothing are written.
    """
    yield f"job {job.job_id}{f', {job.name}' if job.name else ''}: one row starts one run"
    yield "  key: names the row in the ledger and the results; choose your own, or leave it out"

    for parameter in job.parameters:
        yield f"  {_explained(parameter, form)}"

    if not job.parameters:
        yield "  this job takes no parameters"

    if sum(not parameter.required for parameter in job.parameters) > 1:
        yield "  some may exclude each other, as a range and a date do: DES then refuses the row"


def _explained(parameter: JobParameter, form: Format) -> str:
    null, auto = (r"\N", r"\A") if form == "csv" else ("null", '{"auto": true}')
    kind = KINDS.get(parameter.type, UNKNOWN_KIND)
    ways = [kind.noun if kind.noun == "a text" else f"{kind.noun} such as {kind.example}"]

    if parameter.type not in (None, *KINDS):
        ways = [f"a text that DES reads as its type {parameter.type}"]

    if parameter.nullable:
        ways.append(null if null == "null" else f"{null} for null")

    if parameter.supports_auto:
        ways.append(f"{auto} for what follows from the job's earlier runs")

    need = "required" if parameter.required else "left out: the job's default is used"
    told = f" ({parameter.description})" if parameter.description else ""
    name = column_of(parameter.name) if form == "csv" else parameter.name
    return f"{name}: {', or '.join(ways)}; {need}{told}"
