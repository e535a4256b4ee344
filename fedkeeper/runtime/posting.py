"""One POST to a client function, with the credentials of its cluster. It is never repeated.

Whether to train again is for the keeper to say; so no library here may retry, follow a redirect, or take a
slow answer for a lost one.
"""

from __future__ import annotations

import base64
import binascii
import functools
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import google.auth.exceptions
import google.auth.transport.requests
import google.oauth2.id_token
import google.oauth2.service_account
import msgspec
import requests

from fedkeeper.errors import TaskError
from fedkeeper.runtime.environment import ClientAccess
from fedkeeper.runtime.trusted import ca_file

OPENWHISK_BYTES_MAX: Final = 1_048_576  # of a request's JSON, and of a result's
_CONNECT_S: Final = 10.0
_TOKEN_S: Final = 30.0
_POLL_S: Final = (0.25, 2.0)  # from, to
_KEPT_MAX: Final = 1_000  # clients whose tokens are kept
_CHUNK: Final = 1 << 20
_BINARY: Final = "application/octet-stream"

_google_credentials: dict[bytes, Any] = {}  # by account and audience: a token serves an hour of activations


@dataclass(frozen=True, slots=True, kw_only=True)
class Client:
    """Where a client function is invoked, and how."""

    name: str  # for messages
    url: str
    access: ClientAccess


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    body: bytes

    def json(self) -> Any:
        """The body as JSON; None if it is not."""
        try:
            return msgspec.json.decode(self.body)
        except msgspec.DecodeError:
            return None


def post(client: Client, body: bytes, *, deadline: float, answer_bytes_max: int) -> bytes:
    """Send `body` to the client function and return the bytes that it answers.

    Args:
        client: who, and with what credentials.
        body: goes as it is to an HTTP function, and as {"blob": base64} to an OpenWhisk action.
        deadline: when to give up, by time.monotonic().
        answer_bytes_max: a longer answer is refused.

    Raises TaskError: too long for the platform, no credentials, no answer in time, or an error for one.
    """
    how = {"google": _google, "openwhisk": _openwhisk}.get(client.access.platform, _http)
    try:
        with requests.Session() as session:
            return how(session, client, body, deadline, answer_bytes_max)
    except requests.Timeout as exc:
        raise TaskError(f"client {client.name}: no answer in time ({type(exc).__name__})") from exc
    except requests.RequestException as exc:
        raise TaskError(f"client {client.name}: {type(exc).__name__}") from exc


def _google(
    session: requests.Session, client: Client, body: bytes, deadline: float, answer_bytes_max: int
) -> bytes:
    return _http(session, client, body, deadline, answer_bytes_max, headers=_token(session, client))


def _http(
    session: requests.Session,
    client: Client,
    body: bytes,
    deadline: float,
    answer_bytes_max: int,
    *,
    headers: Mapping[str, str] | None = None,
) -> bytes:
    """The bytes as they are; a gateway such as OpenFaaS's lets anybody call a function."""
    headers = {"Content-Type": _BINARY, **(headers or {})}
    answer = _request(
        session, "POST", client, client.url, deadline, answer_bytes_max, data=body, headers=headers
    )
    if answer.status != 200:
        raise TaskError(f"client {client.name}: HTTP {answer.status}: {_said(answer)}")
    return answer.body


def _openwhisk(
    session: requests.Session, client: Client, body: bytes, deadline: float, answer_bytes_max: int
) -> bytes:
    payload = msgspec.json.encode({"blob": base64.b64encode(body).decode()})
    if len(payload) > OPENWHISK_BYTES_MAX:
        raise TaskError(
            f"client {client.name}: weights and rows make a request of {len(payload)} bytes,"
            f" OpenWhisk takes {OPENWHISK_BYTES_MAX}",
            hint="use `route: direct` for this cluster, or a smaller model",
        )
    user, _, key = client.access.auth.partition(":")
    session.auth = (user, key)
    limit = answer_bytes_max * 4 // 3 + _CHUNK  # base64, in a record
    url = f"{client.url}?blocking=true&result=true"
    headers = {"Content-Type": "application/json"}
    answer = _request(session, "POST", client, url, deadline, limit, data=payload, headers=headers)
    plain = answer.json()
    if answer.status == 202:  # it took longer than a blocking call may: it runs on
        plain = _polled(session, client, plain, deadline, limit)
    elif answer.status != 200:
        raise TaskError(f"client {client.name}: HTTP {answer.status}: {_said(answer)}")
    blob = plain.get("blob") if isinstance(plain, dict) else None
    if not isinstance(blob, str):
        raise TaskError(f"client {client.name}: its result has no `blob`: is it an fl_client?")
    try:
        return base64.b64decode(blob, validate=True)
    except binascii.Error as exc:
        raise TaskError(f"client {client.name}: its result's `blob` is not base64") from exc


def _polled(session: requests.Session, client: Client, accepted: Any, deadline: float, limit: int) -> Any:
    """The result of an activation that outlasted the blocking call; 404 until its record is written."""
    activation_id = accepted.get("activationId") if isinstance(accepted, dict) else None
    base = re.match(r"(.+/namespaces/[^/]+)/actions/", client.url)
    if not activation_id or not base:
        raise TaskError(f"client {client.name}: HTTP 202 without an activation ID to follow")
    pause_s, pause_s_max = _POLL_S
    while True:
        url = f"{base[1]}/activations/{activation_id}"
        answer = _request(session, "GET", client, url, deadline, limit)
        if answer.status == 200:
            record = answer.json()
            response = record.get("response") if isinstance(record, dict) else None
            result = response.get("result") if isinstance(response, dict) else None
            if not isinstance(response, dict) or not response.get("success"):
                raise TaskError(f"client {client.name}: {_error_in(result) or 'its activation failed'}")
            return result
        if answer.status not in (404, 429) and answer.status < 500:  # those pass
            raise TaskError(f"client {client.name}: HTTP {answer.status}: {_said(answer)}")
        if time.monotonic() + pause_s >= deadline:
            raise TaskError(f"client {client.name}: activation {activation_id} did not end in time")
        time.sleep(pause_s)
        pause_s = min(pause_s * 1.5, pause_s_max)


def _request(
    session: requests.Session,
    method: str,
    client: Client,
    url: str,
    deadline: float,
    answer_bytes_max: int,
    **more: Any,
) -> _Answer:
    """One HTTP exchange that ends by `deadline`; the answer is read piece by piece, up to its limit."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise TaskError(f"client {client.name}: no time left")
    timeout = (min(_CONNECT_S, left), left)
    with session.request(
        method,
        url,
        stream=True,
        timeout=timeout,
        allow_redirects=False,
        verify=_verify(client.access),
        **more,
    ) as response:
        parts, size = [], 0
        for part in response.iter_content(_CHUNK):
            size += len(part)
            if size > answer_bytes_max:
                raise TaskError(f"client {client.name}: its answer has more than {answer_bytes_max} bytes")
            if time.monotonic() > deadline:
                raise TaskError(f"client {client.name}: its answer was not here in time")
            parts.append(part)
        return _Answer(response.status_code, b"".join(parts))


def _verify(access: ClientAccess) -> bool | str:
    """What requests calls `verify`: whether to, or the file of the CAs that are trusted."""
    if not access.tls_verify or not access.ca_pem:
        return access.tls_verify
    return ca_file(access.ca_pem)


def _token(session: requests.Session, client: Client) -> Mapping[str, str]:
    """The Authorization header: an ID token for the function's URL, kept until it runs out."""
    account = client.access.service_account
    name = msgspec.json.encode([dict(account), client.url], order="sorted")
    transport = google.auth.transport.requests.Request(session)
    request = functools.partial(transport, timeout=_TOKEN_S)
    headers: dict[str, str] = {}
    try:
        if name not in _google_credentials:
            while len(_google_credentials) >= _KEPT_MAX:
                _google_credentials.pop(next(iter(_google_credentials)))
            _google_credentials[name] = (
                google.oauth2.service_account.IDTokenCredentials.from_service_account_info(
                    dict(account), target_audience=client.url
                )
                if account
                else google.oauth2.id_token.fetch_id_token_credentials(client.url, request)
            )
        _google_credentials[name].before_request(request, "POST", client.url, headers)
    except (google.auth.exceptions.GoogleAuthError, ValueError) as exc:
        problem = str(exc).splitlines()[0] if isinstance(exc, google.auth.exceptions.GoogleAuthError) else ""
        raise TaskError(
            f"client {client.name}: no ID token for it: {type(exc).__name__} {problem}",
            hint="does the service account exist, and may it invoke the function (roles/run.invoker)?",
        ) from exc
    return headers


def _said(answer: _Answer) -> str:
    """The error an answer carries, cut to a line; not a page of HTML."""
    return _error_in(answer.json()) or "no reason given"


def _error_in(plain: Any) -> str:
    error = plain.get("error") if isinstance(plain, dict) else None
    if isinstance(error, dict):  # Google's own: {"error": {"code", "message", "status"}}
        error = error.get("message")
    return " ".join(str(error).split())[:300] if error else ""
