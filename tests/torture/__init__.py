"""Attacks on deslaunch, judged by the simulator's own log. ``python -m torture --help``.

======= =====================================================================
module  role
======= =====================================================================
tally   one line of the table: what an attack did, and what did not hold
kills   killed at random, at every write and sync, and during an import
disks   full and failing disks, and a ledger that is deleted under a launch
copies  older copies of the ledger, put back or at another place
damage  spoiled bytes, and files that are no ledgers
clocks  clocks that jump by days in mid-launch, and that differ
outage  servers that are away for a while
hell    all of it at once, and people at work
order   no start leaves before its intent is synced, read from system calls
power   power cuts, and a -wal that is cut at any byte
hostile servers and manifests that mean harm
signals interrupts
streams streams that are closed, full or unread, and terminals that hang up
shared  several launchers on one batch in PostgreSQL, and its server
soak    a million rows, and a kill a minute, against nginx
breaks  builds that are broken on purpose, which tests must notice
======= =====================================================================

``make torture`` runs the large version of each but the soak, the tests a small one; ``make torture
TORTURE='--only soak'`` runs that, and ``make torture TORTURE=--breaks`` tries the broken builds.
"""
