"""Where tokens come from, and how one that DES refused is replaced.

A source only fetches: from the environment, a file, a command, or the auth server, where a
password buys the first token and refresh tokens buy the next. :class:`TokenKeeper` decides when,
so that many requests which were refused together ask the source once. A token's text is in no
``repr``, no message and no exception, and :meth:`TokenKeeper.scrub` cuts it out of what others say.
Nothing of the auth server's response is repeated but one of the error codes of RFC 6749.
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
"""What stands where a token was cut out."""

_VISIBLE: Final = re.compile(r"[!-~]+")
_SECRET_LIKE: Final = re.compile(r"\S{20,}")
_SHORT: Final = 8  # characters of a token below which it may be a part of any word
_LINE_LIMIT: Final = 200
_OUTPUT_LIMIT: Final = 65_536  # bytes of a command's output that are read
_LAST_WORDS: Final = 1.0  # seconds that a command's output may take to close after its end
_GRANT_LIMIT: Final = 65_536  # bytes of the auth server's response that are read
_SILENCE: Final = 1.0
"""Seconds for which a source that failed is left alone, where it did not ask for more."""


Secret = str | Callable[[], str]
"""A text that must not be shown, or a function that gives it, called in a worker thread."""


@dataclass(frozen=True, slots=True)
class Token:
    """A bearer token that is fit for a header; its text is not shown by ``repr`` or ``str``.

    It is a source, too, of a token that never changes.

    Attributes:
        text: visible ASCII, at least one character; surrounding white space was stripped.
        svc: base URL of the DES that takes it, where the source tells.

    Raises:
        CredentialsRefused: the text is empty, or holds a blank, a line break or another
            character that a header can't carry.
    """

    text: str = field(repr=False)
    svc: str | None = None

    def __post_init__(self) -> None:
        stripped = self.text.strip()

        if _VISIBLE.fullmatch(stripped) is None:
            odd = "holds a blank, a line break or a character that is not ASCII"
            raise errors.CredentialsRefused(
                f"the token {odd if stripped else 'is empty'}",
                hint="give the bare token alone, without 'Bearer' and on one line",
            )

        object.__setattr__(self, "text", stripped)

    async def fetch(self) -> Self:
        """Return the token."""
        return self


class TokenSource(Protocol):
    """Anything that can fetch the token which is valid now.

    One that has an attribute ``org_id`` gives this organisation's tokens, each of which names its
    DES in ``svc``.
    """

    async def fetch(self) -> Token | str:
        """Return the current token; called again after DES refused the one before.

        Raises:
            CredentialsRefused: there is none.
            NotSent: there may be one later.
        """
        ...


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
            raise errors.CredentialsRefused(
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
            raise errors.CredentialsRefused(
                f"the token file {str(self.path)!r} can't be read: {exc.strerror}",
                hint="check the file's path and permissions",
            ) from exc

        return Token(content.decode("utf-8", "replace"))


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
            raise errors.ConfigurationError(
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
        try:
            transport, output = await asyncio.get_running_loop().subprocess_exec(
                _Output,
                *self._argv,
                stdin=DEVNULL,
                start_new_session=True,  # so that it can be killed with all that it started
            )
        except OSError as exc:
            why = f"can't be run: {exc.strerror}"
            raise self._refused(why, "check the command's name and PATH") from exc

        try:
            async with asyncio.timeout(self._timeout):
                await output.ended.wait()
        except TimeoutError as exc:
            why = f"did not end within {self._timeout:g} s"
            raise self._refused(why, "run it by hand; it must not ask anything") from exc
        finally:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(transport.get_pid(), signal.SIGKILL)

            with suppress(TimeoutError):  # what it printed is read to its end
                async with asyncio.timeout(_LAST_WORDS):
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

        if stderr:  # its last line, with all that may be a secret taken out
            said = (stderr.replace(stdout, "…") if stdout else stderr).splitlines()[-1]
            end += f": {_SECRET_LIKE.sub('…', said)[:_LINE_LIMIT]}"

        raise self._refused(
            f"failed with {end}", "run it by hand; it must print the token and nothing else"
        )

    def _refused(self, why: str, hint: str) -> errors.CredentialsRefused:
        return errors.CredentialsRefused(f"the token command {self._argv[0]!r} {why}", hint=hint)


class _Output(asyncio.SubprocessProtocol):
    """What a command printed, at most :data:`_OUTPUT_LIMIT` bytes of each stream.

    Attributes:
        printed: by file descriptor.
        ended: it has ended, or printed too much; what it started may go on.
        closed: nothing more will be printed.
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
# Only the codes of RFC 6749 are told: what else stands there may quote a secret.
_GRANT_HINTS: Final = {
    "invalid_client": "check the client id and the client secret",
    "invalid_grant": "check the user name, the password and the organisation",
    "invalid_request": _GRANT_HINT,
    "invalid_scope": "ask that this client may use DES, and may refresh its tokens",
    "unauthorized_client": "ask that this client may use the password grant",
    "unsupported_grant_type": "check the auth server's URL",
}
_UNREACHED: Final = "check the auth server's URL and the way to it; nothing was started"


@dataclass(kw_only=True, eq=False, repr=False)
class OAuthToken:
    """One organisation's tokens from the auth server, by the password and refresh grants.

    Each token names its DES (``svc``), so a :class:`~deslaunch.DesClient` needs no base URL.

    Attributes:
        org_id: the organisation.
        client_id: of the program that asks.
        client_secret: its secret; this, the user name and the password may be functions, which
            are asked at each grant.
        username: who asks.
        password: theirs.
        auth_url: the auth server's base URL; ``http://`` only for loopback addresses.
        timeout: seconds for one grant in all, more than 0.
        allow_http: also allow ``http://`` for other hosts, where anyone on the way can read
            the password.
        ssl: TLS settings, a private CA's for example; default: the system's CAs.
        proxy: ``http://[user:password@]host:port``. The environment's proxies are not used.

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
        """Return a new token, bought with the last refresh token or else with the password.

        Raises:
            CredentialsRefused: the auth server refused the login, or a secret can't be had.
            NotSent: it could not be reached, or gave no usable response; ``Misconfigured`` where
                asking again is of no use.
        """
        refresh, self._refresh = self._refresh, None  # good once, whatever becomes of it

        if refresh is not None:
            with suppress(errors.CredentialsRefused):  # it was spent or revoked
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
                f"{self.auth_url} gave a token for another organisation than {self.org_id}",
                hint="check the organisation's id",
            )

        # RFC 6749: a refresh token that brings no new one stays good.
        self._refresh = grant.get("refresh_token", fields.get("refresh_token"))
        return Token(grant["access_token"], grant.get("svc"))

    async def _post(self, form: bytes) -> http.Exchange:
        """Send one grant over a connection of its own, as there are few.

        Raises:
            NotSent: no whole response came. The grant may have been sent; the start, for whose
                sake it was, was not.
        """
        way = http.PlainWay(self.ssl, self.timeout)
        exchange = http.Exchange(form, Sent(), _GRANT_LIMIT)

        try:
            async with asyncio.timeout(self.timeout):
                await way.post(self._route, exchange)
        except Exception as exc:
            if not exchange.status:
                kind, text = http.fault_of(exc, exchange.sent)
                raise kind(f"the auth server {self.auth_url}: {text}", hint=_UNREACHED) from exc

            exchange.body = b""  # the status says enough; half a body says nothing
        finally:
            await way.aclose()

        exchange.body = http.unpacked(exchange.body, exchange.headers.get("Content-Encoding", ""))
        return exchange

    def _granted(self, response: http.Exchange) -> dict[str, str]:
        """Return what a response grants, a token at least.

        Raises:
            CredentialsRefused: nothing, with 400, 401 or 403.
            Misconfigured: nothing, with a redirect or another 4XX.
            NotSent: nothing, and it may later; with the status where it asks to wait or failed.
        """
        status, grant = response.status, wire.decode_grant(response.body)
        said = f"the auth server {self.auth_url} answered {status}"

        if status in {400, 401, 403}:
            code = grant.get("error", "")
            hint = _GRANT_HINTS.get(code, _GRANT_HINT)
            said += f" {code}" if code in _GRANT_HINTS else ""
            raise errors.CredentialsRefused(said, hint=hint)

        if status in {408, 425, 429} or status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            waits = response.headers.getall("Retry-After", [])
            after = wire.retry_after(waits, now=datetime.now(UTC))
            raise errors.NotSent(said, hint=_UNREACHED, status=status, retry_after=after)

        if status != HTTPStatus.OK:
            raise errors.Misconfigured(said, hint="check the auth server's URL")

        if "access_token" not in grant:
            text = f"{said}, and its response is no token's"
            raise errors.NotSent(text, hint="check the auth server's URL")

        return grant


async def _reveal(secret: Secret) -> str:
    return secret if isinstance(secret, str) else await asyncio.to_thread(secret)


class TokenKeeper:
    """The token in use, its generation, and every token that was in use before.

    Generations are counted from 1, which is the first token that the source gave. A request
    remembers the generation it was sent with, so that a late 401 for an old token costs no
    second renewal.

    A source that failed is left alone for a second, or for as long as it asked: who asks meanwhile
    gets the same failure.

    Args:
        source: where tokens come from.
        clock: seconds of a clock that only goes forward.

    Attributes:
        in_use: a token and its generation; None while there is none.
    """

    def __init__(self, source: TokenSource, clock: Callable[[], float] = time.monotonic) -> None:
        self._source = source
        self._clock = clock
        self._lock = asyncio.Lock()
        self.in_use: tuple[Token, int] | None = None
        self._generation = 0
        self._seen: dict[str, re.Pattern[str]] = {}
        self._failure: errors.CredentialsRefused | errors.NotSent | None = None
        self._silent_until = -math.inf

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

        All who wait share one fetch. Where the one who fetches is cancelled, the next who waits
        fetches.

        Raises:
            CredentialsRefused: the source failed, or has no token but refused ones.
            NotSent: the source could not be reached; :meth:`current` asks it again.
        """
        async with self._lock:
            if self._generation != refused_generation:
                return

            if self._failure is not None and self._clock() < self._silent_until:
                raise copy(self._failure) from self._failure

            try:
                token = await self._fetch()
            except (errors.CredentialsRefused, errors.NotSent) as exc:
                asked = exc.retry_after if isinstance(exc, errors.NotSent) else None
                # Refused once, it is not to be sent again while a newer one may come.
                self.in_use = None if isinstance(exc, errors.NotSent) else self.in_use
                self._failure = copy(exc)  # as who gets it may add to it
                self._failure.__cause__ = exc.__cause__
                self._silent_until = self._clock() + max(asked or 0.0, _SILENCE)
                raise

            self._seen[token.text] = _spellings(token.text)
            self._generation += 1
            self.in_use = token, self._generation

    def scrub(self, text: str) -> str:
        """Return ``text`` without any token that was ever in use, however it is escaped.

        JSON escapes, percent-encoding and HTML entities are seen through, and so is a token
        whose end was cut off together with the text's. One of fewer than 8 characters is
        replaced where it is a whole word.
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

        if token.text in self._seen:
            raise errors.CredentialsRefused(
                "DES refused the token, and its source has no newer one",
                hint="get a new token, put it where the old one was, and resume",
            )

        return token


def _spellings(token: str) -> re.Pattern[str]:
    """Return a pattern that finds ``token`` as it is, or as an encoder may have written it."""
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
    """Cut off the end of ``text`` where it is the beginning of ``token``."""
    for length in range(len(token) - 1, _SHORT - 1, -1):
        if text.endswith(token[:length]):
            return text[:-length] + SCRUBBED

    return text
