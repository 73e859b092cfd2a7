"""Pictures of the report, and a look at it in a real browser: no test, since it needs Chromium.

    python tests/screenshots.py FOLDER [--chromium PATH] [--samples]

Writes reports of 10 and of 100,000 rows, and of hostile ones, into FOLDER, and opens each in
headless Chromium: light and dark, 400 and 1,280 pixels wide, searched, printed, and without
JavaScript. Ends with 1 if a page asks anything of a network, logs an error, is wider than the
window, or runs a script that is not its own. With --samples, the pictures of the README are made
anew.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import aiohttp
from ledgers import Night, hostile_ledger

from deslaunch.report import write_report

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

WIDE, NARROW = 1280, 400
SAMPLES: Final = Path(__file__).parent.parent / "samples"
FLAGS: Final = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
    *("--no-first-run", "--disable-background-networking", "--disable-component-update"),
    *("--remote-debugging-port=0", "--remote-allow-origins=*"),
)
WIDTH_OF_PAGE: Final = "document.documentElement.scrollWidth"
TABLE: Final = "document.querySelector('.rows tbody').innerText.trim()"
FIRST_CELL: Final = "document.querySelector('.rows td').innerText"
HINT: Final = "document.querySelector('.rows time').title"
READY: Final = "!document.querySelector('.controls') || !document.querySelector('.controls').hidden"


@dataclass
class Tab:
    """One page of the browser, driven by its debugging protocol."""

    socket: aiohttp.ClientWebSocketResponse
    said: list[str] = field(default_factory=list)
    _number: int = 0

    async def call(self, method: str, **params: Any) -> Any:
        """Call a method and return its result; what the page says meanwhile is kept."""
        self._number += 1
        await self.socket.send_json({"id": self._number, "method": method, "params": params})

        while True:
            message = await self.socket.receive_json(timeout=60)

            if message.get("id") == self._number:
                return message.get("result", message)

            self._hear(message)

    def _hear(self, message: dict[str, Any]) -> None:
        method, params = message.get("method"), message.get("params", {})

        if method == "Network.requestWillBeSent":
            url = params["request"]["url"]

            if not url.startswith(("file:", "blob:")):
                self.said.append(f"asked for {url}")
        elif method in {"Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled"}:
            self.said.append(str(params)[:300])
        elif method == "Page.javascriptDialogOpening":
            self.said.append("a script ran that is not the page's own")

    def expect(self, what: str, found: str, expected: str) -> None:
        """Keep it as wrong where a text does not end as expected."""
        if not found.endswith(expected):
            self.said.append(f"{what}: {found[:100]!r} does not end with {expected[:100]!r}")

    async def value(self, expression: str) -> Any:
        """Return what an expression is in the page."""
        answer = await self.call("Runtime.evaluate", expression=expression, awaitPromise=True)
        return answer["result"].get("value")

    async def open(self, path: Path, width: int, *, dark: bool, script: bool = True) -> float:
        """Show a page, and return how many seconds it took until it could be searched."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        await self.call("Emulation.setDeviceMetricsOverride", **size)
        await self.call("Emulation.setEmulatedMedia", media="screen", features=[scheme])
        await self.call("Emulation.setScriptExecutionDisabled", value=not script)
        began = time.monotonic()
        await self.call("Page.navigate", url=path.absolute().as_uri())
        await self.until("document.readyState === 'complete'")

        if script:
            await self.until(READY)

        found = await self.value(WIDTH_OF_PAGE)

        if found > width:
            self.said.append(f"{path.name} is {found} pixels wide in a window of {width}")

        return time.monotonic() - began

    async def until(self, expression: str) -> None:
        """Wait until an expression is true in the page, a minute at most."""
        async with asyncio.timeout(60):
            while not await self.value(expression):
                await asyncio.sleep(0.05)

    async def shoot(self, path: Path, *, top: float = 0, height: float = 6000) -> None:
        """Write a picture of the page, of so many pixels at most."""
        box = (await self.call("Page.getLayoutMetrics"))["cssContentSize"]
        height = min(height, box["height"] - top)
        clip = {"x": 0, "y": top, "width": box["width"], "height": height, "scale": 1}
        picture = await self.call(
            "Page.captureScreenshot", format="png", clip=clip, captureBeyondViewport=True
        )
        path.write_bytes(base64.b64decode(picture["data"]))

    async def top_of(self, element: str) -> float:
        """Return where the section of a heading begins, in pixels."""
        found = f"document.getElementById('{element}').parentElement.getBoundingClientRect()"
        return float(await self.value(f"{found}.top + window.scrollY - 20"))

    async def print(self, path: Path) -> None:
        """Write the page as it is printed."""
        dark = {"name": "prefers-color-scheme", "value": "dark"}
        await self.call("Emulation.setEmulatedMedia", media="print", features=[dark])
        document = await self.call("Page.printToPDF", printBackground=False)
        path.write_bytes(base64.b64decode(document["data"]))


@asynccontextmanager
async def browser(chromium: str) -> AsyncIterator[Tab]:
    """Run a browser with one tab."""
    with tempfile.TemporaryDirectory() as profile:
        process = subprocess.Popen(
            [chromium, *FLAGS, f"--user-data-dir={profile}", "about:blank"],
            stderr=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )

        try:
            port = await _port(Path(profile, "DevToolsActivePort"))

            async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session:
                pages = await (await session.get("/json/list")).json()
                path = "/" + pages[0]["webSocketDebuggerUrl"].split("/", 3)[3]

                async with session.ws_connect(path, max_msg_size=0) as socket:
                    tab = Tab(socket)

                    for domain in ("Page", "Network", "Log", "Runtime"):
                        await tab.call(f"{domain}.enable")

                    yield tab
        finally:
            process.terminate()
            process.wait(timeout=20)


async def _port(file: Path) -> int:
    async with asyncio.timeout(30):
        while not file.exists() or not file.read_text():
            await asyncio.sleep(0.05)

    return int(file.read_text().split()[0])


def make_reports(folder: Path) -> None:
    """Write the reports that are looked at."""
    with contextlib.chdir(folder):  # the pages show short paths
        Night(Path("night10.ledger.jsonl"), 10, rate=4).write()
        Night(Path("night.ledger.jsonl"), 100_000, rate=900).write()
        Night(Path("sample.ledger.jsonl"), 5_000, rate=90).write()
        hostile_ledger(Path("hostile.ledger.jsonl"))

        for name in ("night10", "night", "hostile", "sample"):
            write_report([Path(f"{name}.ledger.jsonl")], Path(f"{name}.html"))


async def look(folder: Path, chromium: str) -> list[str]:
    """Take the pictures, and return what was wrong."""
    async with browser(chromium) as tab:
        for name in ("night10", "night", "hostile"):
            for dark in (False, True):
                for width in (WIDE, NARROW):
                    seconds = await tab.open(folder / f"{name}.html", width, dark=dark)
                    words = f"{name}-{'dark' if dark else 'light'}-{width}"
                    await tab.shoot(folder / f"{words}.png")
                    print(f"{words}: {seconds:.2f} s until it can be searched")

        await _search(tab, folder)
        await _use(tab, folder)
        await tab.open(folder / "night10.html", WIDE, dark=False)
        await tab.print(folder / "night10.pdf")
        return tab.said


async def take_samples(folder: Path, chromium: str) -> None:
    """Make the pictures of the README."""
    async with browser(chromium) as tab:
        await tab.open(folder / "sample.html", 960, dark=False)
        await tab.shoot(SAMPLES / "report.png", height=900)
        await tab.open(folder / "sample.html", 960, dark=True)
        top = await tab.top_of("timeline")
        await tab.shoot(SAMPLES / "report-dark.png", top=top, height=700)


async def _search(tab: Tab, folder: Path) -> None:
    await tab.open(folder / "night.html", WIDE, dark=False)
    await tab.value("document.getElementById('find').value = 'never both store-09'")
    began = time.monotonic()
    await tab.value("document.getElementById('find').dispatchEvent(new Event('input'))")
    await tab.until("document.getElementById('count').textContent.includes(' of ')")
    print(
        f"the first search took {time.monotonic() - began:.2f} s, the wait for more keys included"
    )
    await tab.shoot(folder / "night-searched.png", top=await tab.top_of("rows"), height=900)


async def _use(tab: Tab, folder: Path) -> None:
    """Hold what the script shows against what the page says without it, then sort and turn."""
    await tab.open(folder / "night.html", WIDE, dark=False, script=False)
    await tab.shoot(folder / "night-without-script.png")
    plain = await tab.value(TABLE)
    await tab.open(folder / "night.html", WIDE, dark=False)
    tab.expect("the first page", await tab.value(TABLE), plain)
    await tab.value("document.querySelector('.rows th button').click()")
    await tab.value("document.querySelector('.rows th button').click()")
    tab.expect("the last row first", await tab.value(FIRST_CELL), "100,000")
    await tab.value("document.querySelector('[data-page=last]').click()")
    tab.expect("the last page", await tab.value(FIRST_CELL), "100")
    await tab.value("document.getElementById('state').value = 'unknown'")
    await tab.value("document.getElementById('state').dispatchEvent(new Event('change'))")
    count = "document.getElementById('count').textContent"
    tab.expect("the unknown rows", await tab.value(count), "3 of 100,000 rows")
    tab.expect("the local time", await tab.value(HINT), "where you are")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--chromium", default=shutil.which("chromium"))
    parser.add_argument("--samples", action="store_true")
    given = parser.parse_args()

    if given.chromium is None:
        print("Chromium is missing: install it, or name it with --chromium", file=sys.stderr)
        return 2

    given.folder.mkdir(parents=True, exist_ok=True)
    make_reports(given.folder)
    wrong = asyncio.run(look(given.folder, given.chromium))

    if given.samples:
        asyncio.run(take_samples(given.folder, given.chromium))

    for text in wrong:
        print(f"wrong: {text}", file=sys.stderr)

    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
