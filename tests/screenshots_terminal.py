"""Pictures of the terminal during a launch: no test, since it needs tmux and Chromium.

    python tests/screenshots_terminal.py FOLDER [--chromium PATH] [--samples]

Runs a launch with faults in tmux, and writes into FOLDER what the terminal shows: the plan and the
question, the block while rows are sent and while all wait, the end, a resume, the table of jobs; in
100 and 60 columns, with colours and without. With --samples, the picture of the README is made
anew.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from commands import DESLAUNCH, TOKEN, workplace
from rich.console import Console
from rich.terminal_theme import DIMMED_MONOKAI
from rich.text import Text
from screenshots import SAMPLES, browser

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

PATIENCE: Final = 60.0
REFUSED: Final = json.dumps({"message": "no such generation"})
FAULTS: Final = {
    "latency": 0.05,
    "faults": [
        {"fault": "status", "status": 503, "retryAfter": 6, "at": [700]},
        {"fault": "status", "status": 400, "body": REFUSED, "share": 0.02},
        {"fault": "status", "status": 500, "share": 0.03},
        {"fault": "close-after-start", "at": [300, 460]},
    ],
}
PAGE: Final = """<!DOCTYPE html><meta charset="utf-8"><style>
body {{ margin: 0; background: {background}; }}
pre {{ margin: 0; padding: 14px 18px; font: 15px/1.35 "DejaVu Sans Mono", monospace; }}
</style><pre style="color: {foreground}; width: {columns}ch"><code style="font: inherit">{code}
</code></pre>"""


@dataclass
class Screen:
    """A terminal in tmux, with a shell in it."""

    name: str
    columns: int

    def __enter__(self) -> Self:
        size = ("-x", str(self.columns), "-y", "30")
        self._tmux("new-session", "-d", *size, "env", "PS1=$ ", "bash", "--norc", "--noprofile")
        return self

    def __exit__(self, *_: object) -> None:
        self._tmux("kill-server")

    def run(self, words: tuple[str, ...], folder: Path, environment: Mapping[str, str]) -> None:
        """Run a command of deslaunch on an empty screen; its variables are not shown."""
        exports = " ".join(f"{name}={shlex.quote(value)}" for name, value in environment.items())
        script = folder / "prepare.sh"
        script.write_text(f"cd {shlex.quote(str(folder))}; unset NO_COLOR; export {exports}; clear")
        self.type(f". {script}\n")
        self.type(shlex.join(["deslaunch", *words]) + "\n")

    def type(self, text: str) -> None:
        """Press keys."""
        for line in text.splitlines(keepends=True):
            self._tmux("send-keys", "-l", line.rstrip("\n"))

            if line.endswith("\n"):
                self._tmux("send-keys", "Enter")

    def until(self, text: str) -> str:
        """Return the screen with its colours, once it shows a text."""
        end = time.monotonic() + PATIENCE

        while text not in self._tmux("capture-pane", "-p"):
            if time.monotonic() > end:
                raise TimeoutError(self._tmux("capture-pane", "-p"))

            time.sleep(0.05)

        return self._tmux("capture-pane", "-e", "-p").rstrip("\n")

    def _tmux(self, *words: str) -> str:
        done = subprocess.run(
            ["tmux", "-L", self.name, *words], capture_output=True, text=True, check=True
        )
        return done.stdout


def scenes(columns: int, *, plain: bool) -> Iterator[tuple[str, str]]:
    """Launch, and yield the name of each picture with what the terminal shows."""
    with (
        tempfile.TemporaryDirectory() as folder,
        workplace(Path(folder), FAULTS) as place,
        Screen(f"deslaunch-{columns}", columns) as screen,
    ):
        place.manifest(1_000)
        named = {
            "DES_TOKEN": TOKEN,
            "PATH": f"{Path(DESLAUNCH).parent}:{place.environment['PATH']}",
        }
        names = ("DES_BASE_URL", "DESLAUNCH_CACHE_DIR", "HOME")
        environment = named | {name: place.environment[name] for name in names}
        environment |= {"NO_COLOR": "1"} if plain else {}

        screen.run(("jobs",), place.folder, environment)
        yield "jobs", screen.until("TradingDateTo")
        screen.run(("run", "night.jsonl", "--rate", "120"), place.folder, environment)
        yield "question", screen.until("[y/N]")
        screen.type("y\n")
        yield "during", screen.until("sent again")
        yield "pause", screen.until("all rows wait 4 s more")
        yield "end", screen.until("KEY --not-started")
        screen.run(("resume", "night.ledger.jsonl"), place.folder, environment)
        yield "resume", screen.until("KEY --not-started")


def page_of(shown: str, columns: int) -> str:
    """Return a page that shows a terminal's content."""
    console = Console(
        record=True,
        width=columns,
        file=io.StringIO(),
        color_system="truecolor",
        force_terminal=True,
    )

    for line in shown.splitlines():
        console.print(Text.from_ansi(line), soft_wrap=True)

    theme = DIMMED_MONOKAI
    return PAGE.format(
        background=theme.background_color.hex,
        foreground=theme.foreground_color.hex,
        columns=columns,
        code=console.export_html(theme=theme, inline_styles=True, code_format="{code}"),
    )


async def look(folder: Path, chromium: str, *, samples: bool) -> None:
    async with browser(chromium) as tab:
        for columns, plain in ((100, False), (60, True)):
            for name, shown in list(scenes(columns, plain=plain)):
                page = folder / f"terminal-{name}-{columns}.html"
                page.write_text(page_of(shown, columns))
                await tab.open(page, columns * 10, dark=True, script=False)
                height = await tab.value("document.querySelector('pre').offsetHeight")
                await tab.shoot(page.with_suffix(".png"), height=height)

                if samples and (name, columns) == ("pause", 100):
                    await tab.shoot(SAMPLES / "terminal.png", height=height)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--chromium", default=shutil.which("chromium"))
    parser.add_argument("--samples", action="store_true")
    given = parser.parse_args()

    if given.chromium is None or shutil.which("tmux") is None:
        print("Chromium and tmux are needed: install them", file=sys.stderr)
        return 2

    given.folder.mkdir(parents=True, exist_ok=True)
    asyncio.run(look(given.folder, given.chromium, samples=given.samples))
    return 0


if __name__ == "__main__":
    sys.exit(main())
