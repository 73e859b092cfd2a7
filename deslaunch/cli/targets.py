"""Make clients of DES from a TOML file, the environment and options.

A configuration file is read only where ``--config`` names it, or from the user's configuration
folder, never because it is beside a manifest. It names variables, files and commands, never a
secret; all mistakes in it are reported at once. The environment describes the target
``default``, and comes before the file.
"""

import os
import re
import shlex
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

from deslaunch.cli.options import Given, kept_config
from deslaunch.errors import ConfigurationError, CredentialsRefused
from deslaunch.model import DEFAULT_TARGET, is_guid
from deslaunch.settings import OPTIONS, JobLimit

if TYPE_CHECKING:
    from deslaunch.des.client import DesClient
    from deslaunch.des.tokens import TokenSource

Target = dict[str, Any]
"""The table of one target, as a file has it; the paths in it are absolute."""

_SOURCES: Final = ("token_env", "token_file", "token_command", "oauth")
_SECRETS: Final = ("client_secret", "username", "password")
_NAMES: Final = ("org_id", "client_id")
LOGIN: Final = (*_NAMES, *_SECRETS)
"""What the auth server asks for before it gives a token."""

_TOKENS: Final = ("token", "token_file", "token_command")


# What a configuration file may hold.


_CHOICES: Final = {
    "token": _SOURCES,
    **{name: (name,) for name in _NAMES},
    **{name: (f"{name}_env", f"{name}_file") for name in _SECRETS},
}
"""The keys that give something, of which a table that knows them must have one."""

_Keys = Mapping[str, "type | _Keys"]
"""What a table's keys take, tables among it; "*" is any key."""

_LOGIN_KEYS: Final = [key for name in LOGIN for key in _CHOICES[name]]
_TARGET: Final[_Keys] = {
    **dict.fromkeys(("base_url", "token_env", "token_file"), str),
    "token_command": list,
    "oauth": dict.fromkeys(("auth_url", *_LOGIN_KEYS), str),
    "concurrency": int,
}
_JOB: Final[_Keys] = {"concurrency": int, "rate": float}
_FILE: Final[_Keys] = {"targets": {"*": _TARGET}, "jobs": {"*": _JOB}, "on_end": list}
_EXPECTED: Final = {
    dict: "a table",
    float: OPTIONS["rate"].range,
    int: OPTIONS["concurrency"].range,
    list: 'a program and its arguments, as in ["program", "argument"]; there is no shell',
    str: "a string in quotes",
}


def default_config() -> Path | None:
    """Return the user's own configuration file; None where there is none."""
    from platformdirs import user_config_path  # noqa: PLC0415  # not needed for --help

    try:
        path = user_config_path("deslaunch") / "config.toml"
    except RuntimeError:  # no HOME, and no entry in the list of users
        return None

    # Path's own raises where a home is not ours.
    return path if path.is_absolute() and os.path.exists(path) else None  # noqa: PTH110


class Config(NamedTuple):
    """What a configuration file says.

    Attributes:
        targets: by name.
        on_end: the command that is told of the end, its words, or none.
        jobs: what single jobs bear, by their jobIds.
    """

    targets: Mapping[str, Target] = {}
    on_end: Sequence[str] = ()
    jobs: Mapping[str, JobLimit] = {}


def config_of(given: Given) -> Config:
    """Return what the configuration file of a command says; it is read once.

    Raises:
        ConfigurationError: it can't be read, or holds mistakes.
    """
    kept = None if "config" in given.typed else kept_config(given.before)
    path = Path(kept) if kept else given["config"] or default_config()

    if path not in given.read:
        given.read[path] = read_config(path) if path else Config()

    return cast("Config", given.read[path])


def read_config(path: Path) -> Config:
    """Return what a configuration file says.

    Paths in it that are not absolute are meant from the file's own folder.

    Raises:
        ConfigurationError: it can't be read, or holds mistakes; the message names each by file,
            table and key, and shows no value that may be a secret.
    """
    import tomllib  # noqa: PLC0415  # not needed for --help

    try:
        content = tomllib.loads(path.read_bytes().decode())
    except OSError as exc:
        why = f"can't be read: {exc.strerror}"
        hint = "check its path and permissions, or name another with --config"
    except UnicodeDecodeError as exc:
        why, hint = f"is not in UTF-8: byte {exc.start} is wrong", "save it as UTF-8"
    except tomllib.TOMLDecodeError as exc:
        why = f"is not valid TOML: {exc}"
        hint = 'strings need quotes, as in base_url = "https://des.example"'
    else:
        if mistakes := [f"{path}: {mistake}" for mistake in _mistakes(content, _FILE)]:
            raise ConfigurationError("\n".join(mistakes), hint=f"fix {path}")

        targets = _locate(content.get("targets", {}), path.parent)
        jobs = {job: JobLimit(**limit) for job, limit in content.get("jobs", {}).items()}
        return Config(targets, _located(content.get("on_end", ()), path.parent), jobs)

    # Not chained: the errors hold the whole file.
    raise ConfigurationError(f"the configuration file {path} {why}", hint=hint)


def _locate(targets: dict[str, Target], folder: Path) -> dict[str, Target]:
    """Make the paths in targets absolute: they are relative to a folder."""
    for target in targets.values():
        for table in (target, target.get("oauth", {})):
            for key in [key for key in table if key.endswith("_file")]:
                # Path's own raises for an unknown user.
                table[key] = str(folder / os.path.expanduser(table[key]))  # noqa: PTH111

    return targets


def _located(words: Sequence[str], folder: Path) -> Sequence[str]:
    """Make a program's path absolute; a bare name is looked for in PATH."""
    return [str(folder.absolute() / words[0]), *words[1:]] if words and "/" in words[0] else words


def _mistakes(table: Mapping[str, Any], keys: _Keys, *names: str) -> Iterator[str]:
    """Yield what is wrong with a table and those in it, each with its table and key."""
    words = (name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else f'"{name}"' for name in names)
    where = f"[{'.'.join(words)}] " if names else ""
    choices = {what: choice for what, choice in _CHOICES.items() if choice[0] in keys}

    for key, value in table.items():
        kind = keys.get(key, keys.get("*"))
        shape = kind if isinstance(kind, type) else dict

        if keys is _FILE.get("jobs") and not is_guid(key):
            yield f"{where}{key}: expected a job's GUID; see them: deslaunch jobs"
        elif kind is None:
            yield f"{where}{key}: {_misnamed(key, keys, choices)}"
        elif not _fits(value, shape):
            yield f"{where}{key}: expected {_EXPECTED[shape]}, got {_described(value)}"
        elif isinstance(kind, Mapping):
            yield from _mistakes(value, kind, *names, key)

    for what, choice in choices.items():
        named = [key for key in choice if key in table]

        if len(named) > 1:
            yield f"{where}{' and '.join(named)}: are both set; expected one {what}"
        elif not named and what not in table:
            one = "" if choice == (what,) else f"; expected {_either(choice)}"
            yield f"{where}{what}: is missing{one}"

    if keys is _TARGET and not _is_whole(table):
        yield f"{where}base_url: is missing; only an oauth table can do without it"


def _fits(value: Any, shape: type) -> bool:
    if shape is list:
        texts = isinstance(value, list) and all(isinstance(word, str) for word in value)
        return texts and any(value[:1]) and not any("\0" in word for word in value)

    if shape is float:
        return type(value) in (int, float) and OPTIONS["rate"].fits(value)

    if shape is int:
        return type(value) is int and OPTIONS["concurrency"].fits(value)

    return isinstance(value, shape) and value != ""


def _misnamed(key: str, keys: _Keys, choices: Mapping[str, Sequence[str]]) -> str:
    if key in choices:
        return f"this file takes no secrets; write {_either(choices[key])}"

    near = get_close_matches(key.lower().replace("-", "_"), keys, n=1)
    advice = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(keys)}"
    return f"is not a key of this table; {advice}"


def _either(keys: Sequence[str]) -> str:
    return f"{', '.join(keys[:-1])} or {keys[-1]}"


def _described(value: Any) -> str:
    """Return a value in words; a text may be a secret, and is not shown."""
    if isinstance(value, (bool, int, float)):
        return str(value).lower()

    names: dict[type, str] = {str: "a string", list: "a list", dict: "a table"}
    return "an empty string" if value == "" else names.get(type(value), "a date")


def _is_whole(target: Mapping[str, Any]) -> bool:
    """Return True if its base URL is known, or comes with a login's token."""
    return "base_url" in target or "oauth" in target


# The environment, and what wins.


def from_environment(environment: Mapping[str, str]) -> Target:
    """Return what the environment says about the target ``default``.

    Args:
        environment: an empty variable counts as none.

    Raises:
        ConfigurationError: two token sources, a command that can't be split, or half a login.
    """
    names = ("base_url", *_TOKENS, *LOGIN, "auth_url")
    given = {name: environment.get(f"DES_{name.upper()}") for name in names}
    found = {name: value for name, value in given.items() if value}
    named = [name for name in (*_TOKENS, *LOGIN) if name in found]
    login = [name for name in named if name in LOGIN]

    if len(named) > 1 and named != login:
        raise ConfigurationError(
            f"{_variables(named, ' and ')} are set: one target takes one token source",
            hint=f"unset all but one of {_variables(_TOKENS)} and the login",
        )

    if login and (missing := [name for name in LOGIN if name not in login]):
        raise ConfigurationError(
            f"the login at the auth server lacks {_variables(missing)}",
            hint=f"set them all, or none and one of {_variables(_TOKENS)}",
        )

    as_they_are = found.keys() & {"base_url", "token_file"}
    target: dict[str, Any] = {name: found[name] for name in as_they_are}

    if "token" in found:
        target["token_env"] = "DES_TOKEN"  # noqa: S105  # the variable's name

    if "token_command" in found:
        with suppress(ValueError):  # an open quote
            target["token_command"] = shlex.split(found["token_command"])

        if not target.get("token_command"):
            raise ConfigurationError(
                "DES_TOKEN_COMMAND can't be split into words", hint="check its quotes, or unset it"
            )

    if login:
        secrets = {f"{name}_env": f"DES_{name.upper()}" for name in _SECRETS}
        texts = {name: found[name] for name in (*_NAMES, "auth_url") if name in found}
        target["oauth"] = {**texts, **secrets}

    return target


def _variables(names: Iterable[str], between: str = ", ") -> str:
    return between.join(f"DES_{name.upper()}" for name in names)


def merged(
    of_file: Mapping[str, Target],
    environment: Mapping[str, str],
    *,
    base_url: str | None = None,
    target: str = DEFAULT_TARGET,
) -> dict[str, Target]:
    """Return the targets of a configuration file, merged with environment and arguments.

    Args:
        of_file: by name.
        environment: said of the default target, or else, where no file names any, of the only
            one; it wins over the file.
        base_url: an argument; that of ``target``; it wins over all.
        target: the target of the rows that name none.

    Raises:
        ConfigurationError: the environment contradicts itself, ``base_url`` is of no target, or
            there is none where no file names targets.
    """
    found, name = from_environment(environment), DEFAULT_TARGET if of_file else target
    replaced = set(_SOURCES) if found.keys() & set(_SOURCES) else set()
    of_default = of_file.get(name, {}).items()
    known = {key: value for key, value in of_default if key not in replaced}
    whole = {**of_file, name: {**known, **found}}

    if base_url is not None:
        if target not in whole:
            raise ConfigurationError(
                f"--base-url: target {target} is not configured",
                hint=f"pass --target and one of {', '.join(of_file)}",
            )

        whole[target] = {**whole[target], "base_url": base_url}

    if not _is_whole(whole[name]):
        if not of_file:
            raise ConfigurationError(
                "the base URL of DES is not set",
                hint="set DES_BASE_URL, pass --base-url URL, or name targets in a file for "
                "--config",
            )

        del whole[name]

    return whole


# Clients.


@asynccontextmanager
async def open_clients(
    given: Given, *, needed: bool = True, needs_token: bool = True
) -> AsyncIterator[dict[str, "DesClient"]]:
    """Open the clients that file, environment and options describe, by target.

    Where no file names targets there is one client, that of the rows that name no target.

    Args:
        given: its settings are those of all clients.
        needed: DES is to be asked; else there are none.
        needs_token: a missing token is an error now, not when the first request is made.

    Raises:
        ConfigurationError: no base URL, two token sources, or none where one is needed.
    """
    import asyncio  # noqa: PLC0415  # not needed for --help

    # A file of targets may be a pipe, and a signal ends the wait for it.
    clients = await asyncio.to_thread(clients_of, given, needs_token=needs_token) if needed else {}

    async with AsyncExitStack() as stack:
        for client in clients.values():
            await stack.enter_async_context(client)

        yield clients


def clients_of(given: Given, *, needs_token: bool) -> dict[str, "DesClient"]:
    """Return the clients of :func:`open_clients`, not yet open."""
    from deslaunch.des.client import DesClient  # noqa: PLC0415  # aiohttp is slow to import
    from deslaunch.des.http import proxy_of  # noqa: PLC0415

    of_file = config_of(given).targets
    settings, allow_http = given.settings, bool(given["allow_http"])
    found = merged(of_file, os.environ, base_url=given["base_url"], target=settings.target)
    clients = {}

    for name, target in found.items():
        try:
            clients[name] = DesClient(
                target.get("base_url"),
                token=_token_source(target, allow_http=allow_http),
                allow_http=allow_http,
                proxy=proxy_of,
                concurrency=target.get("concurrency"),
                timeout=settings.timeout,
                connect_timeout=settings.connect_timeout,
            )
        except ConfigurationError as exc:
            if of_file:
                exc.locate(f"target {name}")

            raise

    if needs_token and not any(target.keys() & set(_SOURCES) for target in found.values()):
        raise ConfigurationError(
            "there is no token; nothing was sent",
            hint="set DES_TOKEN, DES_TOKEN_FILE or DES_TOKEN_COMMAND, or a login (DES_ORG_ID …), "
            "or name targets in a file for --config; see: deslaunch help targets",
        )

    return clients


def _token_source(target: Target, *, allow_http: bool) -> "TokenSource":
    from deslaunch.des import http, tokens, wire  # noqa: PLC0415  # aiohttp is slow to import

    match target:
        case {"oauth": login}:
            known: dict[str, Any] = {name: partial(read_secret, login, name) for name in _SECRETS}
            known |= {name: login[name] for name in _NAMES}
            url = login.get("auth_url", wire.AUTH_URL)
            proxy = http.proxy_of(url)
            return tokens.OAuthToken(auth_url=url, allow_http=allow_http, proxy=proxy, **known)
        case {"token_file": path}:
            return tokens.FileToken(path)
        case {"token_command": argv}:
            return tokens.CommandToken(argv)

    return tokens.EnvToken(target.get("token_env", "DES_TOKEN"))


def read_secret(login: Mapping[str, str], name: str) -> str:
    """Return a secret, read now, without surrounding white space.

    Args:
        login: names the variable that holds it, as ``…_env``, or else the file, as ``…_file``.
        name: of the secret.

    Raises:
        CredentialsRefused: it is not there; the message shows nothing of it.
    """
    from deslaunch.des import tokens  # noqa: PLC0415  # aiohttp is slow to import

    variable, file = login.get(f"{name}_env"), login.get(f"{name}_file", "")
    place = f"the variable {variable}" if variable else f"the file {file}"

    try:
        text = os.environ.get(variable, "") if variable else tokens.read_small(file).decode()
    except (OSError, UnicodeDecodeError) as exc:
        why = f"can't be read: {exc.strerror}" if isinstance(exc, OSError) else "is not in UTF-8"
    else:
        if text := text.strip():
            return text

        why = "is not set" if variable and variable not in os.environ else "is empty"

    # Not chained: what could not be decoded is in its error.
    raise CredentialsRefused(
        f"{place} {why}", hint="store the secret there, in UTF-8, readable by you"
    )
