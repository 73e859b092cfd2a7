"""Access tokens and refresh tokens: who may call, and for how many starts."""

from __future__ import annotations

import math
import secrets
from typing import TYPE_CHECKING

from deslaunch.simulator.errors import Refused

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from deslaunch.simulator.faults import Script
    from deslaunch.simulator.http import Request


class Tokens:
    """Access tokens, each with the number of starts left to it, and refresh tokens.

    Args:
        accepted: tokens that are good from the start, and don't expire by time.
        script: after how many starts a token expires.
        seconds: for which an issued token is good.
        clock: Unix time in seconds.
    """

    def __init__(
        self,
        accepted: Iterable[str],
        script: Script,
        *,
        seconds: float,
        clock: Callable[[], float],
    ) -> None:
        self.seconds = seconds
        self._clock = clock
        self._ends: dict[str, float] = {}
        self._budget = math.inf if script.expire_after is None else script.expire_after
        self._every = script.expire_all
        self._left: dict[str, float] = {}
        self._refresh: dict[str, str] = {}

        for token in accepted:
            self.add(token)

    def add(self, token: str) -> None:
        """Accept a token from now on."""
        self._left[token] = self._budget

        if not self._every:
            self._budget = math.inf

    def issue(self) -> str:
        """Return a new access token."""
        token = secrets.token_urlsafe(24)
        self.add(token)
        self._ends[token] = self._clock() + self.seconds
        return token

    def revoke(self, token: str) -> None:
        """Accept a token no more."""
        self._left.pop(token, None)

    def bearer(self, request: Request) -> str:
        """Return the token of a request.

        Raises:
            Refused: 401, it is missing, unknown, revoked or expired.
        """
        scheme, _, token = request.headers.get("authorization", "").partition(" ")

        if scheme.lower() != "bearer" or not self._is_good(token):
            raise Refused(401, "the token is missing or invalid")

        return token

    def _is_good(self, token: str) -> bool:
        return self._left.get(token, 0) > 0 and self._clock() < self._ends.get(token, math.inf)

    def spend(self, token: str) -> None:
        """Count one start against an access token."""
        self._left[token] -= 1

    def issue_refresh(self, org_id: str) -> str:
        """Return a new refresh token of an organisation; it is good once."""
        token = secrets.token_urlsafe(24)
        self._refresh[token] = org_id
        return token

    def spend_refresh(self, token: str) -> str | None:
        """Return the organisation of a refresh token and spend it; None if it is not good."""
        return self._refresh.pop(token, None)
