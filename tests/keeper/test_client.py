"""The Python client against real keepers' APIs: redirects, deaths, repeats."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from aiohttp import web

from fedkeeper.core.model import KeeperStarted, Phase
from fedkeeper.errors import (
    ApiError,
    ApiRefused,
    ConfigError,
    MembershipRefused,
    NoLeader,
    NotThere,
    OutcomeUnknown,
    Rejected,
    RunChanged,
)
from fedkeeper.keeper.client import Fence, KeeperClient
from tests.keeper.api.test_events import QUICK, say, scripted_lab
from tests.keeper.api.test_safety import OPERATOR, READER, TOKENS
from tests.keeper.lab import Lab, open_lab, until
from tests.keeper.world import spec
from tests.replication.raft.certificates import authority


@asynccontextmanager
async def client_of(lab: Lab, *names: str, **options: Any) -> AsyncIterator[KeeperClient]:
    """A client that was told of these keepers, or of all."""
    options.setdefault("timeout_s", 20.0)
    client = KeeperClient([lab[name].url for name in names] or lab.urls, **options)
    try:
        yield client
    finally:
        client.close()


async def call(what: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """On a thread: the client blocks, and the keepers live on this loop."""
    return await asyncio.to_thread(partial(what, *args, **options))


@pytest.fixture
async def three() -> AsyncIterator[Lab]:
    """k1 leads k2 and k3."""
    async with open_lab("k1", "k2", "k3", settings=QUICK) as lab:
        yield lab


@pytest.mark.parametrize(
    "name", ["a", "a/b", "..", ".", "a/../b", "é😀", "%2F", "?#&", " ", "\x00", "x" * 512]
)
async def test_the_dictionary(three, name):
    """Any name, any JSON; asked of any keeper."""
    async with client_of(three, "k3") as client:
        version = await call(client.set, name, {"a": [1, None, "é"]})
        assert await call(client.get, name) == {"a": [1, None, "é"]}
        assert (await call(client.read, name)).version == version
        assert await call(client.get, name, stale=True) == {"a": [1, None, "é"]}
        assert await call(client.names) == (name,)
        assert {key: entry.value for key, entry in (await call(client.entries)).items()} == {
            name: {"a": [1, None, "é"]}
        }
        second = await call(client.compare_and_set, name, 2, version)
        with pytest.raises(Rejected):
            await call(client.compare_and_set, name, 3, version)
        with pytest.raises(Rejected):
            await call(client.delete, name, expected=version)
        await call(client.delete, name, expected=second)
        with pytest.raises(NotThere):
            await call(client.get, name)
        with pytest.raises(NotThere):
            await call(client.delete, name)


async def test_append_is_set(three):
    """Rafty's word."""
    async with client_of(three) as client:
        await call(client.append, "x", 1)
        assert await call(client.get, "x") == 1


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1, 2}, b"x", object()])
async def test_what_is_no_json_is_refused_here(three, value):
    """As the json module does; nothing is sent."""
    async with client_of(three) as client:
        with pytest.raises((TypeError, ValueError)):
            await call(client.set, "x", value)
    assert three.group.state.kv == {}


async def test_a_fence(three):
    """A write under a lock that has changed is rejected."""
    async with client_of(three) as client:
        held = Fence(name="lock", version=await call(client.set, "lock", 1))
        await call(client.set, "x", 1, fence=held)
        await call(client.set, "lock", 2)
        with pytest.raises(Rejected, match="lock"):
            await call(client.set, "x", 2, fence=held)
        with pytest.raises(Rejected, match="lock"):
            await call(client.delete, "x", fence=held)


async def test_the_leader_is_remembered(three):
    """The second call goes there at once; when another one leads, it is found."""
    async with client_of(three, "k2", "k3") as client:
        await call(client.set, "x", 1)
        await three["k2"].die()
        await three["k3"].die()
        await call(client.set, "x", 2)
        assert (await call(client.status)).name == "k1"


async def test_when_keepers_die_the_others_are_asked(three):
    """Also one that the client was never told of, if the cluster told it."""
    async with client_of(three, "k1", "k2") as client:
        await call(client.set, "x", 1)
        await three["k1"].die()
        three.group.lead("k3")
        assert await call(client.get, "x") == 1
        await call(client.set, "x", 2)
        await three["k2"].die()
        assert await call(client.get, "x") == 2


async def test_a_change_of_leader_is_waited_for(three):
    """A call that falls between two leaders takes longer, and works."""
    three.group.lead("")
    async with client_of(three) as client:
        writing = asyncio.create_task(call(client.set, "x", 1))
        await asyncio.sleep(0.1)
        three.group.lead("k2")
        await writing
    assert three.group.state.kv["x"].value == "1"


async def test_without_a_majority_a_call_ends_in_time(three):
    """NoLeader, from the keepers themselves: nothing was proposed, nor will it be when one leads again."""
    three.group.lead("")
    async with client_of(three, timeout_s=3.0) as client:
        with pytest.raises(NoLeader, match="no leader") as caught:
            await call(client.set, "x", 1)
    assert caught.value.definite
    three.group.lead("k2")
    async with client_of(three) as client:
        assert await call(client.names) == ()


async def test_without_any_keeper_a_call_ends_in_time(three):
    """ApiError, which names the addresses: nothing was sent."""
    urls = three.urls
    async with client_of(three, timeout_s=0.3) as client:
        for keeper in three.keepers.values():
            await keeper.die()
        with pytest.raises(ApiError, match="no keeper answered") as caught:
            await call(client.set, "x", 1)
        assert caught.value.definite
        assert urls[0] in str(caught.value)


def test_without_an_address_calls_end_in_time():
    """As when all embedded keepers have ended: nobody waits for ever, nor at full speed."""
    with KeeperClient(list, timeout_s=0.3) as client:
        before = time.process_time()
        for what in (client.status, lambda: client.set("x", 1), lambda: list(client.events("exp-1"))):
            with pytest.raises(ApiError) as caught:
                what()
            assert caught.value.definite
        assert time.process_time() - before < 0.3


def test_a_closed_client_ends_calls_at_once():
    """Also those that would wait for an address."""
    client = KeeperClient(list, timeout_s=600)
    client.close()
    with pytest.raises(ApiError):
        client.status()
    assert list(client.events("exp-1")) == []


class Meddler:
    """A server between client and keeper that loses answers, or sends elsewhere."""

    def __init__(self, target: str) -> None:
        self._target = target
        self.seen: list[tuple[str, str]] = []
        self.lose = 0
        self.lost = 0
        self.elsewhere = ""
        self.url = ""

    @asynccontextmanager
    async def open(self, session: Any) -> AsyncIterator[Meddler]:
        """Until the block ends."""

        async def handle(request: web.BaseRequest) -> web.StreamResponse:
            self.seen.append((request.method, request.headers.get("Authorization", "")))
            headers = {key: request.headers[key] for key in ("Content-Type",) if key in request.headers}
            url = self._target + request.raw_path
            async with session.request(
                request.method, url, data=await request.read(), headers=headers, allow_redirects=False
            ) as answer:
                data = await answer.read()
            if self.lose:
                self.lose -= 1
                self.lost += 1
                request.transport.abort()
            to = answer.headers.get("Location")
            location = {"Location": self.elsewhere + request.raw_path if self.elsewhere else to} if to else {}
            kind = answer.headers["Content-Type"]
            return web.Response(status=answer.status, body=data, headers={"Content-Type": kind, **location})

        server = web.Server(handle)
        runner = web.ServerRunner(server)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}"
        try:
            yield self
        finally:
            await runner.cleanup()


async def test_a_write_whose_answer_is_lost_happens_once(three):
    """It is sent again with the same id; the version is that of the first time."""
    async with Meddler(three["k1"].url).open(three.session) as meddler:
        client = KeeperClient(meddler.url, timeout_s=20)
        meddler.lose = 2
        version = await call(client.set, "x", 1)
        client.close()
    assert (meddler.lost, len(meddler.seen)) == (2, 3)
    assert version == three.group.state.kv_version == 1


async def test_what_cannot_be_repeated_is_not(three):
    """OutcomeUnknown: it may have happened, and it has."""
    async with Meddler(three["k1"].url).open(three.session) as meddler:
        client = KeeperClient(meddler.url, timeout_s=20)
        meddler.lose = 1
        with pytest.raises(OutcomeUnknown):
            await call(client.handover, "k2")
        client.close()
    assert len(meddler.seen) == 1
    assert (three.group.state.conductor, three.group.state.epoch) == ("k2", 1)


async def test_tokens_go_to_keepers_only(three):
    """A redirection to an address that the cluster does not tell is not followed."""
    stranger = Meddler(three["k1"].url)
    async with stranger.open(three.session), Meddler(three["k2"].url).open(three.session) as meddler:
        with KeeperClient(meddler.url, token=OPERATOR, timeout_s=5) as client:
            meddler.elsewhere = stranger.url
            with pytest.raises(ApiError, match="no keeper of this cluster"):
                await call(client.set, "x", 1)
            meddler.elsewhere = three["k1"].url
            await call(client.set, "x", 1)
    assert stranger.seen == []
    assert meddler.seen[0] == ("PUT", f"Bearer {OPERATOR}")


def test_a_token_does_not_go_out_in_the_clear():
    """Nor anything else: off loopback the API speaks TLS only."""
    for url in ("http://10.0.0.1:8080", "ftp://x", "127.0.0.1:8080", "https://me:secret@k1.example"):
        with pytest.raises(ConfigError) as caught:
            KeeperClient(url, token=OPERATOR)
        assert "secret" not in str(caught.value)


async def test_roles():
    """A reader's token reads."""
    async with open_lab(settings=TOKENS) as lab:
        async with client_of(lab, token=READER) as client:
            assert (await call(client.status)).name == "k1"
            with pytest.raises(ApiRefused, match="only read"):
                await call(client.set, "x", 1)
        async with client_of(lab, token=OPERATOR) as client:
            await call(client.set, "x", 1)
            assert OPERATOR not in repr(client)
        async with client_of(lab) as client:
            with pytest.raises(ApiRefused) as caught:
                await call(client.status)
            assert caught.value.status == 401


async def test_tls(tmp_path):
    """With the CA that is configured; a certificate of another one is refused."""
    files = authority().files(tmp_path, "k1", sans=("localhost",))
    others = authority("other").files(tmp_path, "k1", sans=("localhost",))
    settings = replace(TOKENS, cert_file=files.cert_file, key_file=files.key_file)
    async with open_lab(settings=settings) as lab:
        url = lab["k1"].url.replace("127.0.0.1", "localhost")
        with KeeperClient(url, token=OPERATOR, ca_file=files.ca_file) as client:
            assert (await call(client.status)).name == "k1"
        with (
            KeeperClient(url, token=OPERATOR, ca_file=others.ca_file) as client,
            pytest.raises(ApiError, match="certificate"),
        ):
            await call(client.status)


async def test_runs(three):
    """Submitted, read, stopped, forgotten; the same again is harmless, another of that name is not."""
    async with client_of(three, "k2") as client:
        run = await call(client.submit, spec(), config={"a": 1})
        assert run.spec == spec()
        assert await call(client.submit, spec()) == run
        with pytest.raises(RunChanged):
            await call(client.submit, spec(digest="another"))
        with pytest.raises(ApiError, match="rounds_max"):
            await call(client.submit, spec("b", rounds_max=0))
        assert [one.run for one in await call(client.runs)] == ["exp-1"]
        assert await call(client.whole_runs) == {"exp-1": run}
        with pytest.raises(Rejected):
            await call(client.forget, "exp-1")
        assert (await call(client.stop, "exp-1", "enough")).phase is Phase.STOPPED
        await call(client.forget, "exp-1")
        with pytest.raises(NotThere):
            await call(client.run, "exp-1")


async def test_keepers(three):
    """Handover, leadership, members, what a keeper tells of itself."""
    async with client_of(three, "k3") as client:
        assert (await call(client.handover, "k2")).conductor == "k2"
        assert not (await call(client.handover, None)).pinned
        with pytest.raises(NotThere):
            await call(client.handover, "k9")
        assert (await call(client.lead, "k2")).leader == "k2"
        members = await call(client.add_member, "k4", "10.0.0.4:7000")
        assert [member.name for member in members.members] == ["k1", "k2", "k3", "k4"]
        with pytest.raises(MembershipRefused):
            await call(client.add_member, "k4", "10.0.0.4:7000")
        await call(client.remove_member, "k2")
        assert set(three.group.members) == {"k1", "k3", "k4"}
        assert (await call(client.diagnostic)).cluster == ("k1", "k3", "k4")
        assert "keeper" in await call(client.config)


async def collect(client: KeeperClient, **options: Any) -> tuple[list[Any], asyncio.Task[None]]:
    """The runs that come, and the task that ends when they do."""
    runs: list[Any] = []

    def read() -> None:
        for run in client.events("exp-1", **options):
            runs.append(run)

    return runs, asyncio.create_task(asyncio.to_thread(read))


async def test_events_go_on_when_keepers_die():
    """At another keeper, with the whole history each time, and never with an older state."""
    async with scripted_lab("k1", "k2", "k3") as lab:
        for name, keeper in lab.keepers.items():
            await lab["k1"].log.propose(KeeperStarted(keeper=name, api=keeper.url, version=1, at_ms=1))
        async with client_of(lab) as client:
            runs, reading = await collect(client)
            await until(lambda: runs)
            lab["k2"].log.behind = True
            await say(lab, "round")
            await until(lambda: runs[-1].round == 2)
            await lab["k1"].die()  # k2 is older than what was told
            await say(lab, "round")
            await until(lambda: runs[-1].round >= 2)
            lab["k2"].log.behind = False
            await until(lambda: runs[-1].round == 3)
            await lab["k2"].die()
            await say(lab, "round")
            await say(lab, "end")
            await reading
    assert [past.round for past in runs[-1].history] == [1, 2, 3]
    assert runs[-1].phase is Phase.FINISHED
    assert [run.round for run in runs] == sorted(run.round for run in runs)
    assert all([past.round for past in run.history] == list(range(1, run.round)) for run in runs)


async def test_events_of_a_run_that_is_nowhere():
    """NotThere, soon."""
    async with open_lab() as lab, client_of(lab) as client:
        with pytest.raises(NotThere):
            await call(list, client.events("exp-1"))


async def test_events_without_any_keeper_end_in_time():
    """With what was the matter."""
    async with scripted_lab() as lab, client_of(lab, timeout_s=0.5) as client:
        _, reading = await collect(client)
        await lab["k1"].die()
        with pytest.raises(ApiError):
            await reading


async def test_closing_the_client_ends_its_events():
    """Whoever waits for them in a thread is let go."""
    async with scripted_lab() as lab, client_of(lab) as client:
        runs, reading = await collect(client)
        await until(lambda: runs)
        client.close()
        await reading


async def test_a_keeper_that_says_nothing_is_left_for_another(three):
    """A frozen process accepts connections, and that is all it does."""
    with socket.socket() as frozen:
        frozen.bind(("127.0.0.1", 0))
        frozen.listen()
        url = f"http://127.0.0.1:{frozen.getsockname()[1]}"
        with KeeperClient([url, *three.urls], timeout_s=5.0) as client:
            await call(client.set, "x", 1)
            assert await call(client.get, "x") == 1


async def test_threads_share_a_client(three):
    """Each call has its own connection for the while."""
    async with client_of(three) as client:
        barrier = threading.Barrier(4, timeout=20)

        def work(number: int) -> None:
            barrier.wait()
            for turn in range(20):
                client.set(f"x{number}", turn)
                assert client.get(f"x{number}") == turn

        await asyncio.gather(*(call(work, number) for number in range(4)))
    assert three.group.state.kv_version == 80


async def test_addresses_may_change(three):
    """They are asked for each time: embedded keepers come back on other ports."""
    where = ["http://127.0.0.1:1"]
    with KeeperClient(lambda: where, timeout_s=20.0) as client:
        writing = asyncio.create_task(call(client.set, "x", 1))
        await asyncio.sleep(0.05)
        where[0] = three["k2"].url
        await writing
    assert three.group.state.kv["x"].value == "1"


async def test_what_is_no_keeper_is_named():
    """Some other server at that address."""

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        return web.Response(status=404, text="<html>")

    runner = web.ServerRunner(web.Server(handle))
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    url = f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}"
    with KeeperClient(url, timeout_s=5) as client, pytest.raises(ApiError, match="is this a keeper"):
        await call(client.status)
    await runner.cleanup()
