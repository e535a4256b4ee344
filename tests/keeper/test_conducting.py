"""Several keepers over one log: who conducts, what a change of the conductor costs, and who never acts."""

import asyncio
import json
from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any

import pytest

from fedkeeper.core.conducting import Placement, Policy
from fedkeeper.core.machine import apply
from fedkeeper.core.model import (
    Applied,
    AttemptStatus,
    ClaimConductor,
    Command,
    InvocationSent,
    KeeperMeasured,
    KeeperStarted,
    ObjectRef,
    Phase,
    RoundAggregated,
    State,
    SubmitRun,
    UpdateStored,
    WeightsInitialised,
)
from fedkeeper.errors import MembershipRefused, NoLeader, OutcomeUnknown, StoreUnavailable
from fedkeeper.keeper.lease import since_boot_s
from fedkeeper.keeper.tasks import book_of
from fedkeeper.replication.codec import VERSION
from fedkeeper.runtime.posting import OPENWHISK_BYTES_MAX
from fedkeeper.runtime.wire import Outcome
from tests.keeper.world import BOOK, Notes, World, spec

A_ROUND = {f"exp-1/r{round_no}/client_{client}/a0" for round_no in (1, 2) for client in range(3)}


def undisturbed(world: World) -> None:
    """The run ended as if nothing had happened: each round once, each client once a round, nothing failed."""
    run = world.run_of()
    assert run.phase is Phase.FINISHED
    assert [record.round for record in run.history] == [1, 2]
    assert max(Counter(world.platform.worked).values()) == 1
    assert {key for key in world.platform.worked if "client" in key} == A_ROUND
    assert all(record.failures == 0 for record in run.history)


async def test_the_leader_conducts_and_says_why(trio: World):
    """With placement raft, as the first thing that it has the log decide."""
    for name in ("k1", "k2", "k3"):
        trio.start(name)
    await trio.until(lambda: trio.group.state.conductor == "k1")
    assert trio.group.state.conductor_why == "k1 leads"
    await trio.until(lambda: trio.keepers["k1"].conducting.conducts)
    assert not trio.keepers["k2"].conducting.conducts


@pytest.mark.parametrize(("older", "once"), [(VERSION, True), (4, False)])
async def test_a_takeover_is_noted_once_when_every_known_keeper_reads_that(
    trio: World, older: int, once: bool
):
    """One of version 4 that is known, here or not, could not read the claim."""
    claims: list[ClaimConductor] = []
    trio.log.listen(
        lambda command, _: claims.append(command) if isinstance(command, ClaimConductor) else None
    )
    await trio.announce("k1", "k2")
    await trio.log.propose(KeeperStarted(keeper="k3", api="http://k3", version=older, at_ms=1))
    trio.start("k1")
    await trio.submit(spec())
    await trio.until(lambda: trio.run_of().ended_ms > 0)
    undisturbed(trio)
    assert {claim.resumes for claim in claims} == {once}


async def test_a_new_leader_takes_over_at_once(trio: World):
    """From being elected to its first invocation: far less than 50 ms, nothing on the way sleeps."""
    trio.platform.behave["exp-1/init/a0"] = lambda _: None  # nobody answers, so nothing else happens
    await trio.submit(spec())
    taken = []
    for name in ("k2", "k3"):
        trio.start(name)
    await trio.logs["k1"].propose(ClaimConductor(keeper="k1", expected_epoch=0, at_ms=1))
    assert trio.platform.invoked == []
    begun = since_boot_s()
    trio.group.lead("k2")
    await trio.until(lambda: bool(trio.platform.invoked))
    taken.append(since_boot_s() - begun)
    assert trio.platform.invoked == ["exp-1/init/a0"]
    assert trio.group.state.conductor == "k2"
    assert max(taken) < 1.0  # the figure is the benchmark's; here no sleep of a second may be on the way


KINDS = {
    "claim": ClaimConductor,
    "sent": InvocationSent,
    "update": UpdateStored,
    "aggregated": RoundAggregated,
}


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("kind", KINDS)
async def test_a_conductor_that_dies_right_after_a_command_costs_nothing(trio: World, kind: str, count: int):
    """It is gone the moment that the `count`-th such command is applied; the next leader finishes the run."""
    trio.platform.delay_s = 0.01
    seen = 0

    def cut(command: object, _: object) -> None:
        nonlocal seen
        if isinstance(command, KINDS[kind]) and trio.group.leader == "k1":
            seen += 1
            if seen == count:
                trio.keepers["k1"].task.cancel()
                trio.group.lead("k2")

    trio.logs["k3"].listen(cut)
    for name in ("k1", "k2"):
        trio.start(name)
    await trio.submit(spec())
    await trio.until(lambda: trio.run_of().ended_ms > 0)
    undisturbed(trio)


@pytest.mark.parametrize("moment_ms", range(0, 60, 5))
async def test_a_conductor_that_dies_at_any_moment_costs_nothing(trio: World, moment_ms: int):
    """Between any two steps of it."""
    trio.platform.delay_s = 0.01
    for name in ("k1", "k2"):
        trio.start(name)
    await trio.submit(spec())
    await asyncio.sleep(moment_ms / 1000)
    await trio.keepers["k1"].kill()
    trio.group.lead("k2")
    await trio.until(lambda: trio.run_of().ended_ms > 0)
    undisturbed(trio)


@pytest.mark.parametrize("moment_ms", range(0, 60, 5))
async def test_a_handover_at_any_moment_costs_no_activation(trio: World, moment_ms: int):
    """Nothing is invoked twice: what the old conductor was just sending, the new one is told."""
    trio.platform.delay_s = 0.01
    trio.platform.answer_s = 0.004
    for name in ("k1", "k2"):
        trio.start(name)
    await trio.submit(spec())
    await asyncio.sleep(moment_ms / 1000)
    await trio.keepers["k1"].conducting.handover("k2")
    await trio.until(lambda: trio.run_of().ended_ms > 0)
    undisturbed(trio)
    assert max(Counter(trio.platform.invoked).values()) == 1
    assert (trio.group.state.conductor, trio.group.state.pinned) == ("k2", True)


async def test_a_handover_by_hand_stays_until_it_is_undone(trio: World):
    """Placement would have the leader conduct, and has it again afterwards."""
    for name in ("k1", "k2"):
        trio.start(name)
    conducting = trio.keepers["k1"].conducting
    await trio.until(lambda: conducting.conducts)
    await conducting.handover("k2")
    await trio.until(lambda: trio.keepers["k2"].conducting.conducts and not conducting.conducts)
    await conducting.handover(None)
    await trio.until(lambda: trio.group.state.conductor == "k1")
    assert not trio.group.state.pinned


async def test_a_handover_to_nobody_is_refused(trio: World):
    """The error names those that are up."""
    trio.start("k1")
    with pytest.raises(MembershipRefused, match="k9") as caught:
        await trio.keepers["k1"].conducting.handover("k9")
    assert "k1, k2, k3" in caught.value.hint


async def test_a_frozen_conductor_starts_nothing_when_it_wakes(trio: World):
    """Its clock has gone on: it asks the log before it acts, and the log says that its epoch is over."""
    for name in ("k1", "k2"):
        trio.start(name)
    await trio.until(lambda: trio.keepers["k1"].conducting.conducts)
    trio.logs["k1"].behind = True  # it learns of nothing, as a process that is stopped
    trio.group.lead("k2")
    await trio.until(lambda: trio.keepers["k2"].conducting.conducts)
    engine = trio.keepers["k1"].conducting._engine
    assert engine is not None
    engine.lease._until = float("-inf")  # more than the lease has passed
    acted = asyncio.ensure_future(engine.lease.hold())
    trio.logs["k1"].behind = False
    await trio.submit(spec())
    await asyncio.wait({acted}, timeout=5)
    assert acted.exception() is not None
    await trio.until(lambda: trio.run_of().ended_ms > 0)
    undisturbed(trio)
    assert max(Counter(trio.platform.invoked).values()) == 1


async def test_without_a_majority_nothing_is_started_and_nothing_lost(world: World):
    """Activations go on meanwhile; what they have stored counts, though their time is over by then."""
    world.lease_s = 0.2
    world.platform.delay_s = 0.3
    world.start()
    await world.submit(spec(client_timeout_ms=600, server_timeout_ms=600))
    await world.until(lambda: "exp-1/r1/client_0/a0" in world.platform.invoked)
    await world.until(
        lambda: all(one.status is AttemptStatus.RUNNING for one in world.run_of().outbox.values())
    )
    world.group.lead("")
    await world.until(lambda: {f"exp-1/r1/client_{c}/a0" for c in range(3)} <= set(world.platform.worked))
    invoked = list(world.platform.invoked)
    await asyncio.sleep(1.0)  # longer than the lease and than the clients' time
    assert world.platform.invoked == invoked
    assert world.keepers["k1"].conducting.problem
    world.group.lead("k1")
    await world.until(lambda: world.run_of().ended_ms > 0)
    undisturbed(world)
    assert world.keepers["k1"].conducting.problem == ""


@pytest.mark.parametrize("error", [NoLeader("nobody leads"), OutcomeUnknown("no answer")])
async def test_commands_that_are_not_confirmed_are_proposed_again(world: World, error: Exception):
    """Whether they happened or not: they are idempotent by their keys."""
    propose = world.log.propose
    count = 0

    async def now_and_then(command: object):
        nonlocal count
        count += 1
        if isinstance(error, OutcomeUnknown) and count % 3 == 0:
            await propose(command)  # type: ignore[arg-type]
        if count % 3 == 0:
            raise error
        return await propose(command)  # type: ignore[arg-type]

    world.log.propose = now_and_then  # type: ignore[method-assign]
    world.start()
    await world.announce()
    world.log.propose = propose  # type: ignore[method-assign]
    await world.submit(spec())
    world.log.propose = now_and_then  # type: ignore[method-assign]
    await world.until(lambda: world.run_of().ended_ms > 0)
    undisturbed(world)


async def test_turns_by_rounds_change_the_conductor_and_cost_nothing(trio: World):
    """Each keeper conducts one round, none is told twice to send."""
    trio.policy = Policy(placement=Placement.ROTATE, every_rounds=1)
    claims = []
    trio.logs["k3"].listen(
        lambda command, applied: (
            claims.append(command.keeper) if isinstance(command, ClaimConductor) else None
        )
    )
    for name in ("k1", "k2", "k3"):
        trio.start(name)
    await trio.submit(spec())
    await trio.until(lambda: trio.run_of().ended_ms > 0)
    undisturbed(trio)
    assert claims[:2] == ["k1", "k2"]
    assert max(Counter(trio.platform.invoked).values()) == 1


async def test_the_nearest_keeper_conducts(trio: World):
    """By the measurements that are replicated, and with the reason."""
    trio.policy = Policy(placement=Placement.LATENCY)
    for name in ("k1", "k2", "k3"):
        trio.start(name)
    for name, ms in (("k1", 9.0), ("k2", 1.0), ("k3", 9.0)):
        others = {f"keeper/{one}": ms for one in ("k1", "k2", "k3") if one != name}
        await trio.log.propose(
            KeeperMeasured(keeper=name, latencies={**others, "cluster/lab": ms}, at_ms=trio.clock.now_ms())
        )
    await trio.until(lambda: trio.keepers["k2"].conducting.conducts)
    assert trio.group.state.conductor_why.startswith("k2 is nearest")


def without_store(world: World, away: set[str], name: str) -> None:
    """Start a keeper whose store does not answer while `away` holds its name."""
    tools = world.tools(Notes())
    outcomes = tools.store.outcomes

    async def perhaps(keys: Collection[str]) -> Mapping[str, Outcome]:
        if name in away:
            raise StoreUnavailable("no answer for 60 s")
        return await outcomes(keys)

    tools.store.outcomes = perhaps  # type: ignore[method-assign,assignment]
    world.start(name, tools=tools)


async def test_a_conductor_without_a_store_gives_way(trio: World):
    """It cannot work, another one can: the run goes on there, and nobody has pinned it."""
    without_store(trio, {"k1"}, "k1")
    trio.start("k2")
    trio.start("k3")
    await trio.submit(spec())
    await trio.until(lambda: trio.run_of().ended_ms > 0)
    undisturbed(trio)
    state = trio.group.state
    assert "k1 cannot: no answer for 60 s" in state.conductor_why
    assert state.keepers["k1"].unfit == "no answer for 60 s"
    assert not state.pinned


async def test_a_keeper_that_can_conduct_again_does_so_where_placement_wants_it(trio: World):
    """The leader leaves it to others for a pause, and tries again after that."""
    away = {"k1"}
    trio.cannot_s = (0.3, 60.0)
    trio.platform.delay_s = 0.5  # so that there is a run all the while
    for name in ("k1", "k2", "k3"):
        without_store(trio, away, name)
    await trio.submit(spec())
    await trio.until(lambda: trio.group.state.conductor not in ("", "k1"))
    away.clear()
    await trio.until(lambda: trio.group.state.conductor == "k1")
    await trio.until(lambda: trio.run_of().ended_ms > 0)
    undisturbed(trio)


async def test_keepers_that_all_cannot_conduct_try_less_and_less_often(trio: World):
    """Nobody's store answers: each tries again after twice as long, up to a limit; then all goes on."""
    claims: list[ClaimConductor] = []

    def note(command: Command, applied: Applied) -> None:
        if isinstance(command, ClaimConductor) and not applied.rejected:
            claims.append(command)

    trio.log.listen(note)
    away = {"k1", "k2", "k3"}
    trio.cannot_s = (0.05, 0.2)
    for name in ("k1", "k2", "k3"):
        without_store(trio, away, name)
    await trio.submit(spec())
    await trio.until(lambda: all(one.unfit_times >= 5 for one in trio.group.state.keepers.values()))
    pauses: dict[str, list[int]] = {}
    until_ms: dict[str, int] = {}
    conductor = ""
    for claim in claims:
        if claim.unfit:
            pauses.setdefault(conductor, []).append(claim.unfit_ms)
            assert claim.at_ms >= until_ms.get(conductor, 0), "it tried before its time"
            until_ms[conductor] = claim.at_ms + claim.unfit_ms
        conductor = claim.keeper
    assert set(pauses) == {"k1", "k2", "k3"}
    assert all(some[:5] == [50, 100, 200, 200, 200] for some in pauses.values())
    away.clear()
    await trio.until(lambda: trio.run_of().ended_ms > 0)
    undisturbed(trio)


async def test_a_user_may_have_a_keeper_try_at_once(trio: World):
    """`handover` to one that could not conduct: its pause is over."""
    away = {"k1"}
    without_store(trio, away, "k1")
    trio.start("k2")
    trio.start("k3")
    trio.platform.delay_s = 0.5
    await trio.submit(spec())
    await trio.until(lambda: trio.group.state.conductor not in ("", "k1"))
    away.clear()
    await trio.keepers["k1"].conducting.handover("k1")
    assert trio.group.state.conductor == "k1"
    assert trio.group.state.pinned
    await trio.until(lambda: trio.keepers["k1"].conducting.conducts)
    await trio.until(lambda: trio.run_of().ended_ms > 0)
    undisturbed(trio)


async def test_a_keeper_that_is_started_again_conducts_under_a_new_epoch(world: World):
    """What it claimed in an earlier life is over: attempts get their time anew."""
    await world.submit(spec())
    first = world.start()
    await world.until(lambda: world.group.state.epoch == 1)
    await first.kill()
    world.start()
    await world.until(lambda: world.run_of().ended_ms > 0)
    undisturbed(world)
    assert world.group.state.epoch == 2
    assert "started again" in world.group.state.conductor_why


async def test_a_run_is_deployed_first_and_a_failure_says_why(world: World):
    """Any keeper deploys it, with its own settings; what a platform refused ends the run."""
    world.deployments.failures.append(StoreUnavailable("quota exceeded", hint="delete functions"))
    world.start()
    await world.submit(spec("exp-1", deploy_timeout_ms=60_000))
    await world.submit(spec("exp-2", deploy_timeout_ms=60_000))
    await world.until(lambda: world.run_of("exp-1").ended_ms > 0 and world.run_of("exp-2").ended_ms > 0)
    ends = {name: world.run_of(name) for name in ("exp-1", "exp-2")}
    failed = next(run for run in ends.values() if run.phase is Phase.FAILED)
    assert "quota exceeded (delete functions)" in failed.reason
    assert next(run for run in ends.values() if run is not failed).deployed == "3 created"


async def test_who_takes_over_compares_the_functions_with_its_settings(trio: World):
    """Once in its life, after what is to be invoked: they may have been changed since."""
    trio.platform.behave["exp-1/init/a0"] = lambda _: None
    trio.start("k1")
    trio.start("k2")
    await trio.submit(spec())
    await trio.until(lambda: bool(trio.platform.invoked))
    trio.group.lead("k2")
    await trio.until(lambda: trio.deployments.runs.count("exp-1") == 1)


async def test_reports_are_written_by_who_conducts_and_by_nobody_else(trio: World):
    """The next one completes what the last one left: every round, every ended attempt of two rounds."""
    trio.platform.delay_s = 0.01
    for name in ("k1", "k2", "k3"):
        trio.start(name)
    await trio.submit(spec())
    await trio.until(lambda: len(trio.run_of().history) == 1)
    await trio.keepers["k1"].kill()
    trio.group.lead("k2")
    notes = trio.keepers["k2"].notes
    await trio.until(lambda: notes.ends == ["exp-1"])
    assert notes.begun == ["exp-1"]
    keys = [record.attempt.key for record in notes.records]
    assert len(keys) == len(set(keys))
    assert set(keys) >= A_ROUND
    assert trio.keepers["k3"].notes == Notes()


async def test_a_new_conductor_fetches_only_the_records_that_the_files_lack(trio: World):
    """In a folder that keepers share, what was written before the change is not asked for again."""
    trio.platform.delay_s = 0.01
    notes = Notes()
    trio.start("k1", tools=trio.tools(notes))
    trio.platform.behave["exp-1/r2/client_0/a0"] = lambda _: None  # so the second round waits
    await trio.submit(spec(client_timeout_ms=1_000))
    first = {key for key in A_ROUND if "/r1/" in key}
    await trio.until(lambda: first <= {one.attempt.key for one in notes.records})
    await trio.keepers["k1"].kill()
    before = list(trio.platform.told)
    trio.start("k2", tools=trio.tools(notes))
    trio.group.lead("k2")
    await trio.until(lambda: notes.ends == ["exp-1"])
    assert len(before) >= len(first)
    assert Counter(trio.platform.told).most_common(1)[0][1] == 1
    assert {one.attempt.key for one in notes.records} >= A_ROUND


def test_any_keeper_can_tell_functions_what_to_do():
    """What they are told is in the run, not in a keeper's config."""
    run = apply(State(), SubmitRun(spec=spec(), at_ms=1)).state.runs["exp-1"]
    assert book_of(run) == BOOK


def test_an_aggregation_of_ten_thousand_updates_fits_into_a_request():
    """OpenWhisk takes 1 MB: so many are named by their keys, in the order of the clients."""
    few, many = (_to_aggregate(clients) for clients in (1_000, 10_000))
    assert [update["client"] for update in few["updates"]] == [f"client_{i}" for i in range(1_000)]
    assert (few["counted"], few["wire"]) == ([], 1)
    assert many["updates"] == []
    assert many["counted"] == [f"client_{i}/a0" for i in range(10_000)]
    assert many["wire"] == 3
    assert len(json.dumps(many)) < OPENWHISK_BYTES_MAX / 4


def _to_aggregate(clients: int) -> Mapping[str, Any]:
    """What the aggregator is told when all of them have trained."""
    state, epoch = State(), 0
    weights = ObjectRef(name="exp-1/w0", sha256="0" * 64, nbytes=8)
    samples = {f"client_{i}": 10 for i in range(clients)}
    commands: list[Command] = [
        SubmitRun(spec=spec(clients=clients), at_ms=1),
        WeightsInitialised(key="exp-1/init/a0", weights=weights, samples=samples, epoch=epoch, at_ms=1),
    ]
    for client in samples:
        key = f"exp-1/r1/{client}/a0"
        ref = ObjectRef(name=key, sha256="0" * 64, nbytes=8)
        commands.append(
            UpdateStored(key=key, ref=ref, samples=10, loss=0.5, accuracy=0.5, epoch=epoch, at_ms=1)
        )
    for command in commands:
        applied = apply(state, command)
        assert not applied.rejected
        state = applied.state
    run = state.runs["exp-1"]
    (attempt,) = run.outbox.values()
    payload: Mapping[str, Any] = json.loads(json.dumps(book_of(run).call(run, attempt).payload))
    return payload


async def test_the_records_of_many_are_asked_for_together(trio: World):
    """What ended at once is asked for in one go, at the end of the run at the latest; nothing is left out."""
    notes = Notes()
    trio.start("k1", tools=trio.tools(notes))
    await trio.submit(spec(clients=40, clients_per_round=40))
    await trio.until(lambda: notes.ends == ["exp-1"])
    keys = Counter(one.attempt.key for one in notes.records)
    assert {f"exp-1/r{round_no}/client_{client}/a0" for round_no in (1, 2) for client in range(40)} <= set(
        keys
    )
    assert set(keys.values()) == {1}
    assert all(one.activation is not None for one in notes.records)
    assert 1 <= trio.platform.lists <= 10
