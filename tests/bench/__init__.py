"""How fast deslaunch is, beside what else sends many requests. ``python -m bench --help``.

========= =========================================================================
module    role
========= =========================================================================
server    nginx with Lua: one worker that responds to starts and counts them
ground    the rows, the schema, the environment and the files that all contenders share
process   one or more processes side by side: seconds, CPU time, peak memory
bare      a contender: the fastest loop that aiohttp and uvloop allow
naive     a contender: the loop that one writes first
rivals    all contenders, each as the commands that it is
race      contenders in turn, round by round
memory    peaks of resident memory, and rates, of a large batch
figures   what was measured, by name, and its median
========= =========================================================================

A benchmark is no test: nothing here fails because something is slow.
"""
