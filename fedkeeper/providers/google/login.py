"""Who we are to Google: the management API's client, and ID tokens for the functions."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

import google.auth
import google.auth.jwt
import google.auth.transport.requests
import requests
import structlog
from google.auth import compute_engine, impersonated_credentials
from google.auth import exceptions as auth_errors
from google.auth.credentials import AnonymousCredentials
from google.cloud import functions_v2 as functions
from google.oauth2 import service_account
from yarl import URL

from fedkeeper.clock import Clock
from fedkeeper.errors import AuthenticationRefused, ConfigError
from fedkeeper.providers import http
from fedkeeper.providers.google import resources

SCOPE: Final = "https://www.googleapis.com/auth/cloud-platform"
LOCAL_UNIVERSE: Final = "fedkeeper.invalid"
_LOGIN_RETRIES: Final = 3  # as google-auth has it: a token may be asked for again
TOKEN_MARGIN_S: Final = 300.0  # tokens live for an hour; one that is about to expire is not sent
_log = structlog.get_logger(__name__)


def find_credentials(cluster: str, info: Mapping[str, Any] | None, *, anonymous: bool) -> Any:
    """Google's credentials object: of a service account, none at all, or those of this machine.

    Those are Application Default Credentials: GOOGLE_APPLICATION_CREDENTIALS, gcloud's, or the metadata
    server's. Blocks: they may have to be looked for.

    Raises ConfigError (the JSON is no service account's) or AuthenticationRefused (no credentials found).
    """
    if anonymous:
        return AnonymousCredentials()
    try:
        if info is None:
            credentials, _ = google.auth.default(scopes=[SCOPE])
            return credentials
        return service_account.Credentials.from_service_account_info(info, scopes=[SCOPE])
    except ValueError as exc:  # its text could quote the key
        raise ConfigError(f"{cluster}: the service account's JSON is not one: {type(exc).__name__}") from None
    except auth_errors.DefaultCredentialsError as exc:
        raise AuthenticationRefused(
            cluster,
            "",
            "no credentials were found on this machine",
            hint="write the cluster's auth, set GOOGLE_APPLICATION_CREDENTIALS, or set auth.anonymous for an"
            " emulator that asks for none",
        ) from exc
    except auth_errors.GoogleAuthError as exc:
        raise resources.failure(cluster, "", exc, wrote=False) from exc


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How long a request may take, in seconds: until it is connected, and until something is answered."""

    connect_s: float
    answer_s: float


class _LimitedAdapter(requests.adapters.HTTPAdapter):
    """Holds every request to `limits`. The libraries know one number for both, or none, or two minutes."""

    def __init__(self, limits: Limits, *, retries: int = 0) -> None:
        self._limits = limits
        super().__init__(max_retries=retries)

    def send(self, request: Any, *args: Any, **options: Any) -> requests.Response:
        """As `requests` has it, which gives `timeout` by its name."""
        asked, answer_s = options.get("timeout"), self._limits.answer_s
        if isinstance(asked, int | float):
            answer_s = min(asked, answer_s)
        options["timeout"] = (self._limits.connect_s, answer_s)
        return super().send(request, *args, **options)


def limit(session: requests.Session, limits: Limits, *, retries: int = 0) -> None:
    """Hold what `session` sends to `limits`; `retries` of what never left this machine or may be repeated."""
    for scheme in ("http://", "https://"):
        session.mount(scheme, _LimitedAdapter(limits, retries=retries))


@dataclass(frozen=True, slots=True)
class _Token:
    text: str
    renew_ms: int  # from then on another one is asked for
    expires_ms: int


def _dated(text: str) -> _Token:
    claims = google.auth.jwt.decode(text, verify=False)
    expires_s, issued_s = float(claims.get("exp", 0)), float(claims.get("iat", 0))
    margin_s = min(TOKEN_MARGIN_S, max(0.0, expires_s - issued_s) / 2)  # half of a short life is used
    return _Token(text, round((expires_s - margin_s) * 1000), round(expires_s * 1000))


class IdTokens:
    """Tokens that prove to a function who calls; one per function, renewed before it expires."""

    def __init__(
        self,
        cluster: str,
        credentials: Any,
        threads: ThreadPoolExecutor,
        clock: Clock,
        *,
        limits: Limits,
    ) -> None:
        self._cluster = cluster
        self._credentials = credentials
        self._threads = threads
        self._clock = clock
        self._tokens: dict[str, _Token] = {}  # by audience
        self._locks: dict[str, asyncio.Lock] = {}
        self._session = requests.Session()
        self._session.trust_env = not http.is_loopback(URL(str(getattr(credentials, "_token_uri", "") or "")))
        limit(self._session, limits)

    async def token(self, audience: str) -> str:
        """A token for `audience`; empty for callers without credentials. Raises google.auth's errors.

        One that cannot be renewed in time is used for as long as it is good.
        """
        if isinstance(self._credentials, AnonymousCredentials):
            return ""
        async with self._locks.setdefault(audience, asyncio.Lock()):  # one request, however many callers
            known = self._tokens.get(audience)
            if known is not None and self._clock.now_ms() < known.renew_ms:
                return known.text
            loop = asyncio.get_running_loop()
            try:
                token = await loop.run_in_executor(self._threads, self._new, audience)
            except auth_errors.TransportError as exc:
                if known is None or self._clock.now_ms() >= known.expires_ms:
                    raise
                _log.warning(
                    "ID token not renewed, the old one is used",
                    cluster=self._cluster,
                    problem=http.describe(exc),
                )
                return known.text
            self._tokens[audience] = token
            return token.text

    def forget(self, audience: str) -> None:
        """The function did not take it: get another one next time."""
        self._tokens.pop(audience, None)

    def close(self) -> None:
        """Give the connections back."""
        self._session.close()

    def _new(self, audience: str) -> _Token:
        request = google.auth.transport.requests.Request(self._session)
        credentials = self._for(audience, request)
        try:
            credentials.refresh(request)
            return _dated(str(credentials.token))
        except auth_errors.GoogleAuthError:
            raise
        except (
            TypeError,
            ValueError,
            KeyError,
            AttributeError,
        ) as exc:  # google-auth takes any 200 for a token
            raise auth_errors.RefreshError("the answer holds no token") from exc

    def _for(self, audience: str, request: Any) -> Any:
        """ID token credentials of the same identity as the API's."""
        mine = self._credentials
        if isinstance(mine, service_account.Credentials):
            return service_account.IDTokenCredentials(
                mine.signer, mine.service_account_email, mine._token_uri, target_audience=audience
            )
        if isinstance(mine, impersonated_credentials.Credentials):
            return impersonated_credentials.IDTokenCredentials(
                mine, target_audience=audience, include_email=True
            )
        if isinstance(mine, compute_engine.Credentials):
            return compute_engine.IDTokenCredentials(request, audience, use_metadata_identity_endpoint=True)
        raise auth_errors.DefaultCredentialsError(
            f"credentials of the kind {type(mine).__module__}.{type(mine).__name__} give no ID tokens"
        )


def open_client(credentials: Any, api_endpoint: str, limits: Limits) -> Any:
    """The official client over REST."""
    options = {"api_endpoint": api_endpoint} if api_endpoint else {}
    here = bool(api_endpoint) and http.is_loopback(URL(api_endpoint))
    if here and hasattr(credentials, "with_universe_domain"):
        # In Google's own universe the library asks Google where these credentials may be used.
        credentials = credentials.with_universe_domain(LOCAL_UNIVERSE)
        options["universe_domain"] = LOCAL_UNIVERSE
    client = functions.FunctionServiceClient(
        credentials=credentials, transport="rest", client_options=options or None
    )
    for session in _sessions(client):
        session.max_redirects = 0  # credentials go where the config says and nowhere else
        if here:  # the client makes its own sessions and would pass loopback requests to HTTP_PROXY
            session.trust_env = False
        if not session.is_mtls:  # else its adapter holds the client's certificate
            limit(session, limits)
            limit(session._auth_request_session, limits, retries=_LOGIN_RETRIES)
    return client


def close_client(client: Any) -> None:
    """Give its connections back; the client has no way to close its operations' transport."""
    for session in _sessions(client):
        session.close()


def _sessions(client: Any) -> tuple[Any, Any]:
    """Both sessions of the client: the API's, and that of its operations."""
    return client.transport._session, client.transport.operations_client.transport._session
