"""``simulate``: a local DES."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import TYPE_CHECKING

import click

from deslaunch.cli import options
from deslaunch.cli.command import command
from deslaunch.cli.given import console_of
from deslaunch.cli.loop import in_loop
from deslaunch.errors import ConfigurationError

if TYPE_CHECKING:
    from pathlib import Path


@command(
    "simulate",
    examples=(
        "  deslaunch simulate --port 8080 --log runs.jsonl\n"
        "  DESLAUNCH_SIMULATE_TOKENS='one two' deslaunch simulate --faults faults.json\n"
        "  DES_ORG_ID=BISTRO DES_PASSWORD=secret deslaunch simulate --oauth --token-seconds 60"
    ),
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="Default: a free one.")
@click.option("--jobs", "jobs_file", type=options.FILE, help="Default: two real templates.")
@click.option(
    "--faults",
    type=options.FILE,
    help='A fault script: {"faults": [{"fault": "hang", "at": [3]}]}.',
)
@click.option("--log", type=options.FILE, help="Every run is appended here before it is answered.")
@click.option("--oauth", is_flag=True, help="Accept only tokens of its own token endpoint.")
@click.option(
    "--token-seconds",
    type=click.FloatRange(0, min_open=True),
    default=28_800,
    show_default=True,
    metavar="SECONDS",
    help="How long a token of the token endpoint is good.",
)
def simulate(
    host: str,
    port: int,
    jobs_file: Path | None,
    faults: Path | None,
    log: Path | None,
    oauth: bool,  # noqa: FBT001  # click passes a flag's value by name
    token_seconds: float,
) -> int:
    """Run a local DES that starts nothing, and print its base URL.

    It accepts the tokens that DESLAUNCH_SIMULATE_TOKENS lists (default: simulated). It is an
    auth server too, which takes any login; but where DES_ORG_ID, DES_CLIENT_ID,
    DES_CLIENT_SECRET, DES_USERNAME or DES_PASSWORD is set for it, only that one.
    """
    from deslaunch import simulator  # noqa: PLC0415  # not needed for --help

    console = console_of({})
    tokens = os.environ.get("DESLAUNCH_SIMULATE_TOKENS", "" if oauth else "simulated").split()
    fields = ("org_id", "client_id", "client_secret", "username", "password")
    login = {name: os.environ.get(f"DES_{name.upper()}", "") for name in fields}

    async def work() -> int:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()

        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop.set)

        made = simulator.Simulator(
            jobs=simulator.load_jobs(jobs_file) if jobs_file else simulator.DEFAULT_JOBS,
            script=simulator.load_script(faults) if faults else None,
            log=log,
            tokens=tokens,
            login={name: value for name, value in login.items() if value},
            token_seconds=token_seconds,
            host=host,
            port=port,
        )
        await simulator.serve(made, console.data, stop)
        return 0

    try:
        return in_loop(work())
    except (simulator.SimulatorError, OSError) as exc:
        raise ConfigurationError(
            f"the simulator can't start: {exc}", hint="see: deslaunch simulate --help"
        ) from exc
