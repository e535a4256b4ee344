"""Calls to whichever keeper answers: the client's transport.

One call asks the leader it remembers, then the others, until one has answered or its time is up. What may
have happened is only sent again where that is harmless.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode, urljoin, urlsplit

import requests
from urllib3.exceptions import ConnectTimeoutError, MaxRetryError, NewConnectionError

from fedkeeper import errors
from fedkeeper.errors import (
    ApiError,
    ApiRefused,
    ConfigError,
    FedKeeperError,
    KeeperBusy,
    KeeperStopped,
    NoLeader,
    NotThere,
    OutcomeUnknown,
    Rejected,
)
from fedkeeper.keeper.api.settings import TIMEOUT_HEADER, is_loopback

REDIRECTS_MAX: Final = 5
PAUSE_S: Final = 0.02  # after a round of all keepers; doubles up to PAUSE_MAX_S
PAUSE_MAX_S: Final = 0.5
ATTEMPT_S_MIN: Final = 1.0
CONNECT_S: Final = 2.0
MARGIN_S: Final = 0.5  # for an answer to arrive
SESSIONS_MAX: Final = 8  # kept open between calls

_OF_API: Final = {kind.__name__: kind for kind in (ApiError, ApiRefused, NotThere, Rejected)}
_PLAIN: Final = {  # made of a message and a hint
    kind.__name__: kind
    for kind in (
        errors.ConfigError,
        errors.JournalDamaged,
        errors.JournalError,
        errors.JournalFull,
        errors.JournalUnconfirmed,
        errors.KeeperStopped,
        errors.MembershipRefused,
        errors.NoLeader,
        errors.OutcomeUnknown,
        errors.RunChanged,
        errors.RunError,
        errors.RunFailed,
        errors.ServiceError,
        errors.StoreError,
        errors.StoreRefused,
        errors.StoreUnavailable,
    )
}
_ELSEWHERE: Final = (NoLeader, KeeperBusy, KeeperStopped)  # another keeper may do it, or this one later

Apis = str | Sequence[str] | Callable[[], Sequence[str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What is asked, of whichever keeper."""

    method: str
    path: str  # percent-encoded
    query: Mapping[str, str | int] | None = None
    body: Mapping[str, Any] | None = None
    repeatable: bool = True  # twice is as good as once

    @property
    def target(self) -> str:
        """The path with its query."""
        return f"{self.path}?{urlencode(self.query)}" if self.query else self.path


class _Silence(Exception):
    """A keeper did not answer."""


class _Unsent(_Silence):
    """No connection: nothing happened there."""


class _Unanswered(_Silence):
    """Sent, and no answer: it may have happened."""


class Caller:
    """Safe for use from several threads."""

    def __init__(
        self, apis: Apis, *, token: str | None = None, ca_file: Path | None = None, timeout_s: float = 10.0
    ) -> None:
        self.timeout_s = timeout_s
        self.closed = threading.Event()
        self._given = apis if callable(apis) else lambda: [apis] if isinstance(apis, str) else apis
        self._token = token
        self._verify: bool | str = str(ca_file) if ca_file is not None else True
        self._lock = threading.Lock()
        self._learned: tuple[str, ...] = ()  # addresses that the cluster told
        self._leader = ""
        self._sessions: list[requests.Session] = []
        for url in () if callable(apis) else self._given():
            _check(url)

    def __repr__(self) -> str:
        return f"Caller({', '.join(self.known())})"

    def known(self) -> list[str]:
        """Addresses of keepers, the leader's first."""
        given = [_base(url) for url in self._given()]
        with self._lock:
            urls = dict.fromkeys([self._leader, *given, *self._learned])
        urls.pop("", None)
        return list(urls)

    def ask(self, request: Request) -> Any:
        """The JSON of the answer.

        Raises what the keeper raised, by its kind; NoLeader if there was none in time, OutcomeUnknown if it
        may have happened, ApiError if no keeper could be reached.
        """
        deadline = time.monotonic() + self.timeout_s
        pause_s = PAUSE_S
        problems: dict[str, FedKeeperError | _Silence] = {}
        unknown = ""  # why it may have happened
        while True:
            urls = self.known()  # perhaps none, for now
            attempt_s = max(ATTEMPT_S_MIN, self.timeout_s / (len(urls) + 1))
            for url in urls:
                left_s = deadline - time.monotonic()
                # Too short a last attempt would only make an unknown outcome of a known one.
                if left_s <= 0 or (problems and left_s < attempt_s / 2) or self.closed.is_set():
                    raise self._gave_up(request, problems, unknown)
                try:
                    return self._follow(url, request, min(attempt_s, left_s))
                except _ELSEWHERE as exc:
                    problems[url] = exc
                except _Unsent as exc:
                    problems[url] = exc
                except (_Unanswered, OutcomeUnknown) as exc:
                    unknown = f"{url}: {exc}"
                    if not request.repeatable:
                        raise self._gave_up(request, problems, unknown) from exc
                self._forget(url)
            left_s = deadline - time.monotonic()
            if left_s <= 0 or self.closed.wait(min(pause_s, left_s)):
                raise self._gave_up(request, problems, unknown)
            pause_s = min(PAUSE_MAX_S, 2 * pause_s)

    @contextlib.contextmanager
    def stream(self, url: str, request: Request, *, silence_s: float) -> Iterator[Iterator[bytes]]:
        """The pieces of an endless answer of one keeper, as they come.

        Raises ApiError if it cannot be had, or if nothing comes for `silence_s`.
        """
        with self._session() as session:
            try:
                answer = self._send(session, url, request, (CONNECT_S, silence_s), stream=True)
                with answer:
                    if answer.status_code != 200:
                        raise _error(answer)
                    yield answer.iter_content(chunk_size=None)
            except _Silence as exc:
                raise ApiError(f"{url}: {exc}") from exc
            except requests.RequestException as exc:
                raise ApiError(f"{url}: {_why(exc)}") from exc

    def close(self) -> None:
        """Calls under way end soon, with an error."""
        self.closed.set()
        with self._lock:
            sessions, self._sessions = self._sessions, []
        for session in sessions:
            session.close()

    def _follow(self, url: str, request: Request, attempt_s: float) -> Any:
        """Ask one keeper, and those that it sends us to."""
        base = url
        with self._session(fresh=not request.repeatable) as session:
            end = time.monotonic() + attempt_s
            for _ in range(REDIRECTS_MAX + 1):
                left_s = max(0.001, end - time.monotonic())
                answer = self._send(session, base, request, (min(CONNECT_S, left_s), left_s))
                if answer.status_code != 307:
                    break
                base = self._redirected(base, answer.headers.get("Location", ""), request.target)
            else:
                raise NoLeader(f"{url}: the keepers send from one to the other", hint="try again in a moment")
        if not 200 <= answer.status_code < 300:
            raise _error(answer)
        if base != url or request.method != "GET":
            with self._lock:
                self._leader = base
        try:
            return json.loads(answer.content) if answer.content else None
        except (ValueError, RecursionError) as exc:
            raise ApiError(f"{base}: the answer is not JSON", status=answer.status_code) from exc

    def _redirected(self, base: str, location: str, target: str) -> str:
        """Where to ask instead. Only at keepers of the cluster: a token must go nowhere else."""
        parts = urlsplit(urljoin(base, location))
        to = (
            location.removesuffix(target) if location.endswith(target) else f"{parts.scheme}://{parts.netloc}"
        )
        to = _base(to)
        if to not in self.known():
            self._learn(base)
        if to not in self.known():
            raise ApiError(f"{base} sends us to {to}, which is no keeper of this cluster", status=307)
        return to

    def _learn(self, base: str) -> None:
        """Ask a keeper that we trust for the addresses of the others."""
        status = Request(method="GET", path="/v1/status")
        with self._session() as session:
            answer = self._send(session, base, status, (CONNECT_S, ATTEMPT_S_MIN))
        if answer.status_code != 200:
            raise _error(answer)
        keepers = json.loads(answer.content).get("keepers", [])
        with self._lock:
            self._learned = tuple(_base(keeper["api"]) for keeper in keepers if keeper.get("api"))

    def learn(self) -> None:
        """Find out where the other keepers are, from any that answers; nothing happens if none does."""
        for url in self.known():
            with contextlib.suppress(_Silence, FedKeeperError, ValueError):
                self._learn(url)
                return

    def _send(
        self,
        session: requests.Session,
        base: str,
        request: Request,
        timeout: tuple[float, float],
        *,
        stream: bool = False,
    ) -> requests.Response:
        _check(base)
        headers = {"Accept": "text/event-stream" if stream else "application/json"}
        if not stream:  # so that the keeper gives up before we do, and can say what the matter was
            headers[TIMEOUT_HEADER] = f"{max(timeout[1] - MARGIN_S, 0.7 * timeout[1]):.3f}"
        if self._token is not None:
            headers["Authorization"] = f"Bearer {self._token}"
        data = None
        if request.body is not None:
            headers["Content-Type"] = "application/json"
            data = json.dumps(request.body, allow_nan=False, separators=(",", ":")).encode("ascii")
        prepared = session.prepare_request(requests.Request(request.method, base, headers=headers, data=data))
        prepared.url = base + request.target  # as it is: requests would undo part of the encoding
        try:
            return session.send(
                prepared, timeout=timeout, allow_redirects=False, verify=self._verify, stream=stream
            )
        except requests.exceptions.SSLError as exc:
            raise ApiError(
                f"{base}: its certificate does not check: {_why(exc)}", hint="is keepers.api.ca_file right?"
            ) from exc
        except requests.RequestException as exc:
            unsent = isinstance(exc, requests.exceptions.ConnectTimeout) or _not_connected(exc)
            raise (_Unsent if unsent else _Unanswered)(_why(exc)) from exc

    @contextlib.contextmanager
    def _session(self, *, fresh: bool = False) -> Iterator[requests.Session]:
        """A session of one's own for the while: they are not made for several threads."""
        with self._lock:
            session = None if fresh or not self._sessions else self._sessions.pop()
        if session is None:
            session = requests.Session()
            session.trust_env = False  # no proxy, and no other credentials from ~/.netrc
        try:
            yield session
        finally:
            with self._lock:
                keep = len(self._sessions) < SESSIONS_MAX and not self.closed.is_set()
                if keep:
                    self._sessions.append(session)
            if not keep:
                session.close()

    def _forget(self, url: str) -> None:
        with self._lock:
            if self._leader == url:
                self._leader = ""

    def _gave_up(
        self, request: Request, problems: Mapping[str, FedKeeperError | _Silence], unknown: str
    ) -> FedKeeperError:
        what = f"{request.method} {request.path}"
        if unknown and request.method != "GET":
            return OutcomeUnknown(
                f"{what}: {unknown}", hint="it may have happened, or happen yet: look before you do it again"
            )
        for problem in problems.values():
            if isinstance(problem, FedKeeperError):
                return problem
        reasons = [f"{url}: {problem}" for url, problem in problems.items()]
        if unknown:
            reasons.append(unknown)
        return ApiError(
            f"{what}: no keeper answered within {self.timeout_s} s: {'; '.join(reasons) or 'none is known'}",
            hint="are the keepers running?",
        )


def _check(url: str) -> None:
    """Raises ConfigError for what a token must not be sent to."""
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ConfigError(
            f"{url!r} is no address of a keeper's API", hint="write for example https://host:8443"
        )
    if parts.username is not None or parts.password is not None:
        raise ConfigError("the address of a keeper's API holds a user name or password: use the token")
    if parts.scheme == "http" and not is_loopback(parts.hostname):
        raise ConfigError(f"{url}: without TLS only on loopback", hint="use https://")


def _base(url: str) -> str:
    return url.rstrip("/")


def _not_connected(exc: requests.RequestException) -> bool:
    inner = exc.args[0] if exc.args else None
    reason = inner.reason if isinstance(inner, MaxRetryError) else inner
    return isinstance(reason, NewConnectionError | ConnectTimeoutError)


def _why(exc: requests.RequestException) -> str:
    """In a few words: the library's own hold objects and addresses."""
    inner: BaseException = exc
    while (below := inner.__cause__ or inner.__context__) is not None:
        inner = below
    return str(inner) or type(inner).__name__


def _error(answer: requests.Response) -> FedKeeperError:
    """What the keeper raised."""
    status = answer.status_code
    try:
        error = json.loads(answer.content)["error"]
        kind, message, hint = str(error["kind"]), str(error["message"]), str(error["hint"])
        definite, retry_s = bool(error["definite"]), float(error.get("retry_after_s") or 1.0)
    except (ValueError, KeyError, TypeError, RecursionError, requests.RequestException):
        return ApiError(f"HTTP {status} without a reason of ours: is this a keeper?", status=status)
    if kind == "KeeperBusy":
        return KeeperBusy(message, status=status, retry_after_s=retry_s, hint=hint)
    if kind in _OF_API:
        return _OF_API[kind](message, status=status, hint=hint)
    if kind in _PLAIN:
        return _PLAIN[kind](message, hint=hint)
    if not definite:
        return OutcomeUnknown(f"{kind}: {message}", hint=hint)
    return ApiError(f"{kind}: {message}", status=status, hint=hint)
