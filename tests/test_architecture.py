"""What import-linter can't see: who may write files, print, read a clock, or exit."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import deslaunch

if TYPE_CHECKING:
    from collections.abc import Iterator

PACKAGE = Path(deslaunch.__file__).parent
MODULES = sorted(path for path in PACKAGE.rglob("*.py"))

WRITES = {
    "os.fdatasync",
    "os.fsync",
    "os.ftruncate",
    "os.pwrite",
    "os.remove",
    "os.rename",
    "os.replace",
    "os.truncate",
    "os.unlink",
    "os.write",
    "os.writev",
    "shutil.copy",
    "shutil.copyfile",
    "shutil.move",
}
WRITING_METHODS = {"write_bytes", "write_text"}
PURE = {
    "columns",
    "errors",
    "health",
    "intake",
    "keys",
    "logs",
    "model",
    "plan",
    "progress",
    "readers",
    "reconcile",
    "records",
    "replay",
    "retry",
    "rows",
    "schema",
    "sieve",
    "states",
    "throttle",
    "urls",
    "wire",
}
IMPURE_IMPORTS = {
    "aiohttp",
    "anyio",
    "asyncio",
    "os",
    "pathlib",
    "random",
    "socket",
    "subprocess",
    "time",
}


def name_of(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def calls(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func)


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.partition(".")[0]


@pytest.mark.parametrize("path", [pytest.param(path, id=name_of(path)) for path in MODULES])
def test_only_durable_writes_files(path: Path) -> None:
    if name_of(path) in {"durable", "simulator"}:  # the simulator has a log of its own
        return

    called = set(calls(path))
    assert not called & WRITES
    assert not {call for call in called if call.rpartition(".")[2] in WRITING_METHODS}


@pytest.mark.parametrize("path", [pytest.param(path, id=name_of(path)) for path in MODULES])
def test_only_console_prints_and_only_cli_exits(path: Path) -> None:
    called = set(calls(path))

    if name_of(path) != "console":
        assert "print" not in called

    if name_of(path) != "cli":
        assert not called & {"sys.exit", "exit", "os._exit", "click.echo"}


@pytest.mark.parametrize(
    "path", [pytest.param(path, id=name_of(path)) for path in MODULES if name_of(path) in PURE]
)
def test_pure_modules_have_no_input_no_output_and_no_clock(path: Path) -> None:
    assert not set(imports(path)) & IMPURE_IMPORTS
    assert not {call for call in calls(path) if call.endswith((".now", ".today", ".utcnow"))}
    assert "open" not in set(calls(path))


def test_all_pure_modules_are_there() -> None:
    assert {name_of(path) for path in MODULES} >= PURE


def test_every_public_name_can_be_imported() -> None:
    assert deslaunch.__all__ == sorted(deslaunch.__all__)
    missing = [name for name in deslaunch.__all__ if not hasattr(deslaunch, name)]
    assert missing == []
    assert dir(deslaunch) == deslaunch.__all__


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = deslaunch.nonsense


SPEAKERS = {"client", "oauth", "tokens", "transport", "simulator"}


@pytest.mark.parametrize(
    ("package", "users"),
    [
        pytest.param("aiohttp", SPEAKERS, id="aiohttp"),
        pytest.param("backoff", {"retry"}, id="backoff"),
        pytest.param("click", {"cli"}, id="click"),
        pytest.param("rich", {"screen"}, id="rich"),
        pytest.param("uvloop", {"cli"}, id="uvloop"),
    ],
)
def test_a_package_is_used_where_it_belongs(package: str, users: set[str]) -> None:
    found = {name_of(path) for path in MODULES if package in set(imports(path))}

    assert found <= users
