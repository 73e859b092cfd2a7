"""Promise: in a pod without a volume, killed and started again, no row is sent twice.

Where the tests run as root a pod is a real one to a process: every file system is read-only, the
user has no name and no rights. Elsewhere it has no home, and a folder that it can't write to.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest
import yaml  # type: ignore[import-untyped]  # one call, of which nothing is known
from judge import read_log
from postgres import PASSWORD
from stage import DESLAUNCH, LIMIT, POS_USAGE, TOKEN, ended

if TYPE_CHECKING:
    from collections.abc import Mapping

    from stage import Workplace

pytestmark = pytest.mark.slow

SAMPLE: Final = Path(__file__).parent.parent / "samples" / "kubernetes.yaml"
NIGHT: Final = SAMPLE.with_name("night.csv")
ROWS: Final = 2000
SLOTS: Final = 16
READ_ONLY: Final = """
while read -r _ place _; do mount -o remount,bind,ro "$place" 2> /dev/null; done < /proc/self/mounts
! touch "$0" 2> /dev/null || exit 99
exec setpriv --reuid 65532 --regid 65532 --clear-groups --no-new-privs \\
  --bounding-set=-all,+dac_read_search --inh-caps=-all,+dac_read_search \\
  --ambient-caps=-all,+dac_read_search "$@"
"""
"""The capability stands for an image whose files everybody may read."""


class Pod:
    """Runs deslaunch as a container of a pod does.

    Args:
        place: whose simulator is the DES.
        environment: beside what a pod always has; there is no HOME.
    """

    def __init__(self, place: Workplace, environment: Mapping[str, str]) -> None:
        self._place = place
        self._environment = {
            "PATH": f"{Path(DESLAUNCH).parent}{os.pathsep}{os.defpath}",
            "DES_BASE_URL": place.simulator.base_url,
            "DES_TOKEN": TOKEN,
            "PYTHONPATH": os.environ.get("PYTHONPATH", ""),  # where deslaunch may be
            "PGPASSWORD": PASSWORD,
            **environment,
        }

    def start(self, *command: str) -> subprocess.Popen[str]:
        """Start a command with read-only files around it."""
        process = subprocess.Popen(
            [*self._wrap(), *command],
            cwd="/",
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._place.processes.append(process)
        return process

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        return ended(self.start(*command))

    def _wrap(self) -> list[str]:
        if not can_be_read_only():
            return []

        probe = self._place.folder / "probe"
        probe.touch()
        return ["unshare", "--mount", "--propagation=private", "sh", "-c", READ_ONLY, str(probe)]


@cache
def can_be_read_only() -> bool:
    """Return True if a process can have file systems of its own."""
    if os.geteuid() or not (shutil.which("unshare") and shutil.which("setpriv")):
        return False

    return subprocess.run(["unshare", "--mount", "true"], check=False).returncode == 0


@pytest.fixture
def pod(place: Workplace) -> Pod:
    if not can_be_read_only():
        pytest.skip("only root can make file systems read-only")

    return Pod(place, {})


def spec_of_sample() -> Any:
    """Return the specification of the sample's Job."""
    return yaml.safe_load(SAMPLE.read_text("utf-8"))["spec"]


def test_the_pods_of_the_sample_may_be_killed(database: str, place: Workplace) -> None:
    spec = spec_of_sample()
    [container] = spec["template"]["spec"]["containers"]
    environment = {one["name"]: one["value"] for one in container["env"]}
    environment |= {"DESLAUNCH_LEDGER": database, "DES_BASE_URL": place.simulator.base_url}
    pod = Pod(place, environment)
    shutil.copy(NIGHT, place.folder)
    command = [
        word.replace("/manifest/", f"{place.folder}/")
        for word in [*container["command"], *container["args"]]
    ]

    pods = [pod.start(*command) for _ in range(spec["parallelism"])]
    assert place.wait_for_runs(pods[0], ROWS // 4)
    pods[0].kill()
    assert pods[0].wait(LIMIT) == -signal.SIGKILL
    pods[0].communicate()
    pods[0] = pod.start(*command)
    codes = {ended(one).returncode for one in pods}

    [ledger] = [word for word in command if word.startswith("--ledger=")]
    states = Counter(
        json.loads(line)["state"]
        for line in place.run(
            *("results", f"{database}{ledger.removeprefix('--ledger=')}", "--format", "jsonl")
        ).stdout.splitlines()
    )
    starts = Counter(json.dumps([run["jobId"], run["parameters"]]) for run in read_log(place.log))

    assert max(starts.values()) == 1  # no two rows of the night say the same
    assert states["started"] + states["unknown"] == ROWS
    assert states["unknown"] <= SLOTS
    assert codes == ({4} if states["unknown"] else {0})


def test_the_sample_is_a_pod_as_these_tests_make_it() -> None:
    spec = spec_of_sample()
    pod = spec["template"]["spec"]
    [container] = pod["containers"]
    drain = next(word for word in container["args"] if word.startswith("--drain-timeout="))

    assert pod["securityContext"]["runAsNonRoot"]
    assert container["securityContext"]["readOnlyRootFilesystem"]
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert [set(volume) for volume in pod["volumes"]] == [{"name", "configMap"}]
    assert pod["terminationGracePeriodSeconds"] > int(drain.partition("=")[2])
    assert spec["parallelism"] == spec["completions"]
    assert pod["restartPolicy"] == "Never"  # as podFailurePolicy wants it


def test_a_manifest_of_many_rows_is_checked(pod: Pod, place: Workplace) -> None:
    lines = (f"row-{n},{POS_USAGE},{n}\n" for n in range(1, 100_001))
    (place.folder / "big.csv").write_text("key,jobId,DBGenFrom\n" + "".join(lines))

    checked = pod.run("deslaunch", "check", f"{place.folder}/big.csv")

    assert (checked.returncode, checked.stdout) == (0, ""), checked.stderr
    assert checked.stderr.endswith("100,000 rows: 100,000 valid, 0 invalid\n")


def test_a_preview_of_a_manifest_says_what_it_lacks(
    pod: Pod, database: str, place: Workplace
) -> None:
    manifest, ledger = str(place.manifest(5)), f"{database}#night"
    refused = pod.run("deslaunch", "run", manifest, "--dry-run")
    begun = pod.run("deslaunch", "run", manifest, "--ledger", ledger, "--limit", "2", "--yes")
    shown = pod.run("deslaunch", "resume", ledger, "--dry-run")

    assert refused.returncode == 2
    assert "TMPDIR" in refused.stderr
    assert (begun.returncode, len(place.simulator.runs)) == (5, 2)
    assert (shown.returncode, len(shown.stdout.splitlines())) == (0, 3)


def test_where_no_file_can_be_written_runs_that_were_not_recorded_are_told_without(
    pod: Pod,
) -> None:
    code = (
        "from deslaunch.launch.launcher import _write_unrecorded as write;"
        "print(write([('row-1', '00000000-0000-4000-8000-000000000001')]))"
    )
    written = pod.run(sys.executable, "-c", code)

    assert (written.stdout, written.stderr) == ("no file, since none can be written\n", "")
