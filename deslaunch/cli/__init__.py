"""The command line: argv → exit code.

========== ====================================================================
module     role
========== ====================================================================
main       argv → command → exit code; the commands by name
options    options and what was given of them
targets    file, environment and options → the clients of DES
launching  ``check``, ``run``, ``resume``, ``watch``
inspecting the other commands: about a ledger, or before there is one
render     every sentence that a person reads, and what events add up to
terminal   streams, questions, signals, the event loop, the block that is redrawn
========== ====================================================================

A command's module is imported when the command is asked for, and what is heavy when it runs.
"""
