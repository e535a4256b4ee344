"""Server-sent events of runs."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import msgspec

from fedkeeper.core.model import Applied, ObjectRef, Phase, RoundRecord, Run, State, StopRun, SubmitRun
from fedkeeper.keeper.api.runs import encode_run
from fedkeeper.keeper.api.settings import ApiSettings
from tests.keeper.lab import Lab, open_lab, until
from tests.keeper.world import spec

QUICK = ApiSettings(events_s=0.01, keep_alive_s=0.05, stall_s=0.2)


def scripted(state: State, command) -> Applied:
    """Each StopRun makes another round of its run; `end` as the reason ends it, `forget` drops it."""
    if isinstance(command, SubmitRun):
        run = Run(spec=command.spec, phase=Phase.TRAINING, round=1, weights=None)
    elif isinstance(command, StopRun):
        run = state.runs[command.run]
        if command.reason == "forget":
            return Applied(state=replace(state, runs={}))
        if command.reason == "end":
            run = replace(run, phase=Phase.FINISHED)
        elif command.reason.startswith("round"):
            run = replace(run, round=run.round + 1, history=(*run.history, record(run.round)))
        else:
            run = replace(run, reason=command.reason)
    else:
        return Applied(state=state)
    return Applied(state=replace(state, runs={run.spec.run: run}))


def record(number: int) -> RoundRecord:
    """A committed round of two clients."""
    return RoundRecord(
        round=number,
        weights=ObjectRef(name=f"w{number}", sha256="", nbytes=1),
        loss=None,
        accuracy=number / 10,
        clients=("c0", "c1"),
        updates=(f"exp-1/r{number}/c0/a0",),
        samples=1,
        failures=0,
        gave_up=0,
        update_bytes=1,
        train_loss=None,
        started_ms=0,
        invoked_ms=0,
        trained_ms=0,
        aggregated_ms=0,
        aggregate_s=0,
        evaluate_s=0,
    )


@asynccontextmanager
async def scripted_lab(*names: str, settings: ApiSettings = QUICK) -> AsyncIterator[Lab]:
    """As `open_lab`, with that machine, and the run exp-1."""
    async with open_lab(*names, settings=settings, announce=False, apply=scripted) as lab:
        await lab["k1"].log.propose(SubmitRun(spec=spec(), at_ms=1))
        yield lab


async def say(lab: Lab, reason: str) -> None:
    """Have the machine do something."""
    await lab["k1"].log.propose(StopRun(run="exp-1", reason=reason, at_ms=1))


class Reader:
    """A reader of a stream: `events` are those that have come, `notes` the comments."""

    def __init__(self, lab: Lab, query: str = "", *, at: str = "k1") -> None:
        self.events: list[tuple[int, str, Any]] = []
        self.notes = 0
        self.ended = False
        self._url = f"{lab[at].url}/v1/runs/exp-1/events{query}"
        self._session = lab.session

    async def read(self) -> None:
        """Until the stream ends."""
        async with self._session.get(self._url) as response:
            assert response.headers["Content-Type"] == "text/event-stream"
            data = b""
            async for piece in response.content.iter_any():
                data += piece
                *whole, data = data.split(b"\n\n")
                for event in whole:
                    self._take(event)
        assert data == b""
        self.ended = True

    def _take(self, event: bytes) -> None:
        if event.startswith(b":"):
            self.notes += 1
            return
        number, kind, data = (line.partition(b": ")[2] for line in event.split(b"\n"))
        self.events.append((int(number), kind.decode(), json.loads(data)))

    @property
    def runs(self) -> list[Run]:
        return [msgspec.convert(data, Run) for _, kind, data in self.events if kind == "run"]


@asynccontextmanager
async def reading(lab: Lab, query: str = "", *, at: str = "k1") -> AsyncIterator[Reader]:
    """A reader that reads beside the test."""
    reader = Reader(lab, query, at=at)
    task = asyncio.create_task(reader.read())
    try:
        yield reader
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_a_run_is_told_at_once_and_after_each_change():
    """Until it has ended; the ids are indexes of the log, and grow."""
    async with scripted_lab() as lab, reading(lab) as reader:
        await until(lambda: len(reader.events) == 1)
        assert reader.runs[0] == lab.group.state.runs["exp-1"]
        await say(lab, "changed")
        await until(lambda: len(reader.events) == 2)
        assert reader.runs[1].reason == "changed"
        await say(lab, "end")
        await until(lambda: reader.ended)
    assert [kind for _, kind, _ in reader.events] == ["run", "run", "run", "end"]
    assert [number for number, _, _ in reader.events] == [1, 2, 3, 3]
    assert reader.events[-1][2] == {"phase": "finished", "reason": "changed"}


async def test_changes_that_come_fast_are_one_event():
    """The last of them is always told."""
    async with scripted_lab(settings=replace(QUICK, events_s=0.2)) as lab, reading(lab) as reader:
        await until(lambda: len(reader.events) == 1)
        for number in range(200):
            await say(lab, f"change {number}")
        await until(lambda: reader.runs[-1].reason == "change 199")
    assert len(reader.runs) < 20


async def test_only_new_rounds_are_told():
    """The first event has them from `history_from` on: a run of many rounds would make ever larger events."""
    async with scripted_lab() as lab:
        for _ in range(5):
            await say(lab, "round")
        async with reading(lab, "?history_from=3") as reader:
            await until(lambda: len(reader.events) == 1)
            await say(lab, "round")
            await until(lambda: len(reader.events) == 2)
            await say(lab, "changed")
            await until(lambda: len(reader.events) == 3)
    assert [[past.round for past in run.history] for run in reader.runs] == [[3, 4, 5], [6], []]


async def test_the_size_of_events_does_not_grow_with_the_rounds():
    """A thousand clients, fifty rounds: each event is about as large as the run itself."""
    clients = tuple(f"client_{number}" for number in range(1000))
    past = replace(record(1), clients=clients, updates=tuple(f"exp-1/r1/{name}/a0" for name in clients))
    one = Run(spec=spec(clients=1000), phase=Phase.TRAINING, round=2, weights=None, history=(past,))
    many = replace(one, history=tuple(replace(past, round=number) for number in range(1, 51)))
    assert len(encode_run(many, 51)) < len(encode_run(one, 0))
    assert msgspec.json.decode(encode_run(many, 0), type=Run) == many


async def test_followers_tell_what_they_apply():
    """Without asking the leader; one that is behind tells it later."""
    async with scripted_lab("k1", "k2") as lab, reading(lab, at="k2") as reader:
        await until(lambda: len(reader.events) == 1)
        lab["k2"].log.behind = True
        await say(lab, "end")
        await until(lambda: reader.notes >= 2)
        assert len(reader.events) == 1
        lab["k2"].log.behind = False
        await until(lambda: reader.ended)


async def test_a_stream_without_news_shows_that_it_is_there():
    """Comments, which readers pass over."""
    async with scripted_lab() as lab, reading(lab) as reader:
        await until(lambda: reader.notes >= 3)
    assert len(reader.events) == 1


async def test_a_run_that_is_forgotten_ends_its_streams():
    """And one that is not there has none."""
    async with scripted_lab() as lab, reading(lab) as reader:
        await until(lambda: len(reader.events) == 1)
        await say(lab, "forget")
        await until(lambda: reader.ended)
        assert reader.events[-1][1:] == ("end", {"phase": "forgotten", "reason": ""})
        assert (await lab.ask("GET", "/v1/runs/exp-1/events")).status == 404


async def a_place_is_free(lab: Lab) -> None:
    """Wait until another reader is let in."""
    async with asyncio.timeout(20):
        while True:
            async with lab.session.get(f"{lab['k1'].url}/v1/runs/exp-1/events") as response:
                if response.status == 200:
                    return
            await asyncio.sleep(0.02)


async def test_there_are_only_so_many_streams():
    """503, before one of the others suffers; a place that gets free is taken."""
    async with scripted_lab(settings=replace(QUICK, streams_max=2)) as lab:
        async with reading(lab) as one, reading(lab) as two:
            await until(lambda: one.events and two.events)
            answer = await lab.ask("GET", "/v1/runs/exp-1/events")
            assert (answer.status, answer.error["kind"]) == (503, "KeeperBusy")
        await a_place_is_free(lab)


async def test_a_reader_that_takes_nothing_is_dropped():
    """Its stream does not hold what it does not read, nor a place among the streams."""
    async with scripted_lab(settings=replace(QUICK, streams_max=1)) as lab:
        host, _, port = lab["k1"].url.removeprefix("http://").partition(":")
        reader, writer = await asyncio.open_connection(host, int(port), limit=1024)
        writer.write(f"GET /v1/runs/exp-1/events HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        await reader.readline()

        async def flood() -> None:
            while True:
                await say(lab, "x" * 1_000_000)
                await asyncio.sleep(0.02)

        flooding = asyncio.create_task(flood())
        try:
            await a_place_is_free(lab)
        finally:
            flooding.cancel()
            writer.transport.abort()


async def test_a_keeper_that_stops_ends_its_streams():
    """Their readers go on elsewhere; the keeper does not wait for them."""
    async with scripted_lab() as lab, reading(lab) as reader:
        await until(lambda: len(reader.events) == 1)
        await lab["k1"].die()
        await until(lambda: reader.ended)
    assert [kind for _, kind, _ in reader.events] == ["run"]


async def test_half_a_surrogate_pair_does_not_stop_a_stream():
    """A platform's message may hold one."""
    async with scripted_lab() as lab, reading(lab) as reader:
        await say(lab, "odd \ud800")
        await until(lambda: reader.runs and reader.runs[-1].reason == "odd \ud800")
