"""HTTP for the providers: TLS verified, answers bounded, no redirects, and how far a request got."""

from __future__ import annotations

import io
import ipaddress
import json
import re
import ssl
import types
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path

import aiohttp
import structlog
from yarl import URL

from fedkeeper.errors import (
    ConfigError,
    InvocationUnknown,
    ProviderError,
    ProviderUnavailable,
    RequestRefused,
)

_log = structlog.get_logger(__name__)
PIECEWISE_BYTES = 2**18
_TAGS = re.compile(r"<(style|script|title)\b.*?</\1>|<[^>]*>", re.DOTALL | re.IGNORECASE)
TEXT_MAX = 300  # characters of a platform's error text that are passed on


class AnswerTooLarge(Exception):
    """The answer is longer than the caller will hold in memory."""


@dataclass(slots=True)
class Sending:
    """How far a request got. `started` decides whether a failure can have had an effect."""

    started: bool = False  # the headers went out: from here on the act may happen
    body_bytes: int = 0  # of the body, handed to the connection so far
    progress: Callable[[], None] | None = None  # called after every piece of the body


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP answer, read to its end."""

    status: int
    headers: Mapping[str, str]
    body: bytes


def open_session(
    *, in_flight_max: int, authorization: str = "", tls: ssl.SSLContext | bool = True
) -> aiohttp.ClientSession:
    """A session that keeps no cookies, trusts no environment, and reports how far each request got.

    Close it. `authorization` is that header's value in every request. Proxies are told per request (see
    `proxy_for`): with trust_env, aiohttp would also read ~/.netrc, and an entry there collides with our
    own Authorization header.
    """
    trace = aiohttp.TraceConfig()
    trace.on_request_headers_sent.append(_headers_sent)
    trace.on_request_chunk_sent.append(_chunk_sent)
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=in_flight_max, ssl=tls),
        headers={"Authorization": authorization} if authorization else None,
        cookie_jar=aiohttp.DummyCookieJar(),
        trace_configs=[trace],
        trust_env=False,
    )


async def exchange(
    session: aiohttp.ClientSession,
    method: str,
    url: URL,
    *,
    sending: Sending,
    timeout: aiohttp.ClientTimeout,  # noqa: ASYNC109 -- connection and silence are timed apart
    bytes_max: int,
    params: Mapping[str, str] | None = None,
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
) -> Answer:
    """Send once, read the whole answer.

    Raises:
        AnswerTooLarge: longer than `bytes_max`.
        aiohttp.ClientError, TimeoutError, OSError: look at `sending.started`.
    """
    async with session.request(
        method,
        url,
        params=params,
        # A large body goes out piece by piece: as one it would hold up everything else meanwhile.
        data=io.BytesIO(body) if body is not None and len(body) > PIECEWISE_BYTES else body,
        headers=headers,
        timeout=timeout,
        allow_redirects=False,  # credentials go where the config says and nowhere else
        proxy=proxy_for(url),
        trace_request_ctx=sending,
    ) as response:
        chunks: list[bytes] = []
        size = 0
        async for chunk in response.content.iter_any():
            size += len(chunk)
            if size > bytes_max:
                raise AnswerTooLarge(f"the answer is longer than {bytes_max} bytes")
            chunks.append(chunk)
        return Answer(response.status, response.headers, b"".join(chunks))


def tls_context(cluster: str, *, verify: bool, ca_file: Path | None) -> ssl.SSLContext | bool:
    """What aiohttp takes as `ssl=`. Not verifying is logged at every start."""
    if not verify:
        _log.warning("TLS certificates are not verified: anyone in between can read the key", cluster=cluster)
        return False
    if ca_file is None:
        return True
    try:
        return ssl.create_default_context(cafile=ca_file)
    except (OSError, ssl.SSLError) as exc:
        raise ConfigError(f"{cluster}: ca_file {ca_file}: {exc}", hint="it must be a PEM file") from exc


def warn_if_plain(cluster: str, url: URL) -> None:
    """Log that credentials will travel unencrypted, where they will."""
    if url.scheme == "http" and not is_loopback(url):
        _log.warning("no TLS: anyone in between can read the key", cluster=cluster, host=url.host)


def is_loopback(url: URL) -> bool:
    """True if `url` names this machine, so that no proxy may come in between."""
    host = url.host or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def proxy_for(url: URL) -> str | None:
    """The proxy that the environment (HTTPS_PROXY, NO_PROXY) asks for; never for loopback."""
    if is_loopback(url) or not url.host or urllib.request.proxy_bypass(url.host):
        return None
    return urllib.request.getproxies().get(url.scheme)


def short(text: str) -> str:
    """One line, at most TEXT_MAX characters."""
    line = " ".join(text.split())
    return line if len(line) <= TEXT_MAX else line[: TEXT_MAX - 1] + "…"


def describe(exc: BaseException) -> str:
    """An exception as part of a sentence; many of aiohttp's have an empty text."""
    return short(f"{type(exc).__name__}: {exc}" if str(exc) else type(exc).__name__)


def error_text(body: bytes) -> str:
    """The `error` of the platform's answer, or the beginning of whatever came."""
    text = body[:4096].decode(errors="replace")
    if text.lstrip().startswith("<"):  # a page of something in between: its words are enough
        text = _TAGS.sub(" ", text)
    try:
        plain = json.loads(body)
    except ValueError:
        return short(text)
    error = plain.get("error") if isinstance(plain, dict) else None
    if isinstance(error, dict):  # Google's way
        error = error.get("message") or error
    return short(str(error) if error else text)


def problem(answer: Answer) -> str:
    """What an answer says, as part of a sentence."""
    return f"HTTP {answer.status}: {error_text(answer.body)}".rstrip(": ")


def refusal(cluster: str, function: str, answer: Answer, *, wrote: bool, key: str) -> ProviderError:
    """The error of an answer other than 2xx to which the platform gives no meaning of its own.

    `wrote`: the request could change something, so that a 5xx leaves open whether it did. `key`: of the
    config, that says where the platform is.
    """
    status = answer.status
    if status >= 500:
        unknown = InvocationUnknown if wrote else ProviderUnavailable
        return unknown(cluster, function, problem(answer), status=status)
    if 300 <= status < 400:
        return RequestRefused(
            cluster,
            function,
            f"HTTP {status}: redirected, and credentials are not taken elsewhere",
            status=status,
            hint=f"{key} must be the platform itself; https instead of http?",
        )
    return RequestRefused(cluster, function, problem(answer), status=status)


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Seconds from a Retry-After header that gives them, else None."""
    value = headers.get("Retry-After", "").strip()
    return float(value) if value.isdecimal() and len(value) < 6 else None


def server_second(headers: Mapping[str, str], *, now_ms: int) -> float:
    """Seconds into the clock minute, by the server's Date header; by `now_ms` without one."""
    try:
        return float(parsedate_to_datetime(headers["Date"]).second)
    except (KeyError, ValueError):
        return now_ms / 1000 % 60


async def _headers_sent(
    _session: aiohttp.ClientSession, context: types.SimpleNamespace, _params: object
) -> None:
    context.trace_request_ctx.started = True


async def _chunk_sent(
    _session: aiohttp.ClientSession,
    context: types.SimpleNamespace,
    params: aiohttp.TraceRequestChunkSentParams,
) -> None:
    sending: Sending = context.trace_request_ctx
    sending.body_bytes += len(params.chunk)
    if sending.progress:
        sending.progress()
