#!/usr/bin/env python3
"""Write how a launch ended as a file for the textfile collector of Prometheus's node exporter.

    deslaunch run night.csv --yes --on-end 'samples/on_end_prometheus.py /var/lib/node/night.prom'

An alarm may ask for deslaunch_exit_code != 0, or time() - deslaunch_ended_seconds > 90000.
"""

import json
import sys
import time
from pathlib import Path

COUNTS = ("started", "failed", "rejected", "unknown", "invalid", "withdrawn", "pending")


def main(path: Path) -> None:
    """Replace the file."""
    told = json.load(sys.stdin)
    batch = told.get("batch", told)  # of a watch it is inside
    lines = [f"deslaunch_exit_code {told['exitCode']}"]
    lines += [f"deslaunch_ended_seconds {time.time():.0f}"]
    lines += [f'deslaunch_rows{{state="{name}"}} {batch[name]}' for name in COUNTS if name in batch]
    new = path.with_name(f"{path.name}.new")
    new.write_text("".join(f"{line}\n" for line in lines))
    new.replace(path)  # the collector never sees half a file


if __name__ == "__main__":
    main(Path(sys.argv[1]))
