"""A launcher that dies inside a write, or together with the disk's cache.

``python victim.py MODE N SHARE MANIFEST LEDGER``. Mode ``torn``: the N-th write puts a
share of its bytes into the file, and the process is killed. Mode ``power``: what was written and
not synced is lost; at the N-th sync the power goes off, when a share of the cache has been saved.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

from deslaunch import launcher
from deslaunch.client import DesClient
from deslaunch.durable import SystemDisk
from deslaunch.session import Interrupt


class TornWrite(SystemDisk):
    """Its n-th write is the process's last deed."""

    def __init__(self, n: int, share: float) -> None:
        self._left = n
        self._share = share

    def write(self, fd: int, data: bytes | memoryview) -> int:
        self._left -= 1

        if not self._left:
            os.write(fd, data[: int(len(data) * self._share)])
            os.kill(os.getpid(), signal.SIGKILL)

        return os.write(fd, data)


class PowerCut(SystemDisk):
    """Keeps in its cache what is not synced; the n-th sync saves a part, and then it is dark."""

    def __init__(self, n: int, share: float) -> None:
        self._left = n
        self._share = share
        self._cache = b""

    def write(self, fd: int, data: bytes | memoryview) -> int:
        self._cache += data
        return len(data)

    def sync(self, fd: int) -> None:
        self._left -= 1

        if not self._left:
            os.write(fd, self._cache[: int(len(self._cache) * self._share)])
            os.kill(os.getpid(), signal.SIGKILL)

        os.write(fd, self._cache)
        self._cache = b""
        super().sync(fd)


async def main(mode: str, n: str, share: str, manifest: str, ledger: str) -> int:
    disk = {"torn": TornWrite, "power": PowerCut}[mode](int(n), float(share))

    async with DesClient(os.environ["DES_BASE_URL"], token=os.environ["DES_TOKEN"]) as des:
        task = launcher._Task(  # the command line's disk can't be chosen
            des,
            None,
            os.environ["DESLAUNCH_CACHE_DIR"],
            None,
            Interrupt(),
            {"concurrency": 4, "max_wait": 0.05},
            disk,
        )
        summary = await launcher._begin(Path(ledger), Path(manifest), task)

    return summary.exit_code


if __name__ == "__main__":
    sys.exit(asyncio.run(main(*sys.argv[1:])))
