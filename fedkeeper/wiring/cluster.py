"""The keepers of an experiment as the commands use them: runs, dictionary, members, and how to reach them."""

from __future__ import annotations

import asyncio
import csv
import json
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, ParamSpec, TypeVar

import structlog

from fedkeeper.config import Experiment
from fedkeeper.core.machine import ENDED
from fedkeeper.core.model import Kind, Run
from fedkeeper.errors import ApiError, FedKeeperError, NoLeader, RunChanged, RunFailed
from fedkeeper.keeper.api.schemas import RunSummary, Status
from fedkeeper.keeper.client import Json, KeeperClient, Versioned
from fedkeeper.keeper.runs import Start, plan_start
from fedkeeper.wiring.embedded import API, EmbeddedKeepers, announced, open_embedded_keepers
from fedkeeper.wiring.keeper import submission
from fedkeeper.wiring.models import write_model

P = ParamSpec("P")
T = TypeVar("T")

ASK_S: Final = 3.0  # one keeper, how it is
QUIET_S: Final = 5.0  # without news of a run: is there a majority?
JOIN_S: Final = 3.0  # for a stream's thread to end
REPORTS_S: Final = 20.0  # for the reports of a run that has ended; a keeper waits 15 s for its platforms
LEADER_PAUSE_S: Final = 0.2
NAMES_MAX: Final = 20  # of new runs that others may take first

log = structlog.get_logger(__name__)


@dataclass(slots=True, kw_only=True)
class ClusterSession:
    """What `open_cluster` gives. A `cli.session.Cluster`."""

    experiment: Experiment
    client: KeeperClient = field(repr=False)
    keepers: EmbeddedKeepers | None
    stack: AsyncExitStack
    _begun: bool = False
    _end: bool | None = None

    @property
    def embedded(self) -> bool:
        """Whether the keepers run on this machine, for as long as they are used."""
        return self.experiment.keepers.embedded

    # --- runs -----------------------------------------------------------------------------------

    async def begin(self, *, fresh: bool, new: bool) -> tuple[str, Run | None]:
        """Submit the next run of this experiment, or find the unfinished one: its name, and it as it stands.

        Raises RunChanged if the unfinished one has another config.
        """
        for _ in range(NAMES_MAX):
            start = await self._plan(await self._first_answer(), fresh=fresh, new=new)
            await self._clear(start)
            self._begun = True
            if start.resumed:
                return start.run, await self.run(start.run)
            if await self._submit(start.run, new=new):
                return start.run, None
        raise RunFailed(
            f"other commands took the next {NAMES_MAX} names of {self.experiment.name} in between",
            hint="try again",
        )

    async def _clear(self, start: Start) -> None:
        for old in start.abandon:
            await self._ask(self.client.stop, old, "abandoned by the user")
        for old in start.forget:
            try:
                await self._ask(self.client.forget, old)
            except FedKeeperError as exc:  # the next start tries again
                log.warning("an old run is not forgotten yet", old=old, problem=str(exc))

    async def _submit(self, run: str, *, new: bool) -> bool:
        """False: it was to be a run of its own, and another command has begun one of that name."""
        made = submission(self.experiment, run)
        try:
            known = await self._ask(
                self.client.submit, made.spec, config=made.config, fingerprint=made.fingerprint
            )
        except RunChanged:
            if new:
                return False
            raise
        return not new or known.spec.book == made.spec.book

    async def runs(self) -> Sequence[RunSummary]:
        """All runs that the keepers know, in a line each."""
        return await self._first_answer()

    async def run(self, name: str) -> Run:
        """One of them, whole. NotThere if there is none of that name."""
        return await self._ask(self.client.run, name)

    async def follow(self, run: str, notice: Callable[[str], None]) -> AsyncIterator[Run]:
        """The run, as it stands and after each change, to its end; `notice` hears why nothing comes.

        Raises what is the matter when no keeper has answered for `follow_wait_s`.
        """
        silent_since, paused = time.monotonic(), False
        while True:
            try:
                async with aclosing(self._events(run)) as events:
                    async for news in events:
                        silent_since = time.monotonic()
                        if news is None:
                            paused = await self._say_if_paused(notice, paused=paused)
                            continue
                        yield news
                        if news.phase in ENDED:
                            return
                return
            except (ApiError, NoLeader) as exc:
                if time.monotonic() - silent_since > self.experiment.keepers.follow_wait_s:
                    raise
                if not paused:
                    notice(f"no keeper answers ({exc}): waiting for one")
                paused = True

    async def reported(self, run: Run) -> None:
        """Wait, at most REPORTS_S, until embedded keepers have written all of a run that has just ended.

        The platforms' records of the last round take a moment; keepers that are ended write nothing more.
        """
        limit = time.monotonic() + REPORTS_S
        folder = self.experiment.logs.folder / run.spec.run
        while self.keepers is not None and time.monotonic() < limit and not _is_reported(run, folder):
            if (
                time.time() * 1000 - run.ended_ms > REPORTS_S * 4000
            ):  # long ago: what is missing will not come
                return
            await asyncio.sleep(LEADER_PAUSE_S)

    async def stop_run(self, run: str, reason: str) -> Run:
        """End it before its end; one that has ended stays as it is."""
        await self._first_answer()
        return await self._ask(self.client.stop, run, reason)

    async def forget_run(self, run: str) -> None:
        """Drop a run that has ended, and its objects in the store."""
        await self._first_answer()
        await self._ask(self.client.forget, run)

    async def export_model(self, run: Run, path: Path) -> None:
        """Write the weights of the last committed round to `path` (safetensors)."""
        if run.weights is None:
            raise RunFailed(f"run {run.spec.run} has no weights yet")
        await write_model(self.experiment, run.spec.run, run.weights, path)

    # --- the dictionary -------------------------------------------------------------------------

    async def get(self, name: str, *, stale: bool) -> Versioned:
        """Its value and version. NotThere if there is none. `stale`: as the next keeper has it."""
        await self._first_answer(stale=stale)
        return await self._ask(self.client.read, name, stale=stale)

    async def put(self, name: str, value: Json, *, expected: int | None) -> int:
        """Set it; the version of the write. Rejected if it has another version than `expected` (0: none)."""
        await self._first_answer()
        return await self._ask(self.client.set, name, value, expected=expected)

    async def delete(self, name: str, *, expected: int | None) -> None:
        """Take it away. NotThere if it is not there."""
        await self._first_answer()
        await self._ask(self.client.delete, name, expected=expected)

    async def entries(self, prefix: str, *, stale: bool) -> Mapping[str, Versioned]:
        """All entries whose name begins so."""
        await self._first_answer(stale=stale)
        return await self._ask(self.client.entries, prefix, stale=stale)

    # --- the keepers ----------------------------------------------------------------------------

    async def views(self) -> tuple[Mapping[str, Status], Mapping[str, str]]:
        """Every keeper's own view by its name, and why there is none of the others'."""
        urls = self._urls()
        known = await asyncio.gather(*(asyncio.to_thread(self._view, url) for url in urls.values()))
        said = dict(zip(urls, known, strict=True))
        for name, url in self._learned(said, urls).items():  # members that the config does not have
            said[name] = await asyncio.to_thread(self._view, url)
        answers = {one.name: one for one in said.values() if isinstance(one, Status)}
        silent = {name: one for name, one in said.items() if isinstance(one, str) and name not in answers}
        absent = set(self.experiment.keepers.names()) - answers.keys() - silent.keys()
        return answers, silent | dict.fromkeys(sorted(absent), "does not run")

    async def alone(self, run: str) -> bool:
        """Whether they are embedded, and neither another command nor another run needs them."""
        if self.keepers is None or await self.keepers.shared():
            return False
        return not await self._needed(but=run)

    def at_close(self, *, end: bool) -> None:
        """Whether embedded keepers are ended when this is closed; see `cli.session.Cluster`."""
        self._end = end

    def how_to_start(self) -> str:
        """What to type to have keepers."""
        if self.embedded:
            return f"fedkeeper run -c {self.experiment.path} starts them, with a run"
        return f"on the host of each: fedkeeper keeper run NAME -c {self.experiment.path}"

    async def handover(self, keeper: str) -> None:
        """Make it the conductor until it is lost; empty: let the placement choose again."""
        await self._ask(self.client.handover, keeper or None)

    async def add_keeper(self, name: str, address: str) -> None:
        """Take a member in, at host:port of its Raft port; returns when that is committed."""
        await self._ask(self.client.add_member, name, address)

    async def remove_keeper(self, name: str) -> None:
        """Let a member go; returns when that is committed."""
        await self._ask(self.client.remove_member, name)

    # --- how ------------------------------------------------------------------------------------

    async def close(self) -> None:
        """Give back everything; see `at_close`."""
        end = self._end
        if end is None and self.keepers is not None:
            end = (self.keepers.started and not self._begun) or not await self._needed()
        self.client.close()
        await self.stack.aclose()
        if self.keepers is not None:
            await self.keepers.close(end=bool(end))

    async def _plan(self, runs: Sequence[RunSummary], *, fresh: bool, new: bool) -> Start:
        name, digest, folder = self.experiment.name, self.experiment.digest(), self.experiment.logs.folder
        taken = [one.name for one in folder.iterdir()] if folder.is_dir() else []
        try:
            return plan_start(runs, name, digest, fresh=fresh, new=new, taken=taken)
        except RunChanged as exc:
            unfinished = [one for one in runs if one.phase not in ENDED and one.digest != digest]
            latest = max(unfinished, key=lambda one: one.submitted_ms)
            changed = ", ".join(self._changed_keys(await self.run(latest.run)))
            raise RunChanged(f"{exc}; changed: {changed}", hint=exc.hint) from None

    def _changed_keys(self, run: Run) -> list[str]:
        before: Any = json.loads(run.spec.book or "{}").get("fingerprint")
        if not isinstance(before, dict):
            return ["unknown, it does not say what its config was"]
        now = self.experiment.fingerprint()
        return sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))

    async def _first_answer(self, *, stale: bool = False) -> Sequence[RunSummary]:
        """All runs; embedded keepers that were just started have some time to find their leader."""
        wait_s = self.experiment.embedded.start_timeout_s if self.keepers is not None else 0.0
        limit = time.monotonic() + wait_s
        while True:
            try:
                return (
                    (await self._ask(self.client.status)).runs if stale else await self._ask(self.client.runs)
                )
            except (ApiError, NoLeader):
                if time.monotonic() > limit:
                    raise
                await asyncio.sleep(LEADER_PAUSE_S)

    async def _ask(self, call: Callable[P, T], *arguments: P.args, **options: P.kwargs) -> T:
        try:
            return await asyncio.to_thread(call, *arguments, **options)
        except ApiError as exc:
            if self.embedded and not announced(self.experiment):
                raise NoLeader(f"no keeper of {self.experiment.name} runs", hint=self.how_to_start()) from exc
            raise

    async def _events(self, run: str) -> AsyncGenerator[Run | None, None]:
        """The client's stream, from a thread of its own; None after every QUIET_S without news."""
        loop, news = asyncio.get_running_loop(), asyncio.Queue[Run | BaseException | None]()

        def put(item: Run | BaseException | None) -> None:
            try:
                loop.call_soon_threadsafe(news.put_nowait, item)
            except RuntimeError:  # the loop has been closed: nobody listens any more
                return

        def read() -> None:
            try:
                for one in self.client.events(run):
                    put(one)
                put(None)
            except BaseException as exc:  # noqa: BLE001 - raised again on the loop
                put(exc)

        thread = threading.Thread(target=read, name=f"events of {run}", daemon=True)
        thread.start()
        self.stack.push_async_callback(asyncio.to_thread, thread.join, JOIN_S)
        while True:
            try:
                item = await asyncio.wait_for(news.get(), QUIET_S)
            except TimeoutError:
                yield None
                continue
            if item is None:
                return
            if isinstance(item, BaseException):
                raise item
            yield item

    async def _say_if_paused(self, notice: Callable[[str], None], *, paused: bool) -> bool:
        """Tell whether the cluster can decide anything, when that has changed; True: it cannot."""
        answers, silent = await self.views()
        leaderless = not any(one.leader for one in answers.values())
        if leaderless and not paused:
            away = ", ".join(sorted(silent)) or "some"
            notice(f"the keepers have no majority ({away} away): the run pauses until they have")
        if paused and not leaderless:
            notice("the keepers have a majority again: the run goes on")
        return leaderless

    async def _needed(self, *, but: str = "") -> bool:
        """Whether a run other than `but` goes on, as far as any keeper knows."""
        try:
            status = await asyncio.to_thread(self.client.status)
        except FedKeeperError:
            return False
        return any(one.phase not in ENDED and one.run != but for one in status.runs)

    def _urls(self) -> dict[str, str]:
        if self.embedded:
            return {name: info[API] for name, info in announced(self.experiment).items()}
        return {name: member.api for name, member in self.experiment.keepers.members.items()}

    def _learned(self, said: Mapping[str, Status | str], asked: Mapping[str, str]) -> dict[str, str]:
        return {
            keeper.name: keeper.api
            for one in said.values()
            if isinstance(one, Status)
            for keeper in one.keepers
            if keeper.member and keeper.api and keeper.name not in asked and not self.embedded
        }

    def _view(self, url: str) -> Status | str:
        try:
            with _client(self.experiment, [url], timeout_s=ASK_S) as client:
                return client.status()
        except FedKeeperError as exc:
            return str(exc)


@asynccontextmanager
async def open_cluster(
    experiment: Experiment, *, reach: Literal["start", "join", "look"]
) -> AsyncIterator[ClusterSession]:
    """Reach the keepers of `experiment`. Raises ServiceError if embedded ones do not start."""
    keepers = None
    if experiment.keepers.embedded and reach != "look":
        keepers = await open_embedded_keepers(experiment, any_config=reach == "join")
    embedded = experiment.keepers.embedded
    apis: Callable[[], Sequence[str]] | list[str] = (
        (lambda: [info[API] for info in announced(experiment).values()])
        if embedded
        else [member.api for member in experiment.keepers.members.values()]
    )
    session = ClusterSession(
        experiment=experiment,
        client=_client(experiment, apis, timeout_s=experiment.keepers.api.request_timeout_s),
        keepers=keepers,
        stack=AsyncExitStack(),
    )
    try:
        yield session
    finally:
        await session.close()


def _client(
    experiment: Experiment, apis: Callable[[], Sequence[str]] | list[str], *, timeout_s: float
) -> KeeperClient:
    api = experiment.keepers.api
    token = api.operator_token or api.reader_token
    return KeeperClient(
        apis,
        token=token.get_secret_value() if token is not None else None,
        ca_file=api.ca_file,
        timeout_s=timeout_s,
    )


def _is_reported(run: Run, folder: Path) -> bool:
    """Whether every attempt of the last rounds has its line, and the model is there."""
    try:
        with (folder / "activations.csv").open(encoding="utf-8", newline="") as file:
            written = {row["key"] for row in csv.DictReader(file)}
    except OSError:
        return not run.ended
    model = not run.history or (folder / "model.safetensors").exists()
    return model and all(one.key in written for one in run.ended if one.kind is not Kind.DEPLOY)
