"""The configuration file: many targets in TOML, and every mistake in it told at once.

A file is read only where ``--config`` names it, or from the user's configuration folder: never
because it lies beside a manifest. It names variables, files and commands, never a secret.
"""

from __future__ import annotations

import difflib
import math
import os
import tomllib
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from platformdirs import user_config_path

from deslaunch.config import (
    MAX_CONCURRENCY,
    Credentials,
    Login,
    Secret,
    TargetSettings,
)
from deslaunch.errors import ConfigurationError
from deslaunch.urls import safe_url
from deslaunch.wire import AUTH_URL

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path


def default_config() -> Path:
    """Return where the user's configuration file is, if there is one."""
    return user_config_path("deslaunch") / "config.toml"


def read_config(path: Path) -> dict[str, TargetSettings]:
    """Return the targets of a configuration file, by name.

    Paths in it that are not absolute are meant from the file's own folder.

    Raises:
        ConfigurationError: it can't be read, or holds mistakes; the message names each by file,
            table and key, and shows no value that may be a secret.
    """
    try:
        said = tomllib.loads(path.read_bytes().decode())
    except OSError as exc:
        raise ConfigurationError(
            f"the configuration file {path} can't be read: {exc.strerror}",
            hint="check its path and permissions, or leave --config out",
        ) from exc
    except UnicodeDecodeError as exc:
        raise ConfigurationError(
            f"the configuration file {path} is not in UTF-8: byte {exc.start} is wrong",
            hint="save it as UTF-8",
        ) from exc
    except tomllib.TOMLDecodeError as exc:
        raise ConfigurationError(
            f"the configuration file {path} is no TOML: {exc}",
            hint='texts need quotes, as in base_url = "https://des.example"',
        ) from None  # its attributes hold the whole file

    return _Reader(path).targets(said)


class _Kind(NamedTuple):
    """What a key's value must be.

    Attributes:
        expected: the words for it.
        holds: whether a value is that.
    """

    expected: str
    holds: Callable[[Any], bool]


_TEXT: Final = _Kind("a text in quotes", lambda value: isinstance(value, str) and value != "")
_WORDS: Final = _Kind(
    'a list of texts, as in ["vault", "read", "secret/des"]; there is no shell',
    lambda value: (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(word, str) and "\0" not in word for word in value)
        and bool(value[0])
    ),
)
_FLAG: Final = _Kind("true or false", lambda value: isinstance(value, bool))
_SLOTS: Final = _Kind(
    f"a whole number from 1 to {MAX_CONCURRENCY:,}",
    lambda value: type(value) is int and 1 <= value <= MAX_CONCURRENCY,
)
_SECONDS: Final = _Kind(
    "seconds, above 0",
    lambda value: type(value) in {int, float} and math.isfinite(value) and value > 0,
)
_TABLE: Final = _Kind("a table", lambda value: isinstance(value, dict))

_OF_FILE: Final = {"targets": _TABLE}
TARGET_KEYS: Final = {
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
OAUTH_KEYS: Final = {
    "auth_url": _TEXT,
    "org_id": _TEXT,
    "client_id": _TEXT,
    "client_secret_env": _TEXT,
    "client_secret_file": _TEXT,
    "username_env": _TEXT,
    "username_file": _TEXT,
    "password_env": _TEXT,
    "password_file": _TEXT,
}
_SOURCES: Final = ("token_env", "token_file", "token_command", "oauth")
_SECRETS: Final = ("client_secret", "username", "password")

# What people write who take the file for a place for secrets.
_NO_SECRETS: Final = {
    "token": "token_env, token_file or token_command",
    "access_token": "token_env, token_file or token_command",
    "client_secret": "client_secret_env or client_secret_file",
    "secret": "client_secret_env or client_secret_file",
    "username": "username_env or username_file",
    "user": "username_env or username_file",
    "password": "password_env or password_file",
    "refresh_token": "an [….oauth] table with the login that buys one",
}


class _Reader:
    """Reads one file's tables, and remembers what is wrong with them."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._mistakes: list[str] = []

    def targets(self, said: Mapping[str, Any]) -> dict[str, TargetSettings]:
        top = self._checked("", said, _OF_FILE)
        read = {name: self._target(name, table) for name, table in top.get("targets", {}).items()}

        if self._mistakes:
            raise ConfigurationError("\n".join(self._mistakes), hint=f"mend {self._path}")

        return read

    def _target(self, name: str, table: Any) -> TargetSettings:
        where = f"[targets.{_quoted(name)}]"

        if not isinstance(table, dict):
            self._note("[targets]", name, f"expected a table, got {_got(table)}")
            return TargetSettings(None, Credentials())

        known = self._checked(where, table, TARGET_KEYS)
        allow_http = known.get("allow_http", False)
        self._url(where, "base_url", known, allow_http=allow_http)
        self._one_of(where, "token", _SOURCES, table)

        if "base_url" not in table and "oauth" not in table:
            self._note(where, "base_url", "is missing; only an oauth table can do without it")

        login = self._login(f"[targets.{_quoted(name)}.oauth]", known, allow_http=allow_http)
        return TargetSettings(
            known.get("base_url"),
            Credentials(
                token_env=known.get("token_env"),
                token_file=self._file(known.get("token_file")),
                token_command=tuple(known["token_command"]) if "token_command" in known else None,
                login=login,
            ),
            concurrency=known.get("concurrency"),
            timeout=known.get("timeout"),
            connect_timeout=known.get("connect_timeout"),
            allow_http=allow_http,
        )

    def _login(self, where: str, target: Mapping[str, Any], *, allow_http: bool) -> Login | None:
        if "oauth" not in target:
            return None

        known = self._checked(where, target["oauth"], OAUTH_KEYS)
        self._url(where, "auth_url", known, allow_http=allow_http)

        for name in ("org_id", "client_id"):
            if name not in target["oauth"]:
                self._note(where, name, "is missing")

        for name in _SECRETS:
            self._one_of(where, name, (f"{name}_env", f"{name}_file"), target["oauth"])

        return Login(
            org_id=known.get("org_id", ""),
            client_id=known.get("client_id", ""),
            client_secret=self._secret("client_secret", known),
            username=self._secret("username", known),
            password=self._secret("password", known),
            auth_url=known.get("auth_url", AUTH_URL),
        )

    def _secret(self, name: str, known: Mapping[str, Any]) -> Secret:
        return Secret(variable=known.get(f"{name}_env"), file=self._file(known.get(f"{name}_file")))

    def _file(self, name: str | None) -> str | None:
        if name is None:
            return None

        named = os.path.expanduser(name)  # noqa: PTH111  # Path's raises for an unknown user
        return str(self._path.parent / named)

    def _checked(
        self, where: str, table: Mapping[str, Any], kinds: Mapping[str, _Kind]
    ) -> dict[str, Any]:
        """Return what is right in a table."""
        known: dict[str, Any] = {}

        for key, value in table.items():
            kind = kinds.get(key)

            if kind is None:
                self._note(where, key, _unknown(key, kinds))
            elif not kind.holds(value):
                self._note(where, key, f"expected {kind.expected}, got {_got(value)}")
            else:
                known[key] = value

        return known

    def _url(self, where: str, key: str, known: dict[str, Any], *, allow_http: bool) -> None:
        try:
            safe_url(known.get(key, AUTH_URL), "URL", allow_http=allow_http)
        except ConfigurationError as exc:
            advice = exc.hint.replace("--allow-http", "allow_http = true")
            self._note(where, key, f"{exc}; {advice}")

    def _one_of(
        self, where: str, what: str, keys: tuple[str, ...], table: Mapping[str, Any]
    ) -> None:
        named = [key for key in keys if key in table]
        choice = f"{', '.join(keys[:-1])} or {keys[-1]}"

        if len(named) > 1:
            self._note(where, " and ".join(named), f"are both there; expected one {what}")
        elif not named and what not in table:
            self._note(where, what, f"is missing; expected {choice}")

    def _note(self, where: str, key: str, what: str) -> None:
        place = f"{self._path}: {where} {key}" if where else f"{self._path}: {key}"
        self._mistakes.append(f"{place}: {what}")


def _unknown(key: str, kinds: Mapping[str, _Kind]) -> str:
    """Return what to write instead of a key that is none."""
    instead = _NO_SECRETS.get(key.lower())

    if instead is not None and kinds is not _OF_FILE:
        return f"a secret must not stand in this file; write {instead}"

    near = difflib.get_close_matches(key.lower().replace("-", "_"), kinds, n=1, cutoff=0.6)
    advice = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(kinds)}"
    return f"is no key of this table; {advice}"


def _got(value: Any) -> str:
    """Return a value in words; a text may be a secret, and is not shown."""
    match value:
        case bool():
            return "true" if value else "false"
        case int() | float():
            return str(value)
        case str():
            return "a text" if value else "an empty text"
        case list():
            return "a list"
        case dict():
            return "a table"
        case _:
            return "a date"


def _quoted(name: str) -> str:
    bare = name.isascii() and name.replace("-", "").replace("_", "").isalnum()
    return name if bare else f'"{name}"'
