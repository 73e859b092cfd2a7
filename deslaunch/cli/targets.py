"""The targets: a TOML file, the environment and options → clients of DES.

A configuration file is read only where ``--config`` names it, or from the user's configuration
folder: never because it lies beside a manifest. It names variables, files and commands, never a
secret, and every mistake in it is told at once. What the environment says is said of the target
``default``, and wins over the file.
"""

from __future__ import annotations

import difflib
import os
import re
import shlex
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from deslaunch.cli.options import kept_config
from deslaunch.errors import ConfigurationError, CredentialsRefused
from deslaunch.model import DEFAULT_TARGET
from deslaunch.settings import OPTIONS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Mapping

    from deslaunch.cli.options import Given
    from deslaunch.des.client import DesClient
    from deslaunch.des.tokens import TokenSource


class Secret(NamedTuple):
    """Where a text is that must not be shown: in a variable, or else in a file."""

    variable: str | None = None
    file: str | None = None

    def read(self) -> str:
        """Return the text as it is now, surrounding white space apart.

        Raises:
            CredentialsRefused: it is not there; the message shows nothing of it.
        """
        place = f"the variable {self.variable}" if self.variable else f"the file {self.file}"
        why, hint = "holds nothing", "put there what the auth server asks for"

        try:
            content = Path(self.file).read_text(encoding="utf-8") if self.file else None
            text = (content or os.environ.get(self.variable or "", "")).strip()
        except OSError as exc:
            why, hint = f"can't be read: {exc.strerror}", "check its path and permissions"
        except UnicodeDecodeError:
            why, hint = "is not in UTF-8", "save it as UTF-8"
        else:
            if text:
                return text

        # Not chained: what could not be decoded is in its error.
        raise CredentialsRefused(f"{place} {why}", hint=hint)


class Login(NamedTuple):
    """What the auth server asks for before it gives a token; None: the public auth server."""

    org_id: str
    client_id: str
    client_secret: Secret
    username: Secret
    password: Secret
    auth_url: str | None = None


class Token(NamedTuple):
    """Where a target's tokens come from: a variable, a file, a command's argv, or a login."""

    kind: Literal["env", "file", "command", "oauth"]
    value: str | tuple[str, ...] | Login


class Target(NamedTuple):
    """One target, as file and environment describe it; None for what they leave open."""

    base_url: str | None = None
    token: Token | None = None
    concurrency: int | None = None
    timeout: float | None = None
    connect_timeout: float | None = None
    allow_http: bool = False

    @property
    def is_whole(self) -> bool:
        """It is known where its DES is: a login's token tells that too."""
        return self.base_url is not None or (self.token is not None and self.token.kind == "oauth")


# The configuration file.


class _Kind(NamedTuple):
    expected: str
    fits: Callable[[Any], bool]


def _number(name: str) -> _Kind:
    """Return what an option takes, as TOML writes it."""
    option = OPTIONS[name]
    return _Kind(option.range, lambda one: type(one) in {int, option.kind} and option.fits(one))


_TEXT: Final = _Kind("a text in quotes", lambda value: isinstance(value, str) and value != "")
_WORDS: Final = _Kind(
    'a list of texts, as in ["vault", "read", "secret/des"]; there is no shell',
    lambda value: (
        isinstance(value, list)
        and all(isinstance(word, str) and "\0" not in word for word in value)
        and any(value[:1])
    ),
)
_FLAG: Final = _Kind("true or false", lambda value: isinstance(value, bool))
_TABLE: Final = _Kind("a table", lambda value: isinstance(value, dict))

_SOURCES: Final = ("token_env", "token_file", "token_command", "oauth")
_SECRETS: Final = ("client_secret", "username", "password")
_LIMITS: Final = ("timeout", "connect_timeout")
_OF_TARGET: Final = {
    **dict.fromkeys(("base_url", "token_env", "token_file"), _TEXT),
    "token_command": _WORDS,
    "oauth": _TABLE,
    **{name: _number(name) for name in ("concurrency", *_LIMITS)},
    "allow_http": _FLAG,
}
_OF_LOGIN: Final = {
    **dict.fromkeys(("auth_url", "org_id", "client_id"), _TEXT),
    **{f"{name}_{end}": _TEXT for name in _SECRETS for end in ("env", "file")},
}

# What people write who take the file for a place for secrets.
_NO_SECRETS: Final = {
    **dict.fromkeys(("token", "access_token"), "token_env, token_file or token_command"),
    **dict.fromkeys(("client_secret", "secret"), "client_secret_env or client_secret_file"),
    **dict.fromkeys(("username", "user"), "username_env or username_file"),
    "password": "password_env or password_file",
    "refresh_token": "an [….oauth] table with the login that buys one",
}


def default_config() -> Path | None:
    """Return where the user's configuration file would be; None for a user without a home."""
    from platformdirs import user_config_path  # noqa: PLC0415  # not needed for --help

    try:
        path = user_config_path("deslaunch") / "config.toml"
    except RuntimeError:  # no HOME, and no entry in the list of users
        return None

    return path if path.is_absolute() else None


def read_config(path: Path) -> dict[str, Target]:
    """Return the targets of a configuration file, by name.

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
        hint = "check its path and permissions, or leave --config out"
    except UnicodeDecodeError as exc:
        why, hint = f"is not in UTF-8: byte {exc.start} is wrong", "save it as UTF-8"
    except tomllib.TOMLDecodeError as exc:
        why = f"is no TOML: {exc}"
        hint = 'texts need quotes, as in base_url = "https://des.example"'
    else:
        if mistakes := [f"{path}: {mistake}" for mistake in _mistakes(content)]:
            raise ConfigurationError("\n".join(mistakes), hint=f"fix {path}")

        tables = content.get("targets", {})
        return {name: _target_of(table, path.parent) for name, table in tables.items()}

    # Not chained: the errors hold the whole file.
    raise ConfigurationError(f"the configuration file {path} {why}", hint=hint)


def _target_of(table: Mapping[str, Any], folder: Path) -> Target:
    """Return the target of a table without mistakes."""

    def file(name: str | None) -> str | None:
        expanded = os.path.expanduser(name or "")  # noqa: PTH111  # Path's raises for an unknown user
        return str(folder / expanded) if name else None

    own = {key: table[key] for key in Target._fields if key in table}

    if login := table.get("oauth"):
        texts = {key: login[key] for key in ("org_id", "client_id", "auth_url") if key in login}
        secrets: dict[str, Any] = {
            name: Secret(login.get(f"{name}_env"), file(login.get(f"{name}_file")))
            for name in _SECRETS
        }
        token = Token("oauth", Login(**texts, **secrets))
    elif path := file(table.get("token_file")):
        token = Token("file", path)
    elif words := table.get("token_command"):
        token = Token("command", tuple(words))
    else:
        token = Token("env", table["token_env"])

    return Target(token=token, **own)


def _mistakes(content: Mapping[str, Any]) -> Iterator[str]:
    """Yield what is wrong with a file, each with its table and key."""
    yield from _check("", content, {"targets": _TABLE})
    tables = content.get("targets")
    tables = tables if isinstance(tables, dict) else {}
    yield from _check("[targets] ", tables, dict.fromkeys(tables, _TABLE))

    for name, table in tables.items():
        if isinstance(table, dict):
            is_bare = re.fullmatch(r"[A-Za-z0-9_-]+", name)
            yield from _check_target(f"targets.{name}" if is_bare else f'targets."{name}"', table)


def _check_target(name: str, table: Mapping[str, Any]) -> Iterator[str]:
    where, login = f"[{name}] ", table.get("oauth")
    allow_http = table.get("allow_http") is True
    yield from _check(where, table, _OF_TARGET, allow_http=allow_http)
    yield from _check_choice(where, "token", _SOURCES, table)

    if "base_url" not in table and "oauth" not in table:
        yield f"{where}base_url: is missing; only an oauth table can do without it"

    if isinstance(login, dict):
        where = f"[{name}.oauth] "
        yield from _check(where, login, _OF_LOGIN, allow_http=allow_http)
        missing = (key for key in ("org_id", "client_id") if key not in login)
        yield from (f"{where}{key}: is missing" for key in missing)

        for secret in _SECRETS:
            yield from _check_choice(where, secret, (f"{secret}_env", f"{secret}_file"), login)


def _check(
    where: str, table: Mapping[str, Any], kinds: Mapping[str, _Kind], *, allow_http: bool = False
) -> Iterator[str]:
    from deslaunch.des.http import safe_url  # noqa: PLC0415  # aiohttp is slow to import

    for key, value in table.items():
        kind = kinds.get(key)

        if kind is None:
            yield f"{where}{key}: {_instead(key, kinds)}"
        elif not kind.fits(value):
            yield f"{where}{key}: expected {kind.expected}, got {_described(value)}"
        elif key.endswith("_url"):
            try:
                safe_url(value, "URL", allow_http=allow_http)
            except ConfigurationError as exc:
                advice = exc.hint.replace("--allow-http", "allow_http = true")
                yield f"{where}{key}: {exc}; {advice}"


def _check_choice(
    where: str, what: str, keys: tuple[str, ...], table: Mapping[str, Any]
) -> Iterator[str]:
    named = [key for key in keys if key in table]

    if len(named) > 1:
        yield f"{where}{' and '.join(named)}: are both there; expected one {what}"
    elif not named and what not in table:
        yield f"{where}{what}: is missing; expected {', '.join(keys[:-1])} or {keys[-1]}"


def _instead(key: str, kinds: Mapping[str, _Kind]) -> str:
    """Return what to write instead of a key that is none."""
    if len(kinds) > 1 and key.lower() in _NO_SECRETS:
        return f"a secret must not stand in this file; write {_NO_SECRETS[key.lower()]}"

    near = difflib.get_close_matches(key.lower().replace("-", "_"), kinds, n=1)
    advice = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(kinds)}"
    return f"is no key of this table; {advice}"


def _described(value: Any) -> str:
    """Return a value in words; a text may be a secret, and is not shown."""
    if isinstance(value, (bool, int, float)):
        return str(value).lower()

    names: dict[type, str] = {str: "a text", list: "a list", dict: "a table"}
    return "an empty text" if value == "" else names.get(type(value), "a date")


# The environment.

_TOKENS: Final = ("DES_TOKEN", "DES_TOKEN_FILE", "DES_TOKEN_COMMAND")
_LOGIN: Final = tuple(f"DES_{name.upper()}" for name in Login._fields[:-1])


def from_environment(environment: Mapping[str, str], *, base_url: str | None = None) -> Target:
    """Return the target that the environment describes.

    Args:
        environment: an empty variable counts as none.
        base_url: wins over the environment's.

    Raises:
        ConfigurationError: two token sources, a command that can't be split, or half a login.
    """
    named = [variable for variable in _TOKENS if environment.get(variable)]
    login = [variable for variable in _LOGIN if environment.get(variable)]

    if len(named) + bool(login) > 1:
        raise ConfigurationError(
            f"{' and '.join([*named, *login])} are set: one target takes one token source",
            hint=f"unset all but one of {', '.join(_TOKENS)} and the login",
        )

    if missing := [variable for variable in _LOGIN if login and variable not in login]:
        raise ConfigurationError(
            f"the login at the auth server lacks {', '.join(missing)}",
            hint="set them all, or none and DES_TOKEN, DES_TOKEN_FILE or DES_TOKEN_COMMAND",
        )

    token: Token | None = None

    if login:
        texts = (environment["DES_ORG_ID"], environment["DES_CLIENT_ID"])
        secrets: dict[str, Any] = {name: Secret(f"DES_{name.upper()}") for name in _SECRETS}
        auth_url = environment.get("DES_AUTH_URL") or None
        token = Token("oauth", Login(*texts, **secrets, auth_url=auth_url))
    elif "DES_TOKEN_COMMAND" in named:
        token = Token("command", _split(environment["DES_TOKEN_COMMAND"]))
    elif "DES_TOKEN_FILE" in named:
        token = Token("file", environment["DES_TOKEN_FILE"])
    elif named:
        token = Token("env", "DES_TOKEN")

    return Target(base_url or environment.get("DES_BASE_URL") or None, token)


def _split(command: str) -> tuple[str, ...]:
    try:
        if words := tuple(shlex.split(command)):
            return words
    except ValueError as exc:
        why, hint = f"can't be split into words: {exc}", "check its quotes"
    else:
        why, hint = "names no command", "set it, or unset it"

    raise ConfigurationError(f"DES_TOKEN_COMMAND {why}", hint=hint)


def merged(
    of_file: Mapping[str, Target],
    environment: Mapping[str, str],
    *,
    base_url: str | None = None,
    target: str = DEFAULT_TARGET,
) -> dict[str, Target]:
    """Return the targets of a configuration file, with what environment and arguments say.

    Args:
        of_file: by name.
        environment: said of the default target, and wins.
        base_url: an argument; that of ``target``; it wins over all.
        target: the target of the rows that name none.

    Raises:
        ConfigurationError: the environment contradicts itself, or ``base_url`` is of no target.
    """
    found = from_environment(environment, base_url=base_url if target == DEFAULT_TARGET else None)
    known = of_file.get(DEFAULT_TARGET, found)
    default = known._replace(
        base_url=found.base_url or known.base_url, token=found.token or known.token
    )
    whole = {**of_file, **({DEFAULT_TARGET: default} if default.is_whole else {})}

    if base_url is None:
        return whole

    if target not in whole:
        raise ConfigurationError(
            f"--base-url is that of target {target}, and there is none",
            hint=f"pass --target and one of {', '.join(whole)}",
        )

    return whole | {target: whole[target]._replace(base_url=base_url)}


# Clients.


def clients_of(given: Given, *, needs_token: bool = False) -> dict[str, DesClient]:
    """Return the clients that file, environment and options describe by target, not yet open.

    Where no file names targets there is one client, that of the rows that name no target.

    Args:
        given: a time limit that was given there, or by the ledger, wins over a target's own.
        needs_token: a missing token is an error now, not when the first request is made.

    Raises:
        ConfigurationError: no base URL, two token sources, or none where one is needed.
    """
    of_file, base_url = _configured(given), given["base_url"]

    if of_file:
        found = merged(of_file, os.environ, base_url=base_url, target=given.settings.target)
        return {name: _client(target, given) for name, target in found.items()}

    only = from_environment(os.environ, base_url=base_url)
    clients = {given.settings.target: _client(only, given)}

    if needs_token and only.token is None:
        raise ConfigurationError(
            "there is no token, and so nothing was sent",
            hint="set DES_TOKEN, DES_TOKEN_FILE or DES_TOKEN_COMMAND, or DES_ORG_ID and the rest "
            "of a login; or name targets in a file (--config)",
        )

    return clients


@asynccontextmanager
async def opened(clients: Mapping[str, DesClient]) -> AsyncIterator[None]:
    """Have all clients open."""
    async with AsyncExitStack() as stack:
        for client in clients.values():
            await stack.enter_async_context(client)

        yield


def _configured(given: Given) -> dict[str, Target]:
    """Return the targets of the file that is named, or else of the user's, if there is one."""
    known = None if "config" in given.typed else kept_config(given.before)

    if path := known or given["config"]:
        return read_config(Path(path))

    default = default_config()
    # Path's own raises where a home is not ours
    return read_config(default) if default and os.path.exists(default) else {}  # noqa: PTH110


def _client(target: Target, given: Given) -> DesClient:
    """Return the client of one target, not yet open.

    Raises:
        ConfigurationError: there is no base URL, or one that can't be used.
    """
    from deslaunch.des.client import DesClient  # noqa: PLC0415  # aiohttp is slow to import
    from deslaunch.des.http import proxy_of  # noqa: PLC0415

    if not target.is_whole:
        raise ConfigurationError(
            "there is no base URL of DES",
            hint="set DES_BASE_URL, pass --base-url URL, or name targets in a file for --config",
        )

    allow_http = bool(given["allow_http"]) or target.allow_http
    limits: dict[str, Any] = {name: getattr(given.settings, name) for name in _LIMITS}

    for name in _LIMITS:
        if getattr(target, name) and not (given[name] or given.before.get(name)):
            limits[name] = getattr(target, name)

    return DesClient(
        target.base_url,
        token=_source(target.token, allow_http=allow_http),
        allow_http=allow_http,
        proxy=proxy_of,
        concurrency=target.concurrency,
        **limits,
    )


def _source(token: Token | None, *, allow_http: bool) -> TokenSource:
    from deslaunch.des import tokens  # noqa: PLC0415  # aiohttp is slow to import
    from deslaunch.des.http import proxy_of  # noqa: PLC0415
    from deslaunch.des.wire import AUTH_URL  # noqa: PLC0415

    match token:
        case Token(value=Login() as login):
            url = login.auth_url or AUTH_URL
            secrets = {name: getattr(login, name).read for name in _SECRETS}
            known: dict[str, Any] = login._asdict() | secrets | {"auth_url": url}
            return tokens.OAuthToken(**known, allow_http=allow_http, proxy=proxy_of(url))
        case Token("file", str(path)):
            return tokens.FileToken(path)
        case Token("command", tuple(argv)):
            return tokens.CommandToken([str(word) for word in argv])
        case Token("env", str(variable)):
            return tokens.EnvToken(variable)
        case _:
            return tokens.EnvToken("DES_TOKEN")
