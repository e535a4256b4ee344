"""Who we are to Google: the management API's client, and ID tokens for the functions."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import google.auth
import google.auth.jwt
import google.auth.transport.requests
import requests
from google.auth import exceptions as auth_errors
from google.cloud import functions_v2 as functions
from google.oauth2 import id_token, service_account
from yarl import URL

from fedkeeper.errors import ConfigError
from fedkeeper.providers import http
from fedkeeper.providers.google import resources

SCOPE: Final = "https://www.googleapis.com/auth/cloud-platform"
LOCAL_UNIVERSE: Final = "fedkeeper.invalid"
TOKEN_MARGIN_S: Final = 300.0  # tokens live for an hour; one that is about to expire is not sent


class IdTokens:
    """Tokens that prove to a function who calls; one per function, renewed before it expires."""

    def __init__(self, info: Mapping[str, Any] | None, threads: ThreadPoolExecutor) -> None:
        self._info = info
        self._threads = threads
        self._tokens: dict[str, tuple[str, float]] = {}  # audience -> (token, Unix time of expiry)
        self._locks: dict[str, asyncio.Lock] = {}
        token_uri = URL(str(info.get("token_uri", ""))) if info else URL()
        self._session = _session(token_uri)

    async def token(self, audience: str) -> str:
        """A token for `audience`. Raises google.auth's errors."""
        async with self._locks.setdefault(audience, asyncio.Lock()):  # one request, however many callers
            token, expires_s = self._tokens.get(audience, ("", 0.0))
            if expires_s - time.time() < TOKEN_MARGIN_S:
                token = await asyncio.get_running_loop().run_in_executor(self._threads, self._new, audience)
                expires_s = float(google.auth.jwt.decode(token, verify=False).get("exp", 0))
                self._tokens[audience] = (token, expires_s)
            return token

    def forget(self, audience: str) -> None:
        """The function did not take it: get another one next time."""
        self._tokens.pop(audience, None)

    def close(self) -> None:
        """Give the connections back."""
        self._session.close()

    def _new(self, audience: str) -> str:
        request = google.auth.transport.requests.Request(self._session)
        if self._info is None:
            return str(id_token.fetch_id_token(request, audience))
        credentials = service_account.IDTokenCredentials.from_service_account_info(
            self._info, target_audience=audience
        )
        credentials.refresh(request)
        return str(credentials.token)


def open_client(cluster: str, info: Mapping[str, Any] | None, api_endpoint: str) -> Any:
    """The official client over REST. Blocks: credentials may have to be looked for.

    Raises ConfigError (the JSON is no service account's) or AuthenticationRefused (no credentials found).
    """
    try:
        if info is None:
            credentials, _ = google.auth.default(scopes=[SCOPE])
        else:
            credentials = service_account.Credentials.from_service_account_info(info, scopes=[SCOPE])
    except ValueError as exc:  # its text could quote the key
        raise ConfigError(f"{cluster}: the service account's JSON is not one: {type(exc).__name__}") from None
    except auth_errors.GoogleAuthError as exc:
        raise resources.failure(cluster, "", exc, wrote=False) from exc
    options = {"api_endpoint": api_endpoint} if api_endpoint else {}
    here = bool(api_endpoint) and http.is_loopback(URL(api_endpoint))
    if here:
        # In Google's own universe the library asks Google where these credentials may be used.
        credentials = credentials.with_universe_domain(LOCAL_UNIVERSE)
        options["universe_domain"] = LOCAL_UNIVERSE
    client = functions.FunctionServiceClient(
        credentials=credentials, transport="rest", client_options=options or None
    )
    if here:
        # The client makes its own sessions and would pass loopback requests to HTTP_PROXY.
        client.transport._session.trust_env = False
        client.transport.operations_client.transport._session.trust_env = False
    return client


def close_client(client: Any) -> None:
    """Give its connections back; the client has no way to close its operations' transport."""
    client.transport.operations_client.transport._session.close()
    client.transport.close()


def _session(url: URL) -> requests.Session:
    session = requests.Session()
    session.trust_env = not http.is_loopback(url)
    return session
