"""A small version of every attack of tests/torture; ``make torture`` runs the large one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from torture.__main__ import ATTACKS

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("strace") is None, reason="strace makes calls fail"),
]


@pytest.mark.parametrize("name", ATTACKS)
def test_what_is_promised_holds_under(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "torture", "--fast", "--only", name],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parent)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
