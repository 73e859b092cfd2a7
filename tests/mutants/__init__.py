"""Mutation testing: does a test fail where the code is wrong? ``python -m mutants --help``.

=========  ===================================================================
module     role
=========  ===================================================================
operators  how code is made wrong: mutmut's operators, and some of our own
mutant     one module with one fault; all that a source has
copies     a copy of the project to break, and the process that works in it
bench      in that process: runs chosen tests against the copy as it is
trial      every mutant of a module against the tests that run its lines
survivors  those that may live, each with its reason
tally      one line of the table
=========  ===================================================================
"""
