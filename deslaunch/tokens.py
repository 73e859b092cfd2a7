"""Where tokens come from, and how one that DES refused is replaced.

A source only fetches; :class:`TokenKeeper` decides when, so that many requests which were
refused together ask the source once. A token's text is in no ``repr``, no message and no
exception, and :meth:`TokenKeeper.scrub` cuts it out of what others say.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
from asyncio.subprocess import DEVNULL, PIPE, create_subprocess_exec
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from deslaunch.errors import ConfigurationError, CredentialsRefused, DeslaunchError

if TYPE_CHECKING:
    from asyncio.subprocess import Process
    from collections.abc import Sequence

SCRUBBED: Final = "[token]"
"""What stands where a token was cut out."""

_VISIBLE: Final = re.compile(r"[!-~]+")
_SECRET_LIKE: Final = re.compile(r"\S{20,}")
_SHORTEST_CUT: Final = 8
_LINE_LIMIT: Final = 200


@dataclass(frozen=True, slots=True)
class Token:
    """A bearer token that is fit for a header; its text is not shown by ``repr`` or ``str``.

    Attributes:
        text: visible ASCII, at least one character; surrounding white space was stripped.

    Raises:
        CredentialsRefused: the text is empty, or holds a blank, a line break or another
            character that a header can't carry.
    """

    text: str = field(repr=False)

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
        """Return the current token; called again after DES refused the one before."""
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

    Args:
        source: where tokens come from.
    """

    def __init__(self, source: TokenSource) -> None:
        self._source = source
        self._lock = asyncio.Lock()
        self._token: Token | None = None
        self._generation = 0
        self._seen: dict[str, re.Pattern[str]] = {}
        self._failures = 0
        self._failure: CredentialsRefused | None = None

    def __repr__(self) -> str:
        return f"<TokenKeeper of {type(self._source).__name__}, generation {self._generation}>"

    async def current(self) -> tuple[Token, int]:
        """Return the token in use and its generation; the first call fetches it.

        Raises:
            CredentialsRefused: the source failed.
        """
        if self._token is None:
            await self.renew(0)

        assert self._token is not None
        return self._token, self._generation

    async def renew(self, refused_generation: int) -> None:
        """Replace the token of ``refused_generation``, unless it was replaced already.

        All who wait share one fetch and its failure. Where the one who fetches is cancelled,
        the next who waits fetches.

        Raises:
            CredentialsRefused: the source failed, or has no token but refused ones.
        """
        failures = self._failures

        async with self._lock:
            if self._generation != refused_generation:
                return

            if self._failure is not None and self._failures != failures:
                failure = self._failure
                raise CredentialsRefused(str(failure), hint=failure.hint) from failure

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
        except CredentialsRefused as exc:
            self._failure = exc
            self._failures += 1
            raise

        self._seen[token.text] = _spellings(token.text)
        self._token = token
        self._generation += 1

    async def _fetch(self) -> Token:
        try:
            fetched = await self._source.fetch()
            token = fetched if isinstance(fetched, Token) else Token(fetched)
        except CredentialsRefused:
            raise
        except DeslaunchError as exc:
            raise CredentialsRefused(str(exc), hint=exc.hint) from exc
        except Exception as exc:
            kind = type(exc).__name__
            raise CredentialsRefused(f"the token source failed with {kind}") from exc

        if token.text in self._seen:
            raise CredentialsRefused(
                "DES refused the token, and its source has no newer one",
                hint="get a new token, put it where the old one was, and resume",
            )

        return token


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
