"""Who may ask for what."""

from __future__ import annotations

import hmac
from enum import IntEnum
from functools import lru_cache
from typing import Final
from urllib.parse import urlsplit

from aiohttp import web

from fedkeeper.errors import ApiRefused
from fedkeeper.keeper.api.settings import ApiSettings, is_loopback

READS: Final = frozenset({"GET"})


class Access(IntEnum):
    """What a route needs of its caller."""

    NOBODY = 0
    READER = 1
    OPERATOR = 2


class Guard:
    """Checks tokens; and on loopback without them, that no web page is behind a request.

    A page in a browser on this machine can reach loopback: by a request across sites, which carries the
    page's Origin; or with a name of its own that is made to resolve to 127.0.0.1, which stands in Host.
    """

    def __init__(self, settings: ApiSettings) -> None:
        self._tokens = [
            (token.encode(), access)
            for token, access in (
                (settings.operator_token, Access.OPERATOR),
                (settings.reader_token, Access.READER),
            )
            if token is not None
        ]

    def check(self, request: web.BaseRequest, needs: Access) -> None:
        """Raises ApiRefused: 401 without a token that is known, 403 with one that is not enough."""
        if not self._tokens:
            self._check_host(request)
        if request.method not in READS:
            _check_origin(request)
        if not self._tokens or needs is Access.NOBODY:
            return
        has = self._access(request.headers.get("Authorization", ""))
        if has is Access.NOBODY:
            raise ApiRefused(
                "this keeper wants a token, and knows no such one"
                if _given(request)
                else "a token is needed",
                status=401,
                hint="send the header Authorization: Bearer TOKEN, see keepers.api in the config",
            )
        if has < needs:
            raise ApiRefused("this token may only read", status=403, hint="use the operator's token")

    def _access(self, header: str) -> Access:
        scheme, _, token = header.partition(" ")
        given = token.strip().encode("utf-8", "surrogateescape")
        found = Access.NOBODY
        for known, access in self._tokens:  # all of them, whichever fits: time tells nothing
            if hmac.compare_digest(given, known) and scheme.lower() == "bearer":
                found = access
        return found

    def _check_host(self, request: web.BaseRequest) -> None:
        host = request.headers.get("Host", "")
        if not _is_ours(host):
            raise ApiRefused(
                f"the Host header names {host[:100]!r}, and this keeper only answers for this machine",
                status=403,
                hint="use http://127.0.0.1 or localhost",
            )


def _given(request: web.BaseRequest) -> bool:
    return "Authorization" in request.headers


@lru_cache(maxsize=64)  # most requests have the same
def _is_ours(host: str) -> bool:
    """Whether a Host header names this machine and nothing else."""
    if host.startswith("["):
        return is_loopback(host.partition("]")[0][1:])
    return is_loopback(host.rpartition(":")[0] if ":" in host else host)


def _check_origin(request: web.BaseRequest) -> None:
    headers = request.headers
    origin = headers.get("Origin")
    if origin is None and headers.get("Sec-Fetch-Site", "none") in {"none", "same-origin"}:
        return
    if origin is None or urlsplit(origin).netloc.lower() != headers.get("Host", "").lower():
        raise ApiRefused(
            f"a page of {(origin or 'another site')[:100]!r} may not change anything here", status=403
        )
