"""``python -m deslaunch``."""

from deslaunch.cli import run

run()
