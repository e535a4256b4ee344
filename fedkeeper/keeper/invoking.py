"""Sending an invocation until the platform has taken it, or has said no, or nobody can tell."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

import structlog

from fedkeeper.clock import Clock
from fedkeeper.core.model import Attempt
from fedkeeper.errors import FunctionMissing, InvocationUnknown, ProviderUnavailable, Throttled
from fedkeeper.keeper.lease import Lease
from fedkeeper.keeper.tasks import Call
from fedkeeper.providers.base import Provider
from fedkeeper.weights.base import UpdateStore

log = structlog.get_logger(__name__)

PAUSE_S = 0.25  # before a platform that cannot be reached is tried again; doubles up to the configured one
SAME_KEY_MAX = 3  # sendings of one key; the function's claim makes a second one harmless


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """One invocation, and under which circumstances it may be sent."""

    call: Call
    attempt: Attempt
    deadline_ms: int  # of the attempt, in the log's time
    lease: Lease
    now_ms: Callable[[], int]  # the log's time
    taken: Callable[[str], Awaitable[None]]  # told the activation's ID, as a part of the effect
    redeploy: Callable[[], Awaitable[None]]  # puts a function that is missing back


@dataclass(frozen=True, slots=True, kw_only=True)
class Invoker:
    """Sends invocations to the platforms; who calls it keeps to `in_flight_max`."""

    providers: Mapping[str, Provider]
    store: UpdateStore
    clock: Clock
    in_flight_max: Callable[[str], int]  # requests at once, by cluster
    platform_wait_s: float  # for one that cannot be reached: nothing was sent, so sending again is safe
    platform_pause_max_s: float  # between two tries in that wait
    look_again_s: float  # after an unanswered request, before the store is asked who claimed the key

    async def send(self, order: Order) -> None:
        """Send until it is taken, or nobody can tell, and the attempt's deadline decides.

        Bounded by SAME_KEY_MAX and by the attempt's deadline. Raises ProviderError if it failed, EpochOver
        when the lease is gone for good.
        """
        call, attempt = order.call, order.attempt
        provider = self.providers[call.cluster]
        sendings = 0
        waited_s, pause_s = 0.0, min(PAUSE_S, self.platform_pause_max_s)
        while order.now_ms() < order.deadline_ms:
            try:
                async with order.lease.effect():
                    activation_id = await provider.invoke(
                        call.function, call.payload, key=attempt.key, timeout_s=call.timeout_s
                    )
                    await order.taken(activation_id)
                    return
            except Throttled as exc:
                left_s = (order.deadline_ms - order.now_ms()) / 1000
                if exc.retry_after_s >= left_s:
                    raise
                log.info(
                    "throttled",
                    run=attempt.run,
                    key=attempt.key,
                    cluster=call.cluster,
                    wait_s=exc.retry_after_s,
                )
                await self.clock.sleep(exc.retry_after_s)
            except ProviderUnavailable as exc:
                if waited_s + pause_s > self.platform_wait_s:
                    raise
                log.info("platform away", run=attempt.run, key=attempt.key, problem=str(exc), wait_s=pause_s)
                await self.clock.sleep(pause_s)
                waited_s, pause_s = waited_s + pause_s, min(pause_s * 2, self.platform_pause_max_s)
            except FunctionMissing:
                sendings += 1
                if sendings >= SAME_KEY_MAX:
                    raise
                log.warning(
                    "function missing, deploying it",
                    run=attempt.run,
                    cluster=call.cluster,
                    function=call.function,
                )
                await order.redeploy()
            except InvocationUnknown as exc:
                sendings += 1
                log.warning("no answer to an invocation", run=attempt.run, key=attempt.key, problem=str(exc))
                await self.clock.sleep(self.look_again_s)
                claim = (await self.store.claims([attempt.key])).get(attempt.key)
                if claim is not None:
                    await order.taken(claim.activation_id)
                    return
                if sendings >= SAME_KEY_MAX:
                    return
