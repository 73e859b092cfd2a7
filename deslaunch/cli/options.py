"""The options that commands share, and their values.

The options of a session are declared once, in :mod:`deslaunch.settings`. Here they become click's
options, and their values become :class:`~deslaunch.settings.Settings` again.
"""

import os
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from inspect import cleandoc
from pathlib import Path
from typing import Any, Final

import click
from click.core import ParameterSource

from deslaunch.cli.terminal import Interrupts, Printer, run_work
from deslaunch.ledger.place import VARIABLE, has_password, is_shared, refuse_mistyped
from deslaunch.model import Format
from deslaunch.settings import OPTIONS, Option, Settings

_KEPT: Final = frozenset(name for name, option in OPTIONS.items() if option.kept)
_METAVARS: Final = {
    "max_errors": "N|N%",
    "job_id": "GUID",
    "target": "NAME",
    "delimiter": "CHAR",
    "stop_at": "HH:MM",
    "stop_after": "DURATION",
}


def tuning(*names: str, **texts: str) -> list[click.Parameter]:
    """Return options of :mod:`deslaunch.settings`, by their names.

    Args:
        names: of options with their usual help.
        **texts: more names, with the help that fits the command.
    """
    options = [OPTIONS[name] for name in names]
    options += [OPTIONS[name]._replace(help=text) for name, text in texts.items()]
    return [_tuning(option) for option in options]


def _tuning(option: Option) -> click.Parameter:
    if option.kind is bool:
        return flag(option.flag, option.help, usual=option.usual)

    choices = [choice for choice in option.choices if choice.isprintable()]
    default = shown_default(option)
    return value(
        f"{option.flag} {option.name}",
        f"{option.help}  [default: {default}]" if default else option.help,
        type=click.Choice(choices) if choices else option.kind,
        envvar=option.variable,
        show_envvar=True,
        metavar=_METAVARS.get(option.name, option.unit.split(" ")[0].upper() or None),
        usual=option.usual,
    )


def shown_default(option: Option) -> str:
    """Return an option's default as it is typed; an empty text if it has none."""
    default = option.default
    return default if isinstance(default, str) else f"{default:g}" if default else ""


class _Option(click.Option):
    """An option that ``--help`` lists only if it is usual; ``--help-all`` lists every option."""

    def __init__(self, names: Sequence[str], *, usual: bool = True, **more: Any) -> None:
        super().__init__(names, **more)
        self.is_usual = usual

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        is_listed = self.is_usual or _LISTS_ALL in ctx.meta
        return super().get_help_record(ctx) if is_listed else None


_LISTS_ALL: Final = f"{__name__}.lists_all"


def value(names: str, text: str, **more: Any) -> _Option:
    """Return an option with a value, a text unless ``type`` is given.

    Args:
        names: its spellings, and its parameter's name where that differs, separated by spaces.
        text: for the command's help.
        **more: ``usual=False`` keeps it out of ``--help``; all others are click's.
    """
    return _Option(names.split(" "), help=text, **more)


def flag(names: str, text: str, **more: Any) -> _Option:
    """Return an option without a value."""
    return value(names, text, is_flag=True, **more)


def _list_all(context: click.Context, _: click.Parameter, is_given: bool) -> None:  # noqa: FBT001  # as click calls it
    if is_given:
        context.meta[_LISTS_ALL] = True
        click.echo(context.get_help())
        context.exit()


_HELP_ALL: Final = flag(
    "--help-all",
    "Show every option and exit.",
    is_eager=True,
    expose_value=False,
    callback=_list_all,
)


def file(names: str, text: str, **more: Any) -> click.Option:
    """Return an option that names a file."""
    return value(names, text, type=click.Path(path_type=Path), **more)


def _read_place(context: click.Context, parameter: click.Parameter, place: str | None) -> Any:
    """Keep a password out of what is printed: that of the variable is found there again.

    Raises:
        BadParameter: it stands on the command line, where everybody on the machine reads it.
        ConfigurationError: it is neither a path nor a URL.
    """
    if place is None:
        return place

    refuse_mistyped(place)

    if not is_shared(place):
        return place

    is_typed = context.get_parameter_source(parameter.name or "") is ParameterSource.COMMANDLINE

    if not is_typed:
        return f"#{place.partition('#')[2]}"

    if has_password(place):
        raise click.BadParameter(
            f"a password does not belong on a command line: set PGPASSWORD or {VARIABLE}, or "
            "write it to ~/.pgpass"
        )

    return place


PLACE: Final[dict[str, Any]] = {"metavar": "LEDGER", "envvar": VARIABLE, "callback": _read_place}
LEDGER: Final = click.Argument(["ledger"], **PLACE)
JOIN: Final = flag(
    "--join", "Send rows together with other launchers; PostgreSQL only.", usual=False
)
YES: Final = flag("--yes", "Don't ask for confirmation.")
ON_END: Final = value(
    "--on-end",
    "Run this program once at the end, without a shell, with the JSON object on its stdin.",
    metavar="COMMAND",
    usual=False,
)
VOLUME: Final = (
    flag("--quiet", "Print only warnings, errors and next commands."),
    flag("--verbose", "Print the outcome of every row.", usual=False),
)
OUTPUT: Final = (flag("--json as_json", "Print one JSON object on stdout."), *VOLUME)
FORCE: Final = flag("--force", "Replace an existing file; never a ledger or the manifest.")
WRITTEN: Final = (
    file("--output -o", "Default: stdout."),
    value(
        "--format",
        "Default: by the output's extension, else csv.",
        type=click.Choice(["jsonl", "csv"]),
    ),
    FORCE,
)
CONNECTION: Final = (
    file(
        "--config",
        "TOML file of targets; default: deslaunch/config.toml in your configuration folder.",
        envvar="DESLAUNCH_CONFIG",
        show_envvar=True,
    ),
    value("--base-url", "Base URL of DES; default: DES_BASE_URL.", metavar="URL"),
    flag("--allow-http", "Allow http:// for hosts other than loopback.", usual=False),
    *tuning("timeout", "connect_timeout"),
)
JOBS: Final = file("--schema", "Read the jobs from this file, written by jobs --json.")
DES: Final = (*CONNECTION, JOBS, *tuning("schema_max_age"))
FORM: Final = tuning("format", "delimiter", "job_id", "target")
WATCH: Final = tuning("interval", "max_interval", "watch_timeout")
USUAL_WATCH: Final = [
    _tuning(OPTIONS[name]._replace(usual=True))
    for name in ("interval", "max_interval", "watch_timeout")
]
LAUNCH: Final = (
    *DES,
    *tuning("concurrency", "rate", "limit", "stop_at", "stop_after"),
    *tuning("max_attempts", "max_wait", "give_up_after"),
    *tuning("drain_timeout", "max_errors", "retry_5xx", "retry_rejected", "retry_unknown"),
    *tuning("accept_copy", "again"),
    flag("--dry-run", "Print each request as a JSON line; send nothing, create no ledger."),
    YES,
    flag("--watch", "Then watch the runs until they end."),
    *WATCH,
    ON_END,
    *OUTPUT,
)


@dataclass(frozen=True)
class Given:
    """What a command was given.

    Attributes:
        values: of all of its parameters, by name; None for what was not given.
        typed: names of the parameters that stand on the command line itself.
        before: what the ledger keeps of earlier command lines, where there is one.
        printer: speaks as loudly as was asked for.
        interrupts: where signals come while the command is at work.
        read: what configuration files say that were read, by path: one may be a pipe.
    """

    values: Mapping[str, Any]
    typed: frozenset[str] = frozenset()
    before: dict[str, Any] = field(default_factory=dict)
    printer: Printer = field(default_factory=Printer)
    interrupts: Interrupts = field(default_factory=Interrupts)
    read: dict[Path | None, Any] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Any:
        return self.values.get(name)

    @cached_property
    def settings(self) -> Settings:
        """The settings of a session: command line, ledger, environment, default.

        Raises:
            ConfigurationError: a value is out of its range.
        """
        given = {name: self[name] for name in OPTIONS}
        kept = {name: self.before.get(name) for name in _KEPT - self.typed}
        of_rows = self.before.get("rows", {}).get("target")  # of those that named none
        said = [("target", of_rows), *given.items(), *kept.items()]
        chosen = {name: value for name, value in said if value is not None}
        return Settings(**chosen | {"allow_new_origin": "base_url" in self.typed})

    def kept(self) -> dict[str, Any]:
        """Return what the ledger is to keep for later sessions, as JSON can hold it.

        Options of this command line stand over those of earlier ones. ``config`` is good on
        ``host`` alone; ``repeat`` are the words that printed commands need besides. Files are
        named by absolute paths.
        """
        kept = {**self.before, **{name: self[name] for name in _KEPT & self.typed}}
        words = ["--base-url", self["base_url"]] if "base_url" in self.typed else []
        words += ["--schema", str(self["schema"].absolute())] if "schema" in self.typed else []
        words += ["--allow-http"] if self["allow_http"] else []

        if "config" in self.typed:
            kept |= {"config": str(self["config"].absolute()), "host": os.uname().nodename}

        return kept | {"repeat": words} if words else kept

    @property
    def repeated(self) -> list[str]:
        """The words that a later command must be given again."""
        return kept_words(self.kept())


def kept_words(kept: Mapping[str, Any]) -> list[str]:
    """Return what a printed command must be given, from what a ledger keeps."""
    config = kept_config(kept)
    return [*(["--config", config] if config else []), *kept.get("repeat", ())]


def kept_config(kept: Mapping[str, Any]) -> str | None:
    """Return the configuration file that a ledger keeps, where this is the machine that has it."""
    return kept.get("config") if kept.get("host") == os.uname().nodename else None


def form_of(output: Path | None, given: Format | None) -> Format:
    """Return the format that is asked for, else that of the output's name, else CSV."""
    return given or ("jsonl" if output and output.suffix in {".jsonl", ".ndjson"} else "csv")


Command = Callable[[Given], Coroutine[Any, Any, int]]
"""What a command does; what it returns is the exit code."""


def command(name: str, *parameters: click.Parameter) -> Callable[[Command], click.Command]:
    """Return a decorator that makes a coroutine function a command.

    Args:
        name: the command's; its page is the function's docstring, whose end are examples.
        parameters: arguments and options.
    """

    def decorate(function: Command) -> click.Command:
        def call(**values: Any) -> int:
            context = click.get_current_context()
            source_of = context.get_parameter_source
            typed = (name for name in values if source_of(name) is ParameterSource.COMMANDLINE)
            printer = Printer(values.get("quiet", False), values.get("verbose", False))
            context.call_on_close(printer.end_block)
            given = Given(values, frozenset(typed), printer=printer)
            return run_work(function(given), given.interrupts)

        text, _, examples = cleandoc(function.__doc__ or "").partition("\n\nExamples:\n")
        epilog = f"\b\nExamples:\n{examples}\n\nExit codes: deslaunch help exit-codes"
        params = [*parameters]

        if not all(one.is_usual for one in params if isinstance(one, _Option)):
            params.append(_HELP_ALL)

        return click.Command(name, params=params, callback=call, help=text, epilog=epilog)

    return decorate
