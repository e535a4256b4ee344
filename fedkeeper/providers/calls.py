"""Calls of HTTP functions that go on in the background, and what became of them.

An HTTP function answers once, at its end; there is no "accepted". So a call counts as taken when its request
is written to an open connection, and its answer is kept here until someone asks for it.
"""

from __future__ import annotations

import asyncio
import json
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import aiohttp
from yarl import URL

from fedkeeper.clock import Clock
from fedkeeper.errors import InvocationUnknown, ProviderUnavailable, Throttled
from fedkeeper.providers import http
from fedkeeper.providers.base import Activation

ANSWER_BYTES_MAX: Final = 2**20  # as OpenWhisk allows; tensors go through the store
KEPT_MAX: Final = 4096  # answers
KEPT_BYTES_MAX: Final = 64 * 2**20
GRACE_S: Final = 15.0  # the platform's own 504 should come before we give up waiting for it
_WORDS: Final = {
    401: "unauthenticated",
    403: "permission denied",
    404: "not found",
    408: "deadline exceeded",
    413: "payload too large",
    429: "resource exhausted",
    502: "unavailable",
    503: "unavailable",
    504: "deadline exceeded",
}
REFUSED: Final = frozenset({"unauthenticated", "permission denied", "not found"})  # token or URL is stale


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One request to a function."""

    activation_id: str
    function: str
    url: str
    body: bytes
    headers: Mapping[str, str] = field(repr=False)  # with the token
    timeout_s: float
    memory_mb: int


class Calls:
    """Bounded in number while they run and in bytes when they are done."""

    def __init__(
        self,
        cluster: str,
        session: aiohttp.ClientSession,
        *,
        in_flight_max: int,
        connect_timeout_s: float,
        busy_wait_s: float = 1.0,
        clock: Clock,
    ) -> None:
        self._cluster = cluster
        self._session = session
        self._in_flight_max = in_flight_max
        self._connect_timeout_s = connect_timeout_s
        self._busy_wait_s = busy_wait_s  # until there may be room again
        self._clock = clock
        self._running: dict[str, asyncio.Task[None]] = {}
        self._kept: OrderedDict[str, tuple[Activation, int]] = OrderedDict()
        self._kept_bytes = 0

    async def start(self, call: Call) -> None:
        """Return when the request is written; an ID that is running is not sent again.

        Cancelling the caller does not call the request back.

        Raises ProviderUnavailable (nothing left this machine), InvocationUnknown (part of it did), or
        Throttled when as many calls as allowed are in flight.
        """
        if call.activation_id in self._running:
            return
        if len(self._running) >= self._in_flight_max:
            raise Throttled(
                self._cluster,
                call.function,
                f"{self._in_flight_max} calls are in flight",
                retry_after_s=self._busy_wait_s,
                hint="raise calls_in_flight_max of this cluster",
            )
        self._forget(call.activation_id)  # of the same key in an earlier life of the run
        written: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        task = asyncio.create_task(self._call(call, written), name=f"call {call.function}")
        self._running[call.activation_id] = task
        task.add_done_callback(lambda _: self._running.pop(call.activation_id, None))
        await written

    def ended(self, activation_id: str) -> Activation | None:
        """How the call ended; None while it runs, and for calls that were not made here."""
        kept = self._kept.get(activation_id)
        return kept[0] if kept else None

    async def close(self) -> None:
        """Stop waiting for answers; the functions go on."""
        tasks = tuple(self._running.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _call(self, call: Call, written: asyncio.Future[None]) -> None:
        """Send once, keep the answer. A connection lost after sending leaves nothing: it may be running."""
        sending = http.Sending()

        def look() -> None:
            if sending.body_bytes >= len(call.body) and not written.done():
                written.set_result(None)

        sending.progress = look
        limit_s = call.timeout_s + GRACE_S
        start_ms = self._clock.now_ms()
        problem = "the call ended unexpectedly"
        try:
            answer = await http.exchange(
                self._session,
                "POST",
                URL(call.url),
                sending=sending,
                timeout=aiohttp.ClientTimeout(
                    total=self._connect_timeout_s + limit_s,
                    connect=self._connect_timeout_s,
                    sock_read=limit_s,
                ),
                bytes_max=ANSWER_BYTES_MAX,
                body=call.body,
                headers=call.headers,
            )
            ended = activation(call, answer, start_ms=start_ms, end_ms=self._clock.now_ms())
            self._keep(ended, len(answer.body))
        except http.AnswerTooLarge as exc:
            self._keep(_oversize(call, str(exc), start_ms=start_ms, end_ms=self._clock.now_ms()), 0)
        except (aiohttp.ClientError, TimeoutError, OSError) as exc:
            problem = http.describe(exc)
        except asyncio.CancelledError:
            problem = "the provider was closed"
            raise
        finally:
            if written.done():
                pass
            elif call.activation_id in self._kept:  # answered before the body was out
                written.set_result(None)
            else:
                kind = InvocationUnknown if sending.started else ProviderUnavailable
                how_far = "sent in part" if sending.started else "not sent"
                written.set_exception(kind(self._cluster, call.function, f"{how_far}: {problem}"))

    def _keep(self, ended: Activation, size: int) -> None:
        self._kept[ended.activation_id] = (ended, size)
        self._kept_bytes += size
        while len(self._kept) > KEPT_MAX or self._kept_bytes > KEPT_BYTES_MAX:
            self._forget(next(iter(self._kept)))

    def _forget(self, activation_id: str) -> None:
        _, size = self._kept.pop(activation_id, (None, 0))
        self._kept_bytes -= size


def activation(call: Call, answer: http.Answer, *, start_ms: int, end_ms: int) -> Activation:
    """The function's answer, or the platform's in its place. Times are those seen from here."""
    ok = 200 <= answer.status < 300
    word = "ok" if ok else _WORDS.get(answer.status, "refused" if answer.status < 500 else "function error")
    reason = "" if ok else f"HTTP {answer.status} {word}: {http.error_text(answer.body)}"
    return Activation(
        activation_id=call.activation_id,
        function=call.function,
        ok=ok,
        status=word,
        reason=http.short(reason.rstrip(": ")),
        result=_result(answer.body) if ok else {},
        start_ms=start_ms,
        end_ms=end_ms,
        billed_ms=max(0, end_ms - start_ms),
        memory_mb=call.memory_mb,
    )


def _oversize(call: Call, problem: str, *, start_ms: int, end_ms: int) -> Activation:
    return Activation(
        activation_id=call.activation_id,
        function=call.function,
        ok=False,
        status="answer too large",
        reason=problem,
        result={},
        start_ms=start_ms,
        end_ms=end_ms,
        billed_ms=max(0, end_ms - start_ms),
        memory_mb=call.memory_mb,
    )


def _result(body: bytes) -> Mapping[str, Any]:
    try:
        plain = json.loads(body)
    except ValueError:
        return {"value": http.short(body[:4096].decode(errors="replace"))}
    return plain if isinstance(plain, dict) else {"value": plain}
