"""A local DES on real sockets, with scripted faults: the judge of every end-to-end test.

::

    async with Simulator(script={"faults": [{"fault": "reset", "at": [3]}]}) as simulator:
        ...  # POST to simulator.base_url
        assert len(simulator.runs) == 2

It imports no other module of deslaunch, so that both sides can't be wrong together: paths,
parameter rules, token rules and the HTTP parser are written a second time, from the service's
description alone. It speaks HTTP/1.1 by hand, because a fault such as half a status line is
exact to the byte, and no HTTP framework can send one.

========== ====================================================================
module     role
========== ====================================================================
server     :class:`Simulator`: the way of a request through all the others
connection one client: its requests in their order, each ending to the packet
service    the four endpoints, without sockets and without faults
tokens     who may call, and for how many starts
runs       the log of runs, on disk before any client hears of them
jobs       the jobs file, and what a job's template takes
script     fault scripts: JSON in, :class:`Script` out
faults     which request meets which fault, and what a fault makes of an answer
http       requests out of bytes, answers into bytes
files      what may stand in a JSON file
errors     every exception
endpoints  names and paths
========== ====================================================================

The way of a request::

    bytes ──▶ RequestParser ──▶ Simulator.respond ──▶ Delivery ──▶ bytes, then keep, FIN,
              (no I/O)            │ 1 counts it                     RST or silence
                                  │ 2 picks the first fault that matches
                                  │ 3 lets the service serve it; a started run is logged now
                                  │ 4 waits for the scripted latency
                                  └ 5 spoils the answer as the fault says

The log
-------

Every run is appended to a JSONL file before its answer is made, and before any latency: a
client that gives up has started a run all the same. A request that was read whole is served
even if its client hangs up. The log is not synced: it survives a killed process, not a power
cut.

Fault scripts
-------------

JSON; every key may be left out::

    {"seed": 7, "latency": 0.02,
     "tokens": {"expireAfter": 700, "which": "first"},
     "faults": [{"fault": "status", "status": 503, "share": 0.05},
                {"fault": "close-after-start", "at": [17, 40]}]}

================== ============================================================
key                meaning
================== ============================================================
seed               a whole number that moves every ``share``; default 0
latency            seconds that every answer waits; default 0
finishAfter        seconds from a run's start to its end; default 0
tokens.expireAfter started runs that a token is good for; then it gets 401
tokens.which       ``first`` (default): only the first token; ``all``: every one
faults             the first whose selectors all hold is applied, and no other
================== ============================================================

Requests are numbered from 1 in the order in which they are read, each endpoint on its own.
Nothing depends on time or interleaving: ``share`` is a hash of the seed, the fault's place in
the list and the request's number.

============ ==================================================================
selector     holds for
============ ==================================================================
on           ``startjob`` (default), ``queryjobs``, ``queryrunstatus``,
             ``token``; ``connection``: a new client, before a byte is read
             (close, reset and hang only)
at           these request numbers, a list
every        every n-th request
share        this share of the requests, 0 to 1
from, to     this range of request numbers, both inclusive
match.jobId  starts of this job
match.text   requests whose body has these characters in it
============ ==================================================================

Kinds that serve nothing:

============ ==================================================================
fault        what the client gets
============ ==================================================================
status       the ``status``, with ``retryAfter`` (seconds, or any text),
             ``retryAfterDate`` (seconds from now, sent as a date), ``body``
outage       ``from``, ``to`` and ``status``: the same; without ``status``: FIN
redirect     ``status`` (default 302) and ``location``
close        FIN
reset        RST
hang         nothing, on an open connection
============ ==================================================================

Kinds that serve the request, log its run, and then spoil the answer:

================== ============================================================
fault              what the client gets
================== ============================================================
close-after-start  FIN
reset-after-start  RST
hang-after-start   nothing, on an open connection
close-after-answer the answer, then FIN
cut-head           ``bytes`` of the head (default half, never all), then FIN
cut-body           the head, ``bytes`` of the body, then FIN
stall-body         the same, on a connection that stays open
garbage            no HTTP, then FIN
not-json           200 and an HTML page, or ``body``
no-id              200 without its jobRunId
other-job          200 with another jobId
huge-body          a valid answer, ``bytes`` long (default 2 MiB)
latency            the answer, after ``seconds`` more
hold               the answer, after :meth:`Simulator.release`
fail-run           the answer; the run's status becomes failed, with ``error``
================== ============================================================

``seconds`` delays any of them further. ``"start": true`` makes a status, outage, redirect,
garbage or not-json serve the request first, ``false`` not. A request that is refused with
400 or 401 gets its refusal, whatever a serving kind would do.
"""

from deslaunch.simulator.endpoints import (
    CONNECTION,
    QUERY_JOBS,
    QUERY_RUN_STATUS,
    START_JOB,
    TOKEN,
)
from deslaunch.simulator.errors import (
    BadRequest,
    FaultScriptError,
    JobsFileError,
    SimulatorError,
)
from deslaunch.simulator.faults import OTHER_JOB, Fault, Script
from deslaunch.simulator.http import Answer, Delivery, End, Request, RequestParser
from deslaunch.simulator.jobs import (
    CSV_SALES_EXPORT,
    DEFAULT_JOBS,
    POS_USAGE_EXPORT,
    load_jobs,
)
from deslaunch.simulator.runs import Run
from deslaunch.simulator.script import load_script, read_script
from deslaunch.simulator.server import Simulator, serve

__all__ = [
    "CONNECTION",
    "CSV_SALES_EXPORT",
    "DEFAULT_JOBS",
    "OTHER_JOB",
    "POS_USAGE_EXPORT",
    "QUERY_JOBS",
    "QUERY_RUN_STATUS",
    "START_JOB",
    "TOKEN",
    "Answer",
    "BadRequest",
    "Delivery",
    "End",
    "Fault",
    "FaultScriptError",
    "JobsFileError",
    "Request",
    "RequestParser",
    "Run",
    "Script",
    "Simulator",
    "SimulatorError",
    "load_jobs",
    "load_script",
    "read_script",
    "serve",
]
