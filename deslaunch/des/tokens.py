"""Where tokens come from, and how one that DES refused is replaced.

A source only fetches; :class:`TokenKeeper` decides when, so that many requests which were
refused together ask the source once. A token's text is in no ``repr``, no message and no
exception, and :meth:`TokenKeeper.scrub` cuts it out of what others say.
"""

from __future__ import annotations

import asyncio
import math
import os
import re
import signal
import time
from asyncio.subprocess import DEVNULL, PIPE, create_subprocess_exec
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol, runtime_checkable

from deslaunch.errors import ConfigurationError, CredentialsRefused, DeslaunchError, NotSent

if TYPE_CHECKING:
    from asyncio.subprocess import Process
    from collections.abc import Callable, Sequence

SCRUBBED: Final = "[token]"
"""What stands where a token was cut out."""

_VISIBLE: Final = re.compile(r"[!-~]+")
_SECRET_LIKE: Final = re.compile(r"\S{20,}")
_SHORTEST_CUT: Final = 8
_LINE_LIMIT: Final = 200
_RENEW_AHEAD: Final = 60.0
"""Seconds before its end at which a token is renewed, but never in the first half of its life."""


@dataclass(frozen=True, slots=True)
class Token:
    """A bearer token that is fit for a header; its text is not shown by ``repr`` or ``str``.

    Attributes:
        text: visible ASCII, at least one character; surrounding white space was stripped.
        svc: base URL of the DES that takes it, where the source tells.
        expires_in: seconds that it is good for from now, above 0, where the source tells.

    Raises:
        CredentialsRefused: the text is empty, or holds a blank, a line break or another
            character that a header can't carry.
    """

    text: str = field(repr=False)
    svc: str | None = None
    expires_in: float | None = None

    def __post_init__(self) -> None:
        stripped = self.text.strip()

        if not stripped:
            raise CredentialsRefused("the token is empty", hint="check where the token comes from")

        if _VISIBLE.fullmatch(stripped) is None:
            raise CredentialsRefused(
                "the token holds a blank, a line break or a character that is not ASCII",
                hint="give the bare token alone, without 'Bearer' and on one line",
            )

        object.__setattr__(self, "text", stripped)


class TokenSource(Protocol):
    """Anything that can fetch the token which is valid now."""

    async def fetch(self) -> Token | str:
        """Return the current token; called again after DES refused the one before.

        Raises:
            CredentialsRefused: there is none.
            NotSent: there may be one later.
        """
        ...


@runtime_checkable
class OrganisationTokens(TokenSource, Protocol):
    """A source of one organisation's tokens, each of which names its DES in ``svc``."""

    @property
    def org_id(self) -> str:
        """The organisation."""
        ...


@dataclass(frozen=True, slots=True)
class StaticToken:
    """A token that is known and never changes.

    Attributes:
        text: the token.

    Raises:
        CredentialsRefused: the text can't be a token.
    """

    text: str = field(repr=False)

    def __post_init__(self) -> None:
        Token(self.text)

    async def fetch(self) -> Token:
        """Return the token."""
        return Token(self.text)


@dataclass(frozen=True, slots=True)
class EnvToken:
    """A token in an environment variable, read on each fetch.

    Attributes:
        variable: the variable's name.
    """

    variable: str = "DES_TOKEN"

    async def fetch(self) -> Token:
        """Return the variable's value.

        Raises:
            CredentialsRefused: the variable is unset, or its value can't be a token.
        """
        text = os.environ.get(self.variable)

        if text is None:
            raise CredentialsRefused(
                f"the environment variable {self.variable} is not set",
                hint=f"set {self.variable} to a DES token",
            )

        return Token(text)


@dataclass(frozen=True, slots=True)
class FileToken:
    """A token alone in a file, read anew on each fetch so that others may replace it.

    Attributes:
        path: the file.
    """

    path: Path | str

    async def fetch(self) -> Token:
        """Return the file's content, read in a worker thread.

        Raises:
            CredentialsRefused: the file can't be read, or its content can't be a token.
        """
        try:
            content = await asyncio.to_thread(Path(self.path).read_bytes)
        except OSError as exc:
            raise CredentialsRefused(
                f"the token file {str(self.path)!r} can't be read: {exc.strerror}",
                hint="check the file's path and permissions",
            ) from exc

        return Token(_text(content))


class CommandToken:
    """A token that a command prints on its standard output. There is no shell.

    Args:
        argv: the command and its arguments.
        timeout: seconds, more than 0; then the command is killed with all that it started.

    Raises:
        ConfigurationError: ``argv`` is empty, one string instead of a list, or holds a NUL.
    """

    def __init__(self, argv: Sequence[str], timeout: float = 30) -> None:
        if isinstance(argv, str) or not argv or any("\0" in word for word in argv):
            raise ConfigurationError(
                "the token command must be a list of strings",
                hint='write ["vault", "read", "-field=token", "secret/des"]; there is no shell',
            )

        self._argv = tuple(argv)
        self._timeout = timeout

    def __repr__(self) -> str:
        return f"CommandToken([{self._argv[0]!r}, …], timeout={self._timeout:g})"

    async def fetch(self) -> Token:
        """Run the command and return what it printed.

        Raises:
            CredentialsRefused: the command can't be run, failed, took too long, or printed
                something that can't be a token.
        """
        process = await self._spawn()

        try:
            async with asyncio.timeout(self._timeout):
                stdout, stderr = await process.communicate()
        except TimeoutError as exc:
            raise CredentialsRefused(
                f"the token command {self._argv[0]!r} did not end within {self._timeout:g} s",
                hint="run it by hand; it must not ask anything",
            ) from exc
        finally:
            await _end(process)

        if process.returncode:
            raise self._failure(process.returncode, _text(stdout), _text(stderr))

        return Token(_text(stdout))

    async def _spawn(self) -> Process:
        try:
            return await create_subprocess_exec(
                *self._argv,
                stdin=DEVNULL,
                stdout=PIPE,
                stderr=PIPE,
                start_new_session=True,  # so that it can be killed with its children
            )
        except OSError as exc:
            raise CredentialsRefused(
                f"the token command {self._argv[0]!r} can't be run: {exc.strerror}",
                hint="check the command's name and PATH",
            ) from exc

    def _failure(self, status: int, stdout: str, stderr: str) -> CredentialsRefused:
        end = f"exit status {status}" if status > 0 else f"signal {-status}"
        said = _last_line(stderr, without=stdout.strip())
        return CredentialsRefused(
            f"the token command {self._argv[0]!r} failed with {end}{said}",
            hint="run it by hand; it must print the token and nothing else",
        )


def _text(content: bytes) -> str:
    return content.decode("utf-8", "replace")


async def _end(process: Process) -> None:
    """Kill a command that still runs, with its children, and read its pipes to their end."""
    if process.returncode is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)

        await process.communicate()


def _last_line(stderr: str, *, without: str) -> str:
    """Return the last line of ``stderr`` with all that may be a secret taken out."""
    lines = stderr.strip().splitlines()

    if not lines:
        return ""

    line = lines[-1].replace(without, "…") if without else lines[-1]
    return f": {_SECRET_LIKE.sub('…', line)[:_LINE_LIMIT]}"


class TokenKeeper:
    """The token in use, its generation, and every token that was in use before.

    Generations are counted from 1, which is the first token that the source gave. A request
    remembers the generation it was sent with, so that a late 401 for an old token costs no
    second renewal.

    A token whose source tells how long it lasts is renewed a minute ahead of its end, so that
    DES need not refuse it first. Where that fails, it stays in use until DES does.

    Args:
        source: where tokens come from.
        clock: seconds of a clock that only goes forward.
    """

    def __init__(self, source: TokenSource, clock: Callable[[], float] = time.monotonic) -> None:
        self._source = source
        self._clock = clock
        self._lock = asyncio.Lock()
        self._token: Token | None = None
        self._generation = 0
        self._renew_at = math.inf
        self._seen: dict[str, re.Pattern[str]] = {}
        self._failures = 0
        self._failure: CredentialsRefused | NotSent | None = None

    def __repr__(self) -> str:
        return f"<TokenKeeper of {type(self._source).__name__}, generation {self._generation}>"

    async def current(self) -> tuple[Token, int]:
        """Return the token in use and its generation; the first call fetches it.

        Raises:
            CredentialsRefused: the source failed.
            NotSent: the source could not be reached.
        """
        if self._token is None:
            await self.renew(self._generation)
        elif self._clock() >= self._renew_at:
            await self._renew_ahead()

        assert self._token is not None
        return self._token, self._generation

    async def renew(self, refused_generation: int) -> None:
        """Replace the token of ``refused_generation``, unless it was replaced already.

        All who wait share one fetch and its failure. Where the one who fetches is cancelled,
        the next who waits fetches.

        Raises:
            CredentialsRefused: the source failed, or has no token but refused ones.
            NotSent: the source could not be reached; :meth:`current` asks it again.
        """
        try:
            await self._renew(refused_generation)
        except NotSent:
            if self._generation == refused_generation:
                self._token = None  # refused once, it is not to be sent again

            raise

    async def _renew_ahead(self) -> None:
        try:
            await self._renew(self._generation)
        except (CredentialsRefused, NotSent):
            self._renew_at = math.inf

    async def _renew(self, generation: int) -> None:
        failures = self._failures

        async with self._lock:
            if self._generation != generation:
                return

            if self._failure is not None and self._failures != failures:
                raise _same(self._failure) from self._failure

            await self._replace()

    def scrub(self, text: str) -> str:
        """Return ``text`` without any token that was ever in use, however it is escaped.

        JSON escapes, percent-encoding and HTML entities are seen through, and so is a token
        whose end was cut off together with the text's.
        """
        for token, spellings in self._seen.items():
            text = _without_cut_token(spellings.sub(SCRUBBED, text), token)

        return text

    async def _replace(self) -> None:
        try:
            token = await self._fetch()
        except (CredentialsRefused, NotSent) as exc:
            self._failure = exc
            self._failures += 1
            raise

        self._seen[token.text] = _spellings(token.text)
        self._token = token
        self._generation += 1
        self._renew_at = self._clock() + _until_renewal(token)

    async def _fetch(self) -> Token:
        try:
            fetched = await self._source.fetch()
            token = fetched if isinstance(fetched, Token) else Token(fetched)
        except (CredentialsRefused, NotSent):
            raise
        except DeslaunchError as exc:
            raise CredentialsRefused(str(exc), hint=exc.hint) from exc
        except Exception as exc:
            kind = type(exc).__name__
            raise CredentialsRefused(
                f"the token source failed with {kind}", hint="see what raised it: its __cause__"
            ) from exc

        if token.text in self._seen:
            raise CredentialsRefused(
                "DES refused the token, and its source has no newer one",
                hint="get a new token, put it where the old one was, and resume",
            )

        return token


def _same(failure: CredentialsRefused | NotSent) -> CredentialsRefused | NotSent:
    """Return the failure anew, for another who waited for the same renewal."""
    if isinstance(failure, NotSent):
        after = failure.retry_after
        return type(failure)(str(failure), hint=failure.hint, retry_after=after)

    return CredentialsRefused(str(failure), hint=failure.hint)


def _until_renewal(token: Token) -> float:
    """Return the seconds after which a new token is renewed ahead of its end."""
    if token.expires_in is None:
        return math.inf

    return max(token.expires_in / 2, token.expires_in - _RENEW_AHEAD)


def _spellings(token: str) -> re.Pattern[str]:
    """Return a pattern that finds ``token`` as it is, or as an encoder may have written it."""
    return re.compile("".join(c if c.isalnum() else _spellings_of(c) for c in token))


def _spellings_of(character: str) -> str:
    code = ord(character)
    digits = "".join(f"[{d}{d.upper()}]" if d.isalpha() else d for d in f"{code:02x}")
    plain = re.escape(character)
    # the longest first, as "%" begins its own percent-encoding
    return rf"(?:\\u00{digits}|&#0*{code};|&#[xX]0*{digits};|%{digits}|\\{plain}|{plain})"


def _without_cut_token(text: str, token: str) -> str:
    """Cut off the end of ``text`` where it is the beginning of ``token``."""
    for length in range(len(token) - 1, _SHORTEST_CUT - 1, -1):
        if text.endswith(token[:length]):
            return text[:-length] + SCRUBBED

    return text
