"""Tokens from the auth server: a password buys the first, refresh tokens buy the next.

Each refresh token is good once, and its answer brings the next one. Where it was spent or
revoked, the password buys a token again. Nothing of an answer is repeated in a message but one
of the error codes of RFC 6749.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, NamedTuple

import aiohttp

from deslaunch import wire
from deslaunch._version import VERSION
from deslaunch.client import detail_of, fault_of, split_proxy
from deslaunch.errors import CredentialsRefused, Misconfigured, NotSent
from deslaunch.tokens import Token
from deslaunch.urls import safe_url

if TYPE_CHECKING:
    import ssl as ssl_module
    from collections.abc import Mapping

    from yarl import URL

    from deslaunch.model import Grant

Secret = str | Callable[[], str]
"""A text that must not be shown, or a function that gives it, called in a worker thread."""

_LIMIT: Final = 65_536  # bytes of an answer that are read

_HINTS: Final = {
    "invalid_client": "check the client id and the client secret",
    "invalid_grant": "check the user name, the password and the organisation",
    "invalid_scope": "ask that this client may use DES, and may refresh its tokens",
    "unauthorized_client": "ask that this client may use the password grant",
    "unsupported_grant_type": "check the auth server's URL",
}
_HINT: Final = "check the organisation, the client, the user name and the password"
_UNREACHED: Final = "check the auth server's URL and the way to it; nothing was started"

# A grant may well have been sent: only a start, for whose sake it was, was not.
_LOST: Final[Mapping[object, str]] = {
    TimeoutError: "no answer came in time",
    Exception: "no usable answer came",
}


class _Reply(NamedTuple):
    """The auth server's answer; ``body`` is None where it broke off or is too long."""

    status: int
    body: bytes | None
    retry_after: float | None


class OAuthToken:
    """One organisation's tokens from the auth server, by the password and refresh grants.

    Each token names its DES (``svc``), so a :class:`~deslaunch.DesClient` needs no base URL.

    Args:
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

    Attributes:
        org_id: the organisation.

    Raises:
        ConfigurationError: a URL can't be used; the message shows no password.
    """

    def __init__(
        self,
        *,
        org_id: str,
        client_id: str,
        client_secret: Secret,
        username: Secret,
        password: Secret,
        auth_url: str = wire.AUTH_URL,
        timeout: float = 30,
        allow_http: bool = False,
        ssl: ssl_module.SSLContext | None = None,
        proxy: str | None = None,
    ) -> None:
        self.org_id = org_id
        self._client_id = client_id
        self._client_secret = client_secret
        self._username = username
        self._password = password
        self._base = safe_url(auth_url, "auth server's URL", allow_http=allow_http)
        self._timeout = aiohttp.ClientTimeout(total=timeout)
        self._ssl = ssl
        self._proxy, self._proxy_headers = split_proxy(proxy)
        self._refresh: str | None = None
        self._lock = asyncio.Lock()

    def __repr__(self) -> str:
        return f"<OAuthToken of {self.org_id} from {self.auth_url}>"

    @property
    def auth_url(self) -> str:
        """The auth server's base URL, without a trailing slash."""
        return str(self._base).rstrip("/")

    async def fetch(self) -> Token:
        """Return a new token; all who ask at the same time are served one after the other.

        Raises:
            CredentialsRefused: the auth server refused the login, or a secret can't be had.
            NotSent: it could not be reached, or gave no usable answer; ``Misconfigured`` where
                asking again is of no use.
        """
        async with self._lock:
            refresh, self._refresh = self._refresh, None  # good once, whatever becomes of it
            token = None if refresh is None else await self._refreshed(refresh)
            return token or await self._ask(await self._login())

    async def _refreshed(self, refresh_token: str) -> Token | None:
        """Return the token that a refresh token buys; None where it was spent or revoked."""
        form = wire.refresh_grant(
            client_id=self._client_id,
            client_secret=await _read(self._client_secret),
            refresh_token=refresh_token,
        )

        try:
            return await self._ask(form)
        except CredentialsRefused:
            return None

    async def _login(self) -> bytes:
        return wire.password_grant(
            client_id=self._client_id,
            client_secret=await _read(self._client_secret),
            org_id=self.org_id,
            username=await _read(self._username),
            password=await _read(self._password),
        )

    async def _ask(self, form: bytes) -> Token:
        grant = self._granted(await self._post(form))

        if grant.org_id not in {None, self.org_id}:
            raise CredentialsRefused(
                f"{self.auth_url} gave a token for another organisation than {self.org_id}",
                hint="check the organisation's id",
            )

        self._refresh = grant.refresh_token
        return Token(grant.access_token, svc=grant.svc, expires_in=grant.expires_in)

    async def _post(self, form: bytes) -> _Reply:
        """Send one grant in a session of its own, as there are few.

        Raises:
            NotSent: no answer came.
        """
        async with aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=self._ssl or True, force_close=True),
            headers=self._headers(),
            timeout=self._timeout,
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,
        ) as session:
            try:
                async with session.post(
                    self._base / wire.GRANT,
                    data=form,
                    allow_redirects=False,
                    proxy=self._proxy,
                    proxy_headers=self._proxy_headers,
                ) as response:
                    return await _reply(response)
            except Exception as exc:
                fault = fault_of(exc)
                what = _LOST.get(fault.kind, fault.text)
                text = f"the auth server {self.auth_url}: {what}{detail_of(exc)}"
                raise fault.verdict(text, hint=_UNREACHED) from exc

    def _headers(self) -> dict[str, str]:
        headers = {
            "Accept": "application/json",
            "Accept-Encoding": "identity",  # a small gzip can unpack to more than memory holds
            "Content-Type": "application/x-www-form-urlencoded",
            "User-Agent": f"deslaunch/{VERSION}",
        }
        return headers | _over_http(self._base, self._proxy_headers)

    def _granted(self, reply: _Reply) -> Grant:
        """Return what a reply grants.

        Raises:
            CredentialsRefused: nothing, with 400, 401 or 403.
            Misconfigured: nothing, with a redirect or another 4XX.
            NotSent: nothing, and it may later.
        """
        if reply.status == HTTPStatus.OK:
            return self._decoded(reply)

        said = f"the auth server {self.auth_url} answered {reply.status}"

        if reply.status in _REFUSALS:
            code = wire.refusal_code(reply.body or b"")
            text = f"{said} {code}".rstrip()
            raise CredentialsRefused(text, hint=_HINTS.get(code, _HINT))

        if reply.status in _FOR_LATER or reply.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            raise NotSent(said, hint=_UNREACHED, retry_after=reply.retry_after)

        raise Misconfigured(said, hint="check the auth server's URL")

    def _decoded(self, reply: _Reply) -> Grant:
        grant = None if reply.body is None else wire.decode_grant(reply.body)

        if grant is None:
            raise NotSent(
                f"the auth server {self.auth_url} answered 200, and its answer is no token's",
                hint="check the auth server's URL",
            )

        return grant


_REFUSALS: Final = (HTTPStatus.BAD_REQUEST, HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)
_FOR_LATER: Final = (
    HTTPStatus.REQUEST_TIMEOUT,
    HTTPStatus.TOO_EARLY,
    HTTPStatus.TOO_MANY_REQUESTS,
)


def _over_http(url: URL, proxy_headers: dict[str, str] | None) -> dict[str, str]:
    """Return what a proxy must be told in the request itself, as there is no CONNECT."""
    return proxy_headers or {} if url.scheme == "http" else {}


async def _read(secret: Secret) -> str:
    return secret if isinstance(secret, str) else await asyncio.to_thread(secret)


async def _reply(response: aiohttp.ClientResponse) -> _Reply:
    """Return an answer whose status was read, with its body where that came whole."""
    header = response.headers.get("Retry-After", "")
    after = float(header) if header.isascii() and header.isdigit() else None
    body = bytearray()

    try:
        while chunk := await response.content.readany():
            body += chunk

            if len(body) > _LIMIT:
                return _Reply(response.status, None, after)
    except (aiohttp.ClientError, TimeoutError):
        return _Reply(response.status, None, after)

    return _Reply(response.status, bytes(body), after)
