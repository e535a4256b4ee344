"""Platforms and store of a simulated world: slow, failing, hanging, but honest about claims."""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

from fedkeeper.core import attempts, records, sharding
from fedkeeper.core.model import (
    Command,
    FunctionsDeployed,
    InvocationFailed,
    Kind,
    ObjectRef,
    RoundAggregated,
    Run,
    ShardStored,
    UpdatesFolded,
    UpdatesRefused,
    UpdateStored,
    WeightsInitialised,
)
from tests.sim.world import World

Answer = Callable[[int, int], Command]  # epoch, at_ms


def ref(name: str) -> ObjectRef:
    """A pointer to an object that nobody will look for."""
    return ObjectRef(name=name, sha256=hashlib.sha256(name.encode()).hexdigest(), nbytes=len(name))


class Platform:
    """`p_bad`: how likely each of the things is that can go wrong with an invocation."""

    def __init__(self, world: World, *, p_bad: float) -> None:
        self.claims: dict[str, str] = {}  # key -> activation ID
        self.store: dict[str, Answer] = {}  # what can be known of a key, by whoever looks
        self.trained: Counter[tuple[str, int, str]] = Counter()  # run, round, client
        self._world = world
        self._p_bad = p_bad
        self._ids = itertools.count()

    def invoke(self, run: Run, key: str) -> tuple[str, int] | None:
        """The activation ID, and after how many ms it is known; None: nothing is heard of it.

        What it comes to is in `store` some time later.
        """
        if self._bad():
            self._publish(key, 0, _failing(key, "refused by the platform"))
            return None
        if self._bad():
            return None  # the request was lost
        heard = None if self._bad() else (f"{next(self._ids):x}", self._world.chance.randint(1, 400))
        if key in self.claims:
            return heard  # a second activation of a key stands back
        attempt = run.outbox[key]
        self.claims[key] = heard[0] if heard else f"{next(self._ids):x}"
        if attempt.kind is Kind.TRAIN:
            self.trained[attempt.run, attempt.round, attempt.client] += 1
        timeout_ms = attempts.timeout_ms(run.spec, attempt.kind)
        longest_ms = timeout_ms * 2 if self._bad() else min(timeout_ms // 2, 1_000)
        took_ms = self._world.chance.randint(1, longest_ms)
        if self._bad():
            self._publish(key, took_ms, _failing(key, "the function raised"))
        elif not self._bad():  # else it hangs
            self._publish(key, took_ms, self._working(run, key))
        return heard

    def _publish(self, key: str, after_ms: int, answer: Answer) -> None:
        self._world.at(after_ms, lambda: self.store.setdefault(key, answer))

    def _working(self, run: Run, key: str) -> Answer:
        chance = self._world.chance
        match run.outbox[key].kind:
            case Kind.DEPLOY:
                urls = {place.client: "http://f" for place in run.spec.clients}
                if self._bad():
                    urls.popitem()
                return lambda epoch, at_ms: FunctionsDeployed(
                    key=key, urls=urls, summary="3 created", epoch=epoch, at_ms=at_ms
                )
            case Kind.INIT:
                rows = {place.client: chance.randint(1, 600) for place in run.spec.clients}
                if self._bad():
                    rows.popitem()
                return lambda epoch, at_ms: WeightsInitialised(
                    key=key, weights=ref(f"{run.spec.run}/w0"), samples=rows, epoch=epoch, at_ms=at_ms
                )
            case Kind.TRAIN:
                samples = 0 if self._world.happens(self._p_bad / 2) else chance.randint(1, 600)
                loss = chance.choice((None, chance.random()))
                return lambda epoch, at_ms: UpdateStored(
                    key=key, ref=ref(key), samples=samples, loss=loss, accuracy=loss, epoch=epoch, at_ms=at_ms
                )
            case Kind.AGGREGATE | Kind.SHARD | Kind.FOLD:
                return self._aggregating(run, key)

    def _aggregating(self, run: Run, key: str) -> Answer:
        assert run.weights is not None
        keys = tuple(update.key for update in records.ordered_updates(run))
        parts = tuple(part.key for part in sharding.in_order(run))
        if self._bad():
            folds = tuple(fold.key for fold in run.folds)
            suspects = self._world.chance.choice([one for one in (keys, parts, folds) if one] or [keys])
            bad = {one: "NaN" for one in suspects if self._world.happens(0.5)}
            return lambda epoch, at_ms: UpdatesRefused(key=key, refused=bad, epoch=epoch, at_ms=at_ms)
        if run.outbox[key].kind is Kind.SHARD:
            return self._sharding(run, key, keys)
        if run.outbox[key].kind is Kind.FOLD:
            return self._folding(run, key, keys)
        accuracy = self._world.chance.choice((None, self._world.chance.random()))
        done = RoundAggregated(
            key=key,
            base=run.weights,
            weights=ref(f"{run.spec.run}/w{run.round}"),
            updates=keys,
            parts=parts,
            loss=accuracy,
            accuracy=accuracy,
            aggregate_s=0.25,
            evaluate_s=0.5,
            epoch=0,
            at_ms=0,
        )
        if self._bad():
            others = ({"base": ref("other")}, {"updates": keys[1:]}, {"parts": (*parts[1:], "other")})
            done = replace(done, **self._world.chance.choice(others))
        return lambda epoch, at_ms: replace(done, epoch=epoch, at_ms=at_ms)

    def _folding(self, run: Run, key: str, keys: tuple[str, ...]) -> Answer:
        assert run.weights is not None
        first = keys[: run.outbox[key].updates]
        done = UpdatesFolded(key=key, base=run.weights, ref=ref(key), updates=first, epoch=0, at_ms=0)
        if self._bad():
            others = ({"base": ref("other")}, {"updates": first[1:]}, {"updates": (*first[::-1], "x")})
            done = replace(done, **self._world.chance.choice(others))
        return lambda epoch, at_ms: replace(done, epoch=epoch, at_ms=at_ms)

    def _sharding(self, run: Run, key: str, keys: tuple[str, ...]) -> Answer:
        assert run.weights is not None
        done = ShardStored(
            key=key, base=run.weights, ref=ref(key), updates=keys, aggregate_s=0.25, epoch=0, at_ms=0
        )
        if self._bad():
            done = replace(done, **self._world.chance.choice(({"base": ref("other")}, {"updates": keys[1:]})))
        return lambda epoch, at_ms: replace(done, epoch=epoch, at_ms=at_ms)

    def _bad(self) -> bool:
        return self._world.happens(self._p_bad)


def _failing(key: str, reason: str) -> Answer:
    return lambda epoch, at_ms: InvocationFailed(key=key, reason=reason, epoch=epoch, at_ms=at_ms)
