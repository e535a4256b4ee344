"""The effect behind `Invoke`: takes an intent, returns a command, touches no state."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

import structlog

from fedkeeper.clock import Clock
from fedkeeper.core.model import Attempt, Command, InvocationFailed, InvocationSent
from fedkeeper.errors import FunctionMissing, InvocationUnknown, ProviderError, ProviderUnavailable, Throttled
from fedkeeper.keeper.tasks import Call
from fedkeeper.providers.base import Provider
from fedkeeper.weights.base import UpdateStore

log = structlog.get_logger(__name__)

Redeploy = Callable[[str, str], Awaitable[None]]  # cluster, function

LOOK_AGAIN_S = 2.0  # after an unanswered request, before the store is asked who claimed the key
PAUSE_S_MAX = 4.0
SAME_KEY_MAX = 3  # sendings of one key; the function's claim makes a second one harmless


@dataclass(frozen=True, slots=True, kw_only=True)
class Invoker:
    """Sends invocations to the platforms, a bounded number of requests at once to each."""

    providers: Mapping[str, Provider]
    store: UpdateStore
    clock: Clock
    redeploy: Redeploy
    in_flight_max: Callable[[str], int]  # requests at once, by cluster
    platform_wait_s: (
        float  # for a platform that cannot be reached: nothing was sent, so sending again is safe
    )
    _slots: dict[str, asyncio.Semaphore] = field(default_factory=dict)

    async def invoke(self, call: Call, attempt: Attempt, *, epoch: int) -> Command | None:
        """Send `call`; return what became of that. None: nobody knows, the attempt's deadline decides."""
        slots = self._slots.setdefault(call.cluster, asyncio.Semaphore(self.in_flight_max(call.cluster)))
        async with slots:
            try:
                activation_id = await self._send(call, attempt)
            except ProviderError as exc:
                log.warning("invocation failed", key=attempt.key, problem=str(exc), definite=exc.definite)
                return InvocationFailed(
                    key=attempt.key, reason=str(exc), epoch=epoch, at_ms=self.clock.now_ms()
                )
        if activation_id is None:
            return None
        return InvocationSent(
            key=attempt.key, activation_id=activation_id, epoch=epoch, at_ms=self.clock.now_ms()
        )

    async def _send(self, call: Call, attempt: Attempt) -> str | None:
        """Send until the platform has taken it. Bounded by SAME_KEY_MAX and the attempt's deadline."""
        provider = self.providers[call.cluster]
        sendings = 0
        waited_s, pause_s = 0.0, 0.25
        while self.clock.now_ms() < attempt.deadline_ms:
            try:
                return await provider.invoke(
                    call.function, call.payload, key=attempt.key, timeout_s=call.timeout_s
                )
            except Throttled as exc:
                left_s = (attempt.deadline_ms - self.clock.now_ms()) / 1000
                if exc.retry_after_s >= left_s:
                    raise
                log.info("throttled", key=attempt.key, cluster=call.cluster, wait_s=exc.retry_after_s)
                await self.clock.sleep(exc.retry_after_s)
            except ProviderUnavailable as exc:
                if waited_s + pause_s > self.platform_wait_s:
                    raise
                log.info("platform away", key=attempt.key, problem=str(exc), wait_s=pause_s)
                await self.clock.sleep(pause_s)
                waited_s, pause_s = waited_s + pause_s, min(pause_s * 2, PAUSE_S_MAX)
            except FunctionMissing:
                sendings += 1
                if sendings >= SAME_KEY_MAX:
                    raise
                log.warning("function missing, deploying it", cluster=call.cluster, function=call.function)
                await self.redeploy(call.cluster, call.function)
            except InvocationUnknown as exc:
                sendings += 1
                log.warning("no answer to an invocation", key=attempt.key, problem=str(exc))
                await self.clock.sleep(LOOK_AGAIN_S)
                claim = (await self.store.claims([attempt.key])).get(attempt.key)
                if claim is not None:
                    return claim.activation_id
                if sendings >= SAME_KEY_MAX:
                    return None
        return None
