"""Attacks on deslaunch, judged by the simulator's own log. ``python -m torture --help``.

========= =========================================================================
module    role
========= =========================================================================
tally     one line of the table: what an attack did, and what did not hold
witness   a second reading of ledgers, and the judgement over ledger and log
arena     one batch under attack: its files, its service, its processes
victim    a launcher that dies inside a write, or with the disk's cache
kills     killed at every write and sync, by power cuts, and at random
disks     full, failing and damaged disks
signals   interrupts, hang-ups and closed pipes
hell      every fault of the simulator at once
outage    what a service sees that is down for half a minute
hostile   servers that answer to do harm
fuzz      manifests that are made to break their readers
========= =========================================================================
"""
