"""URLs that a token, or a password, may be sent to."""

from __future__ import annotations

import ipaddress

from yarl import URL

from deslaunch.errors import ConfigurationError


def safe_url(text: str, what: str = "base URL", *, allow_http: bool = False) -> URL:
    """Return a URL that is fit to send a secret to.

    Args:
        text: ``https://…``; ``http://`` only for loopback addresses.
        what: what the URL is, for messages.
        allow_http: also allow ``http://`` for other hosts.

    Raises:
        ConfigurationError: it is not; the message shows no password and no query.
    """
    text = text.strip()

    if "@" in text:  # whatever it parses to: a password may hold a slash
        raise ConfigurationError(
            f"the {what} holds a user name or password",
            hint="remove what stands before the '@': DES takes nothing but a token",
        )

    if "?" in text or "#" in text:
        raise ConfigurationError(
            f"the {what} holds a query or fragment", hint="cut it off at the '?' or '#'"
        )

    url = parsed(text)

    if url is None or url.scheme not in {"http", "https"} or not url.host:
        raise ConfigurationError(
            f"the {what} {text!r} can't be used", hint="write https:// and the host's name"
        )

    if url.scheme == "http" and not (allow_http or is_loopback(url.host)):
        raise ConfigurationError(
            f"the {what} {text!r} would send the token in the clear",
            hint=f"write {str(url.with_scheme('https')).rstrip('/')}; "
            "or, where nobody can listen on the way, allow http with --allow-http",
        )

    return url


def is_loopback(host: str) -> bool:
    """Tell whether a host is this machine's own, by its address or as ``localhost``."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def parsed(text: str) -> URL | None:
    """Return a URL, or None where it is none."""
    try:
        return URL(text)
    except ValueError:
        return None  # not chained: its text may quote a password
