"""Server-sent events: a run, at once and whenever it has changed, until it has ended."""

from __future__ import annotations

import asyncio
from typing import Final

from aiohttp import web

from fedkeeper.core.machine import ENDED
from fedkeeper.core.model import Applied, Command, Run
from fedkeeper.keeper.api.answers import encode_any
from fedkeeper.keeper.api.call import Call, number
from fedkeeper.keeper.api.cluster import Cluster
from fedkeeper.keeper.api.runs import encode_run, find
from fedkeeper.keeper.api.streams import Stream, Streams

FORGOTTEN: Final = "forgotten"  # the phase in `end` of a run that was deleted meanwhile


class Events:
    """Streams what this keeper applies, leader or not. A slow reader misses changes, never the last one.

    Nothing queues up: each stream sends the run as it is then, at most once per interval.
    """

    def __init__(self, cluster: Cluster, streams: Streams, *, interval_s: float, keep_alive_s: float) -> None:
        self._cluster = cluster
        self._streams = streams
        self._interval_s = interval_s
        self._keep_alive_s = keep_alive_s
        self._runs = cluster.log.state.runs
        self._watching: set[asyncio.Event] = set()
        self._encoded: tuple[Run | None, int, bytes] = (None, 0, b"")  # the last one: streams share it
        self.stop = cluster.log.listen(self._heard)

    async def stream(self, call: Call) -> web.StreamResponse:
        """`run` events with the run as JSON, then `end`.

        The first event has the history from `history_from` on, each later one only the rounds that are new.
        """
        history_from = number(call.query("history_from"), "history_from", default=0)
        find(self._cluster.log.state, call.name)
        changed = asyncio.Event()
        self._watching.add(changed)
        try:
            async with self._streams.open(call, "text/event-stream") as stream:
                await self._follow(call.name, history_from, stream, changed)
                return stream.response
        finally:
            self._watching.discard(changed)

    def close(self) -> None:
        """Listen no more, and have the streams end: their readers go to another keeper."""
        self.stop()
        self._streams.close()
        for changed in self._watching:
            changed.set()

    async def _follow(self, name: str, history_from: int, stream: Stream, changed: asyncio.Event) -> None:
        sent: Run | None = None
        while not self._streams.closing.is_set():
            changed.clear()
            run = self._cluster.log.state.runs.get(name)
            if run is not None and run is not sent:
                await stream.write(self._event("run", self._json(run, history_from)))
                sent, history_from = run, max(history_from, run.history[-1].round + 1 if run.history else 0)
            if run is None or run.phase in ENDED:
                why = {"phase": run.phase if run else FORGOTTEN, "reason": run.reason if run else ""}
                await stream.write(self._event("end", encode_any(why)))
                return
            await asyncio.sleep(self._interval_s)
            while not changed.is_set():
                try:
                    async with asyncio.timeout(self._keep_alive_s):
                        await changed.wait()
                except TimeoutError:
                    await stream.write(b": here\n\n")

    def _event(self, kind: str, data: bytes) -> bytes:
        return b"id: %d\nevent: %b\ndata: %b\n\n" % (
            self._cluster.log.status.applied_index,
            kind.encode(),
            data,
        )

    def _json(self, run: Run, history_from: int) -> bytes:
        last, since, data = self._encoded
        if last is not run or since != history_from:
            data = encode_run(run, history_from)
            self._encoded = (run, history_from, data)
        return data

    def _heard(self, _: Command, applied: Applied) -> None:
        if applied.state.runs is not self._runs:
            self._runs = applied.state.runs
            for changed in self._watching:
                changed.set()
