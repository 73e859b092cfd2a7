"""Where tokens come from, and how a refused one is replaced.

A source fetches a token: from the environment, a file, a command, or the auth server, with a
password at first and then with refresh tokens. :class:`TokenKeeper` decides when, so that many
requests that were refused together fetch once. No ``repr``, message or exception holds a token,
and :meth:`TokenKeeper.scrub` replaces tokens in what others write. Of the auth server's response
only the error codes of RFC 6749 are shown.
"""

import asyncio
import math
import os
import re
import signal
import time
from asyncio.subprocess import DEVNULL
from collections.abc import Callable, Sequence
from contextlib import suppress
from copy import copy
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http import HTTPStatus
from pathlib import Path
from ssl import SSLContext
from typing import Final, Protocol, Self
from urllib.parse import urlencode

from deslaunch import errors
from deslaunch.des import http, wire
from deslaunch.model import Sent

SCRUBBED: Final = "[token]"
"""The replacement of a token."""

_VISIBLE: Final = re.compile(r"[!-~]+")
_SECRET_LIKE: Final = re.compile(r"\S{20,}")
_SHORT: Final = 8  # characters: a token below that may be a part of any word
_LINE_LIMIT: Final = 200
_OUTPUT_LIMIT: Final = 65_536  # bytes of a file, or of a command's output, that are read
_CLOSE_TIMEOUT: Final = 1.0  # seconds after a command's end in which its output must close
_GRANT_LIMIT: Final = 65_536  # bytes of the auth server's response that are read
_RETRY_PAUSE: Final = 1.0
"""Seconds after which a source that failed may be tried again, unless it asked for more."""

Secret = str | Callable[[], str]
"""A secret string, or a function that returns it and is called in a worker thread."""


@dataclass(frozen=True, slots=True)
class Token:
    """A bearer token; neither ``repr`` nor ``str`` shows its text.

    It is also a :class:`TokenSource`, of this one token: once DES refuses it, there is no newer
    one.

    Attributes:
        text: one or more visible ASCII characters; white space around it is stripped.
        svc: base URL of the DES that accepts it, or None if the source does not name it.

    Raises:
        CredentialsRefused: the text is empty, or holds white space or a character that is not
            ASCII. The message does not show it.
    """

    text: str = field(repr=False)
    svc: str | None = None

    def __post_init__(self) -> None:
        stripped = self.text.strip()

        if _VISIBLE.fullmatch(stripped) is None:
            odd = "holds a blank, a line break or a character that is not ASCII"
            raise errors.CredentialsRefused(
                f"the token {odd if stripped else 'is empty'}",
                hint="pass the bare token on one line, without 'Bearer'",
            )

        object.__setattr__(self, "text", stripped)

    async def fetch(self) -> Self:
        """Return the token."""
        return self


class TokenSource(Protocol):
    """An object that fetches the current token. Any class with this method is one.

    Its ``fetch`` is called before the first request, and again after DES refused the token with
    401: never twice at the same time, and not within a second of a failure. After a failure, a new
    launch with the same client fetches at once.

    A source may have an attribute ``org_id``. It then promises that its tokens are for this
    organisation and name their DES in ``svc``, so that a client needs no base URL.
    """

    async def fetch(self) -> Token | str:
        """Return the current token.

        Returning a token that DES has refused stops the launch (CredentialsRefused), as does any
        exception but ``NotSent``.

        Raises:
            CredentialsRefused: there is no token.
            NotSent: a token may be available later; ``retry_after`` says when, in seconds.
        """
        ...


@dataclass(frozen=True, slots=True)
class EnvToken:
    """A token in an environment variable, read at each fetch.

    Attributes:
        variable: name of the variable.
    """

    variable: str = "DES_TOKEN"

    async def fetch(self) -> Token:
        """Return the variable's value.

        Raises:
            CredentialsRefused: the variable is not set, or its value can't be a token.
        """
        text = os.environ.get(self.variable)

        if text is None:
            raise errors.CredentialsRefused(
                f"the environment variable {self.variable} is not set",
                hint=f"set {self.variable} to a DES token",
            )

        return Token(text)


@dataclass(frozen=True, slots=True)
class FileToken:
    """A token in a file, read at each fetch, so that another program may replace it.

    Attributes:
        path: a file with the token and nothing else, in ASCII.
    """

    path: Path | str

    async def fetch(self) -> Token:
        """Return the file's content.

        Raises:
            CredentialsRefused: the file can't be read or is over 64 KiB, or its content can't be a
                token.
        """
        try:
            content = await asyncio.to_thread(read_small, self.path)
        except OSError as exc:
            raise errors.CredentialsRefused(
                f"the token file {str(self.path)!r} can't be read: {exc.strerror}",
                hint="check its path and permissions",
            ) from exc

        return Token(content.decode("utf-8", "replace"))


def read_small(path: Path | str) -> bytes:
    """Return a file's content.

    Raises:
        OSError: it can't be read, or is over 64 KiB.
    """
    with Path(path).open("rb") as file:
        content = file.read(_OUTPUT_LIMIT + 1)

    if len(content) > _OUTPUT_LIMIT:
        raise OSError(0, "it is over 64 KiB")

    return content


class CommandToken:
    """A token that a command prints to its standard output; it is run at each fetch.

    There is no shell, and standard input is empty. After its end, or after ``timeout``, every
    process of its session is killed. Arguments can be seen by every user of the machine: don't
    pass a secret in them.

    Args:
        argv: the command and its arguments.
        timeout: seconds for one run, more than 0.

    Raises:
        ConfigurationError: ``argv`` is a string, is empty, or holds a NUL.
    """

    def __init__(self, argv: Sequence[str], timeout: float = 30) -> None:
        if isinstance(argv, str) or not argv or any("\0" in word for word in argv):
            raise errors.ConfigurationError(
                f"the token command: expected a list of strings, got {type(argv).__name__}"
                f"{' with a NUL' if argv and not isinstance(argv, str) else ''}",
                hint='write ["vault", "read", "-field=token", "secret/des"]; there is no shell',
            )

        self._argv = tuple(argv)
        self._timeout = timeout

    def __repr__(self) -> str:
        return f"CommandToken([{self._argv[0]!r}, …], timeout={self._timeout:g})"

    async def fetch(self) -> Token:
        """Run the command and return what it printed.

        Raises:
            CredentialsRefused: the command can't be run, failed, timed out, or printed something
                that can't be a token, or over 64 KiB. The message shows the last line of its
                standard error, at most 200 characters, without words of 20 characters or more.
        """
        try:
            transport, output = await asyncio.get_running_loop().subprocess_exec(
                _Output,
                *self._argv,
                stdin=DEVNULL,
                start_new_session=True,  # so that it can be killed with all that it started
            )
        except OSError as exc:
            why = f"can't be run: {exc.strerror}"
            raise self._refused(why, "check its name and PATH") from exc

        try:
            async with asyncio.timeout(self._timeout):
                await output.ended.wait()
        except TimeoutError as exc:
            why = f"timed out after {self._timeout:g} s"
            raise self._refused(why, "run it by hand: it must not wait for input") from exc
        finally:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(transport.get_pid(), signal.SIGKILL)

            with suppress(TimeoutError):  # read the rest of its output
                async with asyncio.timeout(_CLOSE_TIMEOUT):
                    await output.closed.wait()

            transport.close()

        stdout, stderr = (output.printed[fd].decode("utf-8", "replace").strip() for fd in (1, 2))
        status = transport.get_returncode() or 0

        if len(output.printed[1]) == _OUTPUT_LIMIT:
            end = f"more than {_OUTPUT_LIMIT:,} bytes of output"
        elif status:
            end = f"exit status {status}" if status > 0 else f"signal {-status}"
        else:
            return Token(stdout)

        if stderr:  # its last line, without anything that may be a secret
            line = (stderr.replace(stdout, "…") if stdout else stderr).splitlines()[-1]
            end += f": {_SECRET_LIKE.sub('…', line)[:_LINE_LIMIT]}"

        raise self._refused(f"failed with {end}", "run it by hand: it must print only the token")

    def _refused(self, why: str, hint: str) -> errors.CredentialsRefused:
        return errors.CredentialsRefused(f"the token command {self._argv[0]!r} {why}", hint=hint)


class _Output(asyncio.SubprocessProtocol):
    """The output of a command, at most :data:`_OUTPUT_LIMIT` bytes of each stream.

    Attributes:
        printed: bytes by file descriptor.
        ended: the command has ended or printed too much; processes it started may still run.
        closed: its output is complete.
    """

    def __init__(self) -> None:
        self.printed = {1: b"", 2: b""}
        self.ended = asyncio.Event()
        self.closed = asyncio.Event()

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        self.printed[fd] = (self.printed[fd] + data)[:_OUTPUT_LIMIT]

        if len(self.printed[1]) == _OUTPUT_LIMIT:
            self.ended.set()

    def process_exited(self) -> None:
        self.ended.set()

    def connection_lost(self, _: Exception | None) -> None:
        self.closed.set()


_GRANT_HINT: Final = "check the organisation, the client, the user name and the password"
# Only the codes of RFC 6749 are shown: any other text may quote a secret.
_GRANT_HINTS: Final = {
    "invalid_client": "check the client id and the client secret",
    "invalid_grant": "check the user name, the password and the organisation",
    "invalid_request": _GRANT_HINT,
    "invalid_scope": f"ask the operator of the auth server for the scopes {wire.SCOPE!r}",
    "unauthorized_client": "ask the operator of the auth server for the password grant",
    "unsupported_grant_type": "check the auth server's URL",
}
_UNREACHED: Final = "check the auth server's URL and the network; nothing was started"


@dataclass(kw_only=True, eq=False, repr=False)
class OAuthToken:
    """Tokens for one organisation from the auth server (OAuth2, password and refresh grants).

    The first token is requested with the password, each later one with the refresh token that
    came with it, and with the password again if that is refused. Each token names its DES
    (``svc``), so a :class:`~deslaunch.DesClient` needs no base URL.

    ``client_secret``, ``username`` and ``password`` may be functions, which are called in a worker
    thread before each request that needs them; so a changed secret is used without a restart.

    Attributes:
        org_id: the organisation; a token for another one is refused.
        client_id: the client id of your program.
        client_secret: its secret.
        username: name of the user on whose behalf it starts runs.
        password: the user's password.
        auth_url: the auth server's base URL; ``http://`` only for loopback addresses.
        timeout: seconds for one request in all, more than 0.
        allow_http: also allow ``http://`` for other hosts. Anyone on the network can then read
            the password.
        ssl: TLS settings, for example with a private CA; None for the system's CAs.
        proxy: ``http://[user:password@]host:port``. The proxy variables of the environment are
            ignored.

    Raises:
        ConfigurationError: a URL can't be used; the message shows no password.
    """

    org_id: str
    client_id: str
    client_secret: Secret
    username: Secret
    password: Secret
    auth_url: str = wire.AUTH_URL
    timeout: float = 30
    allow_http: bool = False
    ssl: SSLContext | None = None
    proxy: str | None = None

    def __post_init__(self) -> None:
        base = http.safe_url(self.auth_url, "auth server's URL", allow_http=self.allow_http)
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        self.auth_url = str(base).rstrip("/")
        self._route = http.Route(base / wire.GRANT, headers, *http.split_proxy(self.proxy))
        self._refresh: str | None = None

    def __repr__(self) -> str:
        return f"<OAuthToken of {self.org_id} from {self.auth_url}>"

    async def fetch(self) -> Token:
        """Return a new token.

        Raises:
            CredentialsRefused: the auth server refused the login (400, 401 or 403), or the token is
                for another organisation.
            NotSent: the auth server could not be reached, asked to wait, or failed;
                ``Misconfigured`` if trying again is no use.
            Exception: what a function for a secret raises.
        """
        refresh, self._refresh = self._refresh, None  # it may be used once, even if that fails

        if refresh is not None:
            with suppress(errors.CredentialsRefused):  # it was used or revoked
                return await self._ask("refresh_token", refresh_token=refresh)

        username, password = await _reveal(self.username), await _reveal(self.password)
        return await self._ask(
            "password", org_id=self.org_id, username=username, password=password, scope=wire.SCOPE
        )

    async def _ask(self, grant_type: str, **fields: str) -> Token:
        fields |= {"client_id": self.client_id, "client_secret": await _reveal(self.client_secret)}
        form = urlencode({"grant_type": grant_type, **fields}).encode()
        grant = self._granted(await self._post(form))

        if grant.get("org_id", self.org_id) != self.org_id:
            raise errors.CredentialsRefused(
                f"the auth server {self.auth_url}: expected a token for organisation "
                f"{self.org_id}, got one for another",
                hint="check the organisation's id",
            )

        # RFC 6749, section 6: without a new refresh token the old one stays valid.
        self._refresh = grant.get("refresh_token", fields.get("refresh_token"))
        return Token(grant["access_token"], grant.get("svc"))

    async def _post(self, form: bytes) -> http.Exchange:
        """Send one request over a connection of its own, as there are few.

        Raises:
            NotSent: there was no response. This request may have been sent, but no start was.
        """
        sender = http.PlainSender(self.ssl, self.timeout)
        exchange = http.Exchange(form, Sent(), _GRANT_LIMIT)

        try:
            async with asyncio.timeout(self.timeout):
                await sender.post(self._route, exchange)
        except Exception as exc:  # noqa: BLE001  # as for a start
            if not exchange.status:
                kind, text = http.failure_of(exc, exchange.sent)
                text = f"the auth server {self.auth_url}: {text}"
                raise kind(text, hint=_UNREACHED) from http.cause_of(exc)

            exchange.body = b""  # the status is enough
        finally:
            await sender.aclose()

        exchange.body = http.unpacked(exchange)
        return exchange

    def _granted(self, response: http.Exchange) -> dict[str, str]:
        """Return the fields of a response with a token.

        Raises:
            CredentialsRefused: its status is 400, 401 or 403.
            NotSent: the server asks to wait or failed, or the response has no token.
            Misconfigured: it has any other status but 200.
        """
        status, grant = response.status, wire.decode_grant(response.body)
        text = f"the auth server {self.auth_url} responded {status}"

        if status in {400, 401, 403}:
            code = grant.get("error", "")
            hint = _GRANT_HINTS.get(code, _GRANT_HINT)
            text += f" {code}" if code in _GRANT_HINTS else ""
            raise errors.CredentialsRefused(text, hint=hint)

        if status in {408, 425, 429} or status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            waits = response.headers.getall("Retry-After", [])
            after = wire.retry_after(waits, now=datetime.now(UTC))
            raise errors.NotSent(text, hint=_UNREACHED, status=status, retry_after=after)

        if status != HTTPStatus.OK:
            raise errors.Misconfigured(text, hint="check the auth server's URL")

        if "access_token" not in grant:
            text += ", but without an access_token"
            raise errors.NotSent(text, hint="check the auth server's URL")

        return grant


async def _reveal(secret: Secret) -> str:
    return secret if isinstance(secret, str) else await asyncio.to_thread(secret)


class TokenKeeper:
    """The token in use, its generation, and every earlier token.

    Generations are counted from 1, the first token of the source. A request remembers the
    generation it was sent with, so a late 401 for an old token causes no second renewal.

    After a failure the source is not called for a second, or for as long as it asked: until then
    every caller gets the same failure, unless a new launch begins (:meth:`forget_refusal`).

    Args:
        source: where tokens come from.
        clock: a monotonic clock, in seconds.

    Attributes:
        in_use: the token and its generation, or None.
    """

    def __init__(self, source: TokenSource, clock: Callable[[], float] = time.monotonic) -> None:
        self._source = source
        self._clock = clock
        self._lock = asyncio.Lock()
        self.in_use: tuple[Token, int] | None = None
        self._generation = 0
        self._seen: dict[str, re.Pattern[str]] = {}
        self._refused: set[str] = set()
        self._failure: errors.CredentialsRefused | errors.NotSent | None = None
        self._retry_at = -math.inf

    def __repr__(self) -> str:
        return f"<TokenKeeper of {type(self._source).__name__}, generation {self._generation}>"

    async def current(self) -> tuple[Token, int]:
        """Return the token in use and its generation; the first call fetches it.

        Raises:
            CredentialsRefused: the source failed.
            NotSent: the source could not be reached.
        """
        while self.in_use is None:
            await self.renew(self._generation)

        return self.in_use

    async def renew(self, refused_generation: int) -> None:
        """Replace the token of ``refused_generation``, unless it was replaced already.

        Concurrent callers share one fetch. If the caller that fetches is cancelled, the next one
        fetches.

        Raises:
            CredentialsRefused: the source failed, or has only tokens that DES refused.
            NotSent: the source could not be reached; :meth:`current` tries it again.
        """
        async with self._lock:
            if self._generation != refused_generation:
                return

            if self._failure is not None and self._clock() < self._retry_at:
                raise copy(self._failure) from self._failure

            if self.in_use is not None:
                self._refused.add(self.in_use[0].text)

            try:
                token = await self._fetch()
            except (errors.CredentialsRefused, errors.NotSent) as exc:
                wait = exc.retry_after if isinstance(exc, errors.NotSent) else None
                # Don't send the refused token again while a newer one may become available.
                self.in_use = None if isinstance(exc, errors.NotSent) else self.in_use
                self._failure = copy(exc)  # its receiver may change it
                self._failure.__cause__ = exc.__cause__
                self._retry_at = self._clock() + max(wait or 0.0, _RETRY_PAUSE)
                raise

            self._seen[token.text] = _spellings(token.text)
            self._generation += 1
            self.in_use, self._failure = (token, self._generation), None

    def forget_refusal(self) -> None:
        """Let the next request ask the source again, if it had no newer token than a refused one.

        A token that DES refused is tried once more, if the source still has no other.
        """
        if isinstance(self._failure, errors.CredentialsRefused):
            self.in_use = self._failure = None
            self._refused.clear()

    def scrub(self, text: str) -> str:
        """Return ``text`` with every token that was ever in use replaced.

        A token is also found in JSON escapes, percent-encoding or HTML entities, and at the end of
        a text that cuts it off. One of fewer than 8 characters is replaced only as a whole word.
        """
        for token, spellings in self._seen.items():
            text = _without_cut_token(spellings.sub(SCRUBBED, text), token)

        return text

    async def _fetch(self) -> Token:
        try:
            fetched = await self._source.fetch()
            token = fetched if isinstance(fetched, Token) else Token(fetched)
        except (errors.CredentialsRefused, errors.NotSent):
            raise
        except errors.DeslaunchError as exc:
            raise errors.CredentialsRefused(str(exc), hint=exc.hint) from exc
        except Exception as exc:
            text = f"the token source failed with {type(exc).__name__}"
            raise errors.CredentialsRefused(text, hint="see its __cause__") from exc

        if token.text in self._refused:
            raise errors.CredentialsRefused(
                "DES refused the token, and the token source has no newer one",
                hint="replace the token with a new one, and run this again",
            )

        return token


def _spellings(token: str) -> re.Pattern[str]:
    """Return a pattern that finds ``token`` as it is or encoded."""
    spellings = []

    for character in token:
        code, plain = f"{ord(character):02x}", re.escape(character)
        # The longest first, as "%" begins its own percent-encoding.
        escapes = rf"(?i:\\u00{code}|&#0*{ord(character)};|&#x0*{code};|%{code}|\\?{plain})"
        spellings.append(character if character.isalnum() else escapes)

    pattern = "".join(spellings)
    is_short = len(token) < _SHORT
    return re.compile(rf"(?<!\w)(?<!\w'){pattern}(?!\w)" if is_short else pattern)


def _without_cut_token(text: str, token: str) -> str:
    """Replace the end of ``text`` if it is the beginning of ``token``."""
    for length in range(len(token) - 1, _SHORT - 1, -1):
        if text.endswith(token[:length]):
            return text[:-length] + SCRUBBED

    return text
