"""The targets: a TOML file, the environment and options → clients of DES.

A configuration file is read only where ``--config`` names it, or from the user's configuration
folder: never because it lies beside a manifest. It names variables, files and commands, never a
secret, and every mistake in it is told at once. What the environment says is said of the target
``default``, and wins over the file.
"""

from __future__ import annotations

import difflib
import math
import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from deslaunch.cli.options import kept_config
from deslaunch.errors import ConfigurationError, CredentialsRefused
from deslaunch.model import DEFAULT_TARGET
from deslaunch.settings import OPTIONS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from deslaunch.cli.options import Given
    from deslaunch.des.client import DesClient
    from deslaunch.des.tokens import TokenSource
    from deslaunch.settings import Settings


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

        try:
            if self.variable:
                text = os.environ.get(self.variable, "")
            else:
                text = Path(self.file or "").read_text(encoding="utf-8")
        except OSError as exc:
            raise CredentialsRefused(
                f"{place} can't be read: {exc.strerror}", hint="check its path and permissions"
            ) from exc
        except UnicodeDecodeError:  # not chained: it holds the text
            raise CredentialsRefused(f"{place} is not in UTF-8", hint="save it as UTF-8") from None

        if not text.strip():
            raise CredentialsRefused(
                f"{place} holds nothing", hint="put there what the auth server asks for"
            )

        return text.strip()


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
_SLOTS: Final = _Kind(
    OPTIONS["concurrency"].range,
    lambda value: type(value) is int and 1 <= value <= (OPTIONS["concurrency"].high or 0),
)
_SECONDS: Final = _Kind(
    "seconds, above 0",
    lambda value: type(value) in {int, float} and math.isfinite(value) and value > 0,
)
_TABLE: Final = _Kind("a table", lambda value: isinstance(value, dict))

_SOURCES: Final = ("token_env", "token_file", "token_command", "oauth")
_SECRETS: Final = ("client_secret", "username", "password")
_OF_FILE: Final = {"targets": _TABLE}
_OF_TARGET: Final = {
    "base_url": _TEXT,
    "token_env": _TEXT,
    "token_file": _TEXT,
    "token_command": _WORDS,
    "oauth": _TABLE,
    "concurrency": _SLOTS,
    "timeout": _SECONDS,
    "connect_timeout": _SECONDS,
    "allow_http": _FLAG,
}
_OF_LOGIN: Final = dict.fromkeys(
    (
        "auth_url",
        "org_id",
        "client_id",
        *(f"{one}_{end}" for one in _SECRETS for end in ("env", "file")),
    ),
    _TEXT,
)

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
        raise ConfigurationError(
            f"the configuration file {path} can't be read: {exc.strerror}",
            hint="check its path and permissions, or leave --config out",
        ) from exc
    except UnicodeDecodeError as exc:
        raise ConfigurationError(
            f"the configuration file {path} is not in UTF-8: byte {exc.start} is wrong",
            hint="save it as UTF-8",
        ) from None  # it holds the whole file
    except tomllib.TOMLDecodeError as exc:
        raise ConfigurationError(
            f"the configuration file {path} is no TOML: {exc}",
            hint='texts need quotes, as in base_url = "https://des.example"',
        ) from None  # its attributes hold the whole file

    return _Reader(path).read(content)


class _Reader:
    """Reads one file's tables, and collects what is wrong with them."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._mistakes: list[str] = []

    def read(self, content: Mapping[str, Any]) -> dict[str, Target]:
        tables = self._checked("", content, _OF_FILE).get("targets", {})
        targets = {name: self._target(name, table) for name, table in tables.items()}

        if self._mistakes:
            raise ConfigurationError("\n".join(self._mistakes), hint=f"fix {self._path}")

        return targets

    def _target(self, name: str, table: Any) -> Target:
        bare = name.isascii() and name.replace("-", "").replace("_", "").isalnum()
        where = f"targets.{name}" if bare else f'targets."{name}"'

        if not isinstance(table, dict):
            self._note("targets", name, f"expected a table, got {_described(table)}")
            return Target()

        known = self._checked(where, table, _OF_TARGET)
        allow_http = known.get("allow_http", False)
        self._check_url(where, "base_url", known, allow_http=allow_http)
        self._check_one_of(where, "token", _SOURCES, table)

        if "base_url" not in table and "oauth" not in table:
            self._note(where, "base_url", "is missing; only an oauth table can do without it")

        login = self._login(f"{where}.oauth", known, allow_http=allow_http)
        return Target(
            known.get("base_url"),
            self._token(known, login),
            known.get("concurrency"),
            known.get("timeout"),
            known.get("connect_timeout"),
            allow_http,
        )

    def _token(self, known: Mapping[str, Any], login: Login | None) -> Token | None:
        if login is not None:
            return Token("oauth", login)

        if "token_file" in known:
            return Token("file", self._file(known["token_file"]))

        if words := known.get("token_command"):
            return Token("command", tuple(words))

        return Token("env", known["token_env"]) if "token_env" in known else None

    def _login(self, where: str, target: Mapping[str, Any], *, allow_http: bool) -> Login | None:
        if "oauth" not in target:
            return None

        table = target["oauth"]
        known = self._checked(where, table, _OF_LOGIN)
        self._check_url(where, "auth_url", known, allow_http=allow_http)

        for name in ("org_id", "client_id"):
            if name not in table:
                self._note(where, name, "is missing")

        for name in _SECRETS:
            self._check_one_of(where, name, (f"{name}_env", f"{name}_file"), table)

        secrets: dict[str, Any] = {
            name: Secret(known.get(f"{name}_env"), self._file(known.get(f"{name}_file")) or None)
            for name in _SECRETS
        }
        texts: dict[str, Any] = {one: known.get(one, "") for one in ("org_id", "client_id")}
        return Login(**texts, **secrets, auth_url=known.get("auth_url"))

    def _file(self, name: str | None) -> str:
        expanded = os.path.expanduser(name or "")  # noqa: PTH111  # Path's raises for an unknown user
        return str(self._path.parent / expanded) if name else ""

    def _checked(
        self, where: str, table: Mapping[str, Any], kinds: Mapping[str, _Kind]
    ) -> dict[str, Any]:
        """Return what is right in a table."""
        known: dict[str, Any] = {}

        for key, value in table.items():
            kind = kinds.get(key)

            if kind is None:
                self._note(where, key, _instead(key, kinds))
            elif not kind.fits(value):
                self._note(where, key, f"expected {kind.expected}, got {_described(value)}")
            else:
                known[key] = value

        return known

    def _check_url(
        self, where: str, key: str, known: Mapping[str, Any], *, allow_http: bool
    ) -> None:
        from deslaunch.des.http import safe_url  # noqa: PLC0415  # aiohttp is slow to import

        if key in known:
            try:
                safe_url(known[key], "URL", allow_http=allow_http)
            except ConfigurationError as exc:
                advice = exc.hint.replace("--allow-http", "allow_http = true")
                self._note(where, key, f"{exc}; {advice}")

    def _check_one_of(
        self, where: str, what: str, keys: tuple[str, ...], table: Mapping[str, Any]
    ) -> None:
        named = [key for key in keys if key in table]

        if len(named) > 1:
            self._note(where, " and ".join(named), f"are both there; expected one {what}")
        elif not named and what not in table:
            choice = f"{', '.join(keys[:-1])} or {keys[-1]}"
            self._note(where, what, f"is missing; expected {choice}")

    def _note(self, where: str, key: str, text: str) -> None:
        self._mistakes.append(f"{self._path}: {f'[{where}] ' if where else ''}{key}: {text}")


def _instead(key: str, kinds: Mapping[str, _Kind]) -> str:
    """Return what to write instead of a key that is none."""
    if kinds is not _OF_FILE and key.lower() in _NO_SECRETS:
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
_LOGIN: Final = (
    "DES_ORG_ID",
    "DES_CLIENT_ID",
    "DES_CLIENT_SECRET",
    "DES_USERNAME",
    "DES_PASSWORD",
)


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

    token: Token | None = None

    if login:
        token = _login_token(environment)
    elif "DES_TOKEN_COMMAND" in named:
        token = Token("command", _split(environment["DES_TOKEN_COMMAND"]))
    elif "DES_TOKEN_FILE" in named:
        token = Token("file", environment["DES_TOKEN_FILE"])
    elif named:
        token = Token("env", "DES_TOKEN")

    return Target(base_url or environment.get("DES_BASE_URL") or None, token)


def _login_token(environment: Mapping[str, str]) -> Token:
    missing = [variable for variable in _LOGIN if not environment.get(variable)]

    if missing:
        raise ConfigurationError(
            f"the login at the auth server lacks {', '.join(missing)}",
            hint="set them all, or none and DES_TOKEN, DES_TOKEN_FILE or DES_TOKEN_COMMAND",
        )

    return Token(
        "oauth",
        Login(
            environment["DES_ORG_ID"],
            environment["DES_CLIENT_ID"],
            **{name: Secret(f"DES_{name.upper()}") for name in _SECRETS},
            auth_url=environment.get("DES_AUTH_URL") or None,
        ),
    )


def _split(command: str) -> tuple[str, ...]:
    try:
        words = tuple(shlex.split(command))
    except ValueError as exc:
        raise ConfigurationError(
            f"DES_TOKEN_COMMAND can't be split into words: {exc}", hint="check its quotes"
        ) from exc

    if not words:
        raise ConfigurationError("DES_TOKEN_COMMAND names no command", hint="set it, or unset it")

    return words


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


def clients_of(
    given: Given,
    settings: Settings,
    kept: Mapping[str, Any] | None = None,
    *,
    needs_token: bool = False,
) -> DesClient | dict[str, DesClient]:
    """Return the clients that file, environment and options describe, not yet open.

    Where no file names targets there is one client, that of all rows.

    Args:
        given: a time limit that was given there, or by the ledger, wins over a target's own.
        settings: the session's.
        kept: what the ledger keeps of earlier command lines.
        needs_token: a missing token is an error now, not when the first request is made.

    Raises:
        ConfigurationError: no base URL, two token sources, or none where one is needed.
    """
    of_file = _configured(given, kept or {})
    base_url, target = given["base_url"], settings.target
    limits = {
        name: getattr(settings, name)
        for name in ("timeout", "connect_timeout")
        if given[name] is not None or (kept or {}).get(name) is not None
    }

    if of_file:
        found = merged(of_file, os.environ, base_url=base_url, target=target)
        return {name: _client(one, given, limits) for name, one in found.items()}

    only = from_environment(os.environ, base_url=base_url)
    client = _client(only, given, limits)

    if needs_token and only.token is None:
        raise ConfigurationError(
            "there is no token, and so nothing was sent",
            hint="set DES_TOKEN, DES_TOKEN_FILE or DES_TOKEN_COMMAND, or DES_ORG_ID and the rest "
            "of a login; or name targets in a file (--config)",
        )

    return client


def _configured(given: Given, kept: Mapping[str, Any]) -> dict[str, Target]:
    """Return the targets of the file that is named, or else of the user's, if there is one."""
    known = None if "config" in given.typed else kept_config(kept)
    named = given["config"] if known is None else Path(known)

    if named is not None:
        return read_config(named)

    default = default_config()
    # Path's own raises where a home is not ours
    return read_config(default) if default and os.path.exists(default) else {}  # noqa: PTH110


def _client(target: Target, given: Given, limits: Mapping[str, float]) -> DesClient:
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
    defaults = {name: OPTIONS[name].default for name in ("timeout", "connect_timeout")}
    own = {name: getattr(target, name) for name in defaults if getattr(target, name) is not None}
    return DesClient(
        target.base_url,
        token=_source(target.token, allow_http=allow_http),
        allow_http=allow_http,
        proxy=proxy_of,
        concurrency=target.concurrency,
        **(defaults | own | dict(limits)),
    )


def _source(token: Token | None, *, allow_http: bool) -> TokenSource:
    from deslaunch.des import tokens  # noqa: PLC0415  # aiohttp is slow to import
    from deslaunch.des.http import proxy_of  # noqa: PLC0415
    from deslaunch.des.wire import AUTH_URL  # noqa: PLC0415

    match token:
        case Token(value=Login() as login):
            auth_url = login.auth_url or AUTH_URL
            return tokens.OAuthToken(
                org_id=login.org_id,
                client_id=login.client_id,
                client_secret=login.client_secret.read,
                username=login.username.read,
                password=login.password.read,
                auth_url=auth_url,
                allow_http=allow_http,
                proxy=proxy_of(auth_url),
            )
        case Token("file", str(path)):
            return tokens.FileToken(path)
        case Token("command", tuple(argv)):
            return tokens.CommandToken([str(word) for word in argv])
        case Token("env", str(variable)):
            return tokens.EnvToken(variable)
        case _:
            return tokens.EnvToken("DES_TOKEN")
