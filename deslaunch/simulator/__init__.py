"""A local DES on real sockets, with scripted faults: the judge of every end-to-end test.

::

    async with Simulator(script={"faults": [{"fault": "reset", "at": [3]}]}) as simulator:
        ...  # POST to simulator.base_url
        assert len(simulator.runs) == 2

    with start_blocking_portal() as portal:  # of anyio: in a thread of its own
        with portal.wrap_async_context_manager(Simulator(log="runs.jsonl")) as simulator:
            ...  # run a command against simulator.base_url

It imports no other module of deslaunch, so that both sides can't be wrong together: paths,
parameter rules, token rules and the HTTP parser are written a second time, from the service's
description alone. It speaks HTTP/1.1 by hand, because a fault such as half a status line is
exact to the byte, and no HTTP framework can send one.

======= ========================================================================
module  role
======= ========================================================================
server  :class:`Simulator`: the way of a request through all the others
service the four endpoints without sockets and faults: jobs, tokens, the log of runs
faults  fault scripts: which request meets which fault, and what it makes of a response
http    requests out of bytes, responses into bytes
======= ========================================================================

The log
-------

Every run is appended to a JSONL file before its response is made, and before any latency: a
client that gives up has made a run all the same. A request that was read whole is served even
if its client hangs up. The log is not synced: it survives a killed process, not a power cut.
A line says ``jobRunId``, ``jobId``, ``parameters``, ``request`` (the number of the start request,
from 1), ``utc`` and ``body`` (the request's, as it was sent).

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
latency            seconds that every response waits; default 0
finishAfter        seconds from a run's start to its end; default 0
clockAhead         seconds that DES's clock (``Date``, createdUtc …) is ahead
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

Kinds that make no run:

============ ==================================================================
fault        what the client gets
============ ==================================================================
status       the ``status``, with ``retryAfter`` (seconds, any text, or a list:
             a header each), ``retryAfterDate`` (seconds from now, sent as a
             date), ``body``, ``headers``
outage       ``from``, ``to`` and ``status``: the same; without ``status``: FIN
redirect     ``status`` (default 302) and ``location``
close        FIN
reset        RST
hang         nothing, on an open connection
============ ==================================================================

Kinds that serve the request, log its run, and then spoil the response:

==================== ==========================================================
fault                what the client gets
==================== ==========================================================
close-after-start    FIN
reset-after-start    RST
hang-after-start     nothing, on an open connection
close-after-response a good response, and FIN ``after`` seconds (default 0)
second-response      a good response, and ``after`` seconds (default 0.02) later
                     another one, whose jobRunId no run has
cut-head             ``bytes`` of the head (default half, never all), then FIN
cut-body             the head, ``bytes`` of the body, then FIN
stall-body           the same, on a connection that stays open
garbage              no HTTP, then FIN
raw                  ``body``, a byte a character (U+0000 to U+00FF), with
                     ``{jobId}`` and ``{jobRunId}`` filled in, and ``then``:
                     ``keep`` (default), ``close``, ``reset`` or ``hang``
not-json             200 and an HTML page, or ``body``
no-id                200 without its jobRunId
leave-out            200 without these ``keys``
other-job            200 with another jobId
other-run            200 with the jobRunId of the first run that was ever made
huge-body            a valid response, ``bytes`` long (default 2 MiB)
gzip                 a valid response, packed: ``encoding`` is ``gzip`` (default),
                     ``deflate``, or ``none`` for gzip that no header names;
                     ``bytes`` long when it is unpacked
bom                  U+FEFF before the JSON
headers              a good response with more ``headers``: name to text or list
long-header          a good response with a header of ``bytes`` (default 9,000)
latency              a good response, after ``seconds`` more
hold                 a good response, after :meth:`Simulator.release`
fail-run             a good response; the run's status becomes failed, with
                     ``error``
==================== ==========================================================

``seconds`` delays any of them further. While a connection waits for ``after``, it serves nothing.
``"start": true`` makes a status, outage, redirect, garbage, raw or not-json serve the request
first, ``false`` not. A request that is refused with 400 or 401 gets its refusal, whatever a
serving kind would do.
"""

from deslaunch.simulator.faults import OTHER_JOB, SimulatorError, load_json
from deslaunch.simulator.server import Simulator, serve
from deslaunch.simulator.service import CSV_SALES_EXPORT, DEFAULT_JOBS, POS_USAGE_EXPORT, Run

load_jobs = load_script = load_json
"""Read a file for :class:`Simulator`, which checks it."""

__all__ = [
    "CSV_SALES_EXPORT",
    "DEFAULT_JOBS",
    "OTHER_JOB",
    "POS_USAGE_EXPORT",
    "Run",
    "Simulator",
    "SimulatorError",
    "load_jobs",
    "load_script",
    "serve",
]
