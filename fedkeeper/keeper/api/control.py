"""What the API asks of its keeper, beyond the log."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from fedkeeper.clock import Clock, SystemClock
from fedkeeper.core.model import ClaimConductor, RunSpec
from fedkeeper.errors import NotThere, Rejected
from fedkeeper.replication.base import ClusterLog


class Control(Protocol):
    """Each is called on the leader only, and may raise any FedKeeperError, which the caller then gets."""

    async def submit(self, spec: RunSpec, config: Mapping[str, Any], fingerprint: Mapping[str, Any]) -> None:
        """Check and store what this run needs, before SubmitRun is proposed. May come again for the same."""
        ...

    async def forget(self, run: str) -> None:
        """Drop what is stored of an ended run. Then ForgetRun is proposed; may be called again."""
        ...

    async def conduct(self, keeper: str | None) -> None:
        """Have `keeper` conduct, or whom placement chooses; return when it is committed."""
        ...

    async def transfer(self, to: str) -> None:
        """Have `to` lead."""
        ...

    async def add_member(self, name: str, address: str) -> None:
        """Take `name` in; return when it is committed."""
        ...

    async def remove_member(self, name: str) -> None:
        """Let `name` go; return when it is committed."""
        ...

    async def config(self) -> Mapping[str, Any]:
        """This keeper's config without its secrets. On every keeper."""
        ...


class LogControl:
    """A `Control` that knows nothing but the log: stores nothing, checks nothing of the clusters."""

    def __init__(
        self, log: ClusterLog, config: Mapping[str, Any] | None = None, *, clock: Clock | None = None
    ) -> None:
        self._log = log
        self._config = dict(config or {})
        self._clock = clock or SystemClock()

    async def submit(self, spec: RunSpec, config: Mapping[str, Any], fingerprint: Mapping[str, Any]) -> None:
        """Nothing to check."""

    async def forget(self, run: str) -> None:
        """Nothing is stored."""

    async def conduct(self, keeper: str | None) -> None:
        """Claim for `keeper`, by hand; or for the leader, which is where placement begins."""
        state = self._log.state
        if keeper is not None and keeper not in state.keepers:
            known = ", ".join(sorted(state.keepers))
            raise NotThere(f"no keeper {keeper!r}", status=404, hint=f"known: {known or 'none yet'}")
        applied = await self._log.propose(
            ClaimConductor(
                keeper=keeper or self._log.status.leader,
                expected_epoch=state.epoch,
                at_ms=self._clock.now_ms(),
                why="chosen by hand" if keeper else "no longer chosen by hand",
                pinned=keeper is not None,
            )
        )
        if applied.rejected:
            raise Rejected(applied.rejected, status=409, hint="another handover came first: ask again")

    async def transfer(self, to: str) -> None:
        """As the log does it."""
        await self._log.transfer(to)

    async def add_member(self, name: str, address: str) -> None:
        """As the log does it."""
        await self._log.add_member(name, address)

    async def remove_member(self, name: str) -> None:
        """As the log does it; before a leader goes, another one takes over, and the caller asks that one."""
        await self._log.remove_member(name)

    async def config(self) -> Mapping[str, Any]:
        """As it was given."""
        return self._config
