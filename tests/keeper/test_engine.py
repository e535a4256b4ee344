"""The engine over a platform in memory: what is invoked, what counts, what a takeover costs."""

import asyncio
from collections import Counter

import pytest

from fedkeeper.clock import SystemClock
from fedkeeper.core.model import AttemptStatus, Phase, SubmitRun
from fedkeeper.errors import InvocationUnknown, ProviderUnavailable, StoreUnavailable
from fedkeeper.runtime.wire import AggregateResult, Refused, encode
from tests.keeper.world import CLUSTER, Notes, World, spec


async def test_a_run_goes_through_all_its_rounds(world: World):
    """Init once, every client once a round, one aggregation a round, then the run is finished."""
    await world.submit(spec())
    run = await world.finish()
    assert run.phase is Phase.FINISHED
    assert [record.round for record in run.history] == [1, 2]
    assert world.platform.worked[0] == "exp-1/init/a0"
    assert Counter(world.platform.worked) == Counter(
        ["exp-1/init/a0", "exp-1/r1/aggregate/s0/a0", "exp-1/r2/aggregate/s0/a0"]
        + [f"exp-1/r{r}/client_{c}/a0" for r in (1, 2) for c in range(3)]
    )


async def test_two_runs_go_on_side_by_side(world: World):
    """Each has its own outbox and its own end."""
    await world.submit(spec("exp-1"))
    await world.submit(spec("exp-2", clients=2))
    world.start()
    await world.until(lambda: all(run.ended_ms for run in world.log.state.runs.values()))
    assert {run.phase for run in world.log.state.runs.values()} == {Phase.FINISHED}


async def test_a_client_that_fails_is_invoked_again_under_a_new_key(world: World):
    """The platform's record of the failure is enough: the function need not have said anything."""
    world.platform.behave["exp-1/r1/client_1/a0"] = lambda _: {"error": "boom"}
    await world.submit(spec())
    run = await world.finish()
    assert run.phase is Phase.FINISHED
    assert "exp-1/r1/client_1/a1" in world.platform.worked
    assert run.history[0].failures == 1
    assert run.history[0].gave_up == 0


async def test_a_function_that_returns_without_a_result_has_failed(world: World):
    """Success by the platform's word is not success: the update must be in the store."""
    world.platform.behave["exp-1/r1/client_1/a0"] = lambda _: {"fine": True}
    await world.submit(spec())
    run = await world.finish()
    [failed] = [one for one in run.ended if one.status is AttemptStatus.FAILED]
    assert failed.key == "exp-1/r1/client_1/a0"
    assert "left no result" in failed.reason


async def test_a_platform_that_does_not_say_what_has_ended_holds_up_nothing(world: World):
    """What functions published is taken in, and deadlines pass, while the question for records is open."""
    world.platform.mute = True
    world.platform.behave["exp-1/r1/client_0/a0"] = lambda _: None
    await world.submit(spec(client_timeout_ms=200))
    run = await world.finish()
    assert run.phase is Phase.FINISHED
    assert "exp-1/r1/client_0/a1" in world.platform.worked


async def test_a_silent_client_is_invoked_again_when_its_time_is_up(world: World):
    """A hanging function costs its deadline, not the run."""
    world.platform.behave["exp-1/r1/client_0/a0"] = lambda _: None
    await world.submit(spec(client_timeout_ms=200))
    run = await world.finish()
    assert run.phase is Phase.FINISHED
    assert "exp-1/r1/client_0/a1" in world.platform.worked


async def test_a_client_without_attempts_left_is_given_up(world: World):
    """The round goes on with those that are left, down to min_updates."""
    for number in range(3):
        world.platform.behave[f"exp-1/r1/client_2/a{number}"] = lambda _: {"error": "no"}
    await world.submit(spec(min_updates=2, rounds_max=1))
    run = await world.finish()
    assert run.phase is Phase.FINISHED
    assert run.history[0].gave_up == 1
    assert len(run.history[0].updates) == 2


async def test_too_few_updates_fail_the_run_and_say_whose_fault_it_was(world: World):
    """The reason names the round, the numbers and the clients' last words."""
    for client in range(3):
        world.platform.behave[f"exp-1/r1/client_{client}/a0"] = lambda _: {"error": "no data"}
    await world.submit(spec(min_updates=2, attempts_max=1))
    run = await world.finish()
    assert run.phase is Phase.FAILED
    assert "round 1: 0 update(s), min_updates is 2" in run.reason
    assert "no data" in run.reason


async def test_refused_updates_are_trained_again_and_never_averaged(world: World):
    """What the aggregator refuses costs its client an attempt; the next aggregation has the new update."""
    bad = "exp-1/r1/client_1/a0"

    def refuse(activation_id: str):
        result = encode(
            AggregateResult(
                weights=None, loss=None, accuracy=None, refused=(Refused(key=bad, reason="NaN"),), seconds={}
            )
        )
        world.platform.publish("exp-1/r1/aggregate/s0/a0", "exp-1", activation_id, result=result)
        return result

    world.platform.behave["exp-1/r1/aggregate/s0/a0"] = refuse
    await world.submit(spec(rounds_max=1))
    run = await world.finish()
    assert run.phase is Phase.FINISHED
    assert bad not in run.history[0].updates
    assert "exp-1/r1/client_1/a1" in run.history[0].updates


async def test_a_platform_that_is_away_for_a_moment_costs_nothing(world: World):
    """Not sent is definite: the same attempt is sent again, within the configured wait."""
    key = "exp-1/r1/client_0/a0"
    world.platform.on_invoke[key] = [ProviderUnavailable(CLUSTER, "client_0", "not sent")]
    await world.submit(spec())
    run = await world.finish()
    assert run.phase is Phase.FINISHED
    assert world.platform.worked.count(key) == 1
    assert run.history[0].failures == 0


async def test_a_platform_that_stays_away_costs_an_attempt(world: World):
    """When the wait is over the attempt has failed; the next one follows, under its own key."""
    key = "exp-1/r1/client_0/a0"
    world.platform.on_invoke[key] = [ProviderUnavailable(CLUSTER, "client_0", "not sent")] * 9
    await world.submit(spec())
    run = await world.finish()
    assert run.phase is Phase.FINISHED
    assert key not in world.platform.worked
    assert "exp-1/r1/client_0/a1" in world.platform.worked


async def test_a_lost_answer_loses_no_work(world: World):
    """The request was taken, the answer lost: the claim in the store says so, nobody trains twice."""
    key = "exp-1/r1/client_0/a0"
    world.platform.lose_answer[key] = InvocationUnknown(CLUSTER, "client_0", "no answer")
    await world.submit(spec())
    run = await world.finish()
    assert run.phase is Phase.FINISHED
    assert world.platform.worked.count(key) == 1
    assert run.history[0].failures == 0


async def test_a_missing_function_is_deployed(world: World):
    """A client that vanished from its platform is put back and invoked, under the same key."""
    world.platform.deployed = {"fl_server_init", "fl_server_aggregator", "client_0", "client_1"}
    await world.submit(spec())
    run = await world.finish()
    assert run.phase is Phase.FINISHED
    assert world.deployments.functions == [(CLUSTER, "client_2")]
    assert run.history[0].failures == 0


@pytest.mark.parametrize("seed", range(12))
async def test_an_engine_killed_at_any_moment_costs_no_training(world: World, seed: int):
    """Engines are cut off at many moments: the next takes over, no key is worked on twice, none fails."""
    world.platform.delay_s = 0.01
    await world.submit(spec(rounds_max=3))
    for turn in range(1000):
        keeper = world.start()
        await asyncio.wait({keeper.task}, timeout=0.003 + 0.0017 * ((seed * 7 + turn * 5) % 13))
        await keeper.kill()
        if world.log.state.runs["exp-1"].ended_ms:
            break
    run = world.log.state.runs["exp-1"]
    assert run.phase is Phase.FINISHED
    assert len(run.history) == 3
    assert max(Counter(world.platform.worked).values()) == 1
    assert all(key.endswith("/a0") for key in world.platform.worked)


async def test_a_clock_that_is_behind_the_last_conductors_delays_no_deadline(world: World):
    """The log's time was an hour ahead of ours: a silent client is still noticed when its time is up."""
    world.platform.behave["exp-1/r1/client_0/a0"] = lambda _: None
    await world.log.propose(
        SubmitRun(spec=spec(client_timeout_ms=200), at_ms=SystemClock().now_ms() + 3_600_000)
    )
    run = await world.finish()
    assert run.phase is Phase.FINISHED
    assert "exp-1/r1/client_0/a1" in world.platform.worked


async def test_a_store_that_stays_away_ends_a_lone_keeper_not_the_run(world: World):
    """It gives up with the store's error; the state is kept, and the next start finishes the run."""
    await world.submit(spec())
    tools = world.tools(Notes())

    async def away(keys: object):
        raise StoreUnavailable("no answer for 60 s")

    tools.store.outcomes = away  # type: ignore[method-assign,assignment]
    keeper = world.start(tools=tools)
    with pytest.raises(StoreUnavailable):
        await keeper.task
    run = await world.finish()
    assert run.phase is Phase.FINISHED
    assert max(Counter(world.platform.worked).values()) == 1


# --- shards -------------------------------------------------------------------------------------------


def shard_key(shard: object, attempt: int = 0) -> str:
    """Of the first round."""
    return f"exp-1/r1/aggregate/{shard}/a{attempt}"


async def test_a_sharded_round_is_aggregated_once_per_shard_and_put_together(world: World):
    """Each shard is told its number, and the join is told the shards in their order."""
    tasks = {}
    invoke = world.platform.invoke

    async def noted(function, payload, *, key, timeout_s):
        tasks[key] = payload
        return await invoke(function, payload, key=key, timeout_s=timeout_s)

    world.platform.invoke = noted
    await world.submit(spec(shards=3, rounds_max=1))
    run = await world.finish()
    assert run.phase is Phase.FINISHED
    keys = [key for key in world.platform.worked if "/aggregate/" in key]
    assert sorted(keys) == [shard_key("join"), *(shard_key(f"s{n}") for n in range(3))]
    told = [(tasks[shard_key(f"s{n}")]["shard"], tasks[shard_key(f"s{n}")]["shards"]) for n in range(3)]
    assert told == [(0, 3), (1, 3), (2, 3)]
    assert [part["name"] for part in tasks[shard_key("join")]["parts"]] == [
        shard_key(f"s{n}") for n in range(3)
    ]
    assert {tasks[key]["wire"] for key in keys} == {2}
    assert run.history[0].aggregate_s == pytest.approx(0.2)  # the slowest shard's, and putting them together


async def test_a_shard_that_fails_is_invoked_again_alone(world: World):
    """The others are not made twice."""
    world.platform.behave[shard_key("s1")] = lambda _: {"error": "out of memory"}
    await world.submit(spec(shards=3, rounds_max=1))
    run = await world.finish()
    assert run.phase is Phase.FINISHED
    made = Counter(key for key in world.platform.worked if "/aggregate/" in key)
    assert made == Counter(
        [shard_key("s0"), shard_key("s1"), shard_key("s1", 1), shard_key("s2"), shard_key("join")]
    )


async def test_a_shard_that_always_fails_fails_the_run(world: World):
    """With its attempts used up, and its last words."""
    for number in range(3):
        world.platform.behave[shard_key("s1", number)] = lambda _: {"error": "out of memory"}
    await world.submit(spec(shards=2, rounds_max=1))
    run = await world.finish()
    assert run.phase is Phase.FAILED
    assert "fl_server_aggregator failed 3 time(s), the last time: out of memory" in run.reason


async def test_a_takeover_attaches_to_the_shards_that_are_running(world: World):
    """The keeper dies while shards are being made: the next one waits for them, and makes none twice."""
    await world.submit(spec(shards=4, rounds_max=1))
    first = world.start()
    await world.until(lambda: world.run_of().phase is Phase.AGGREGATING)
    world.platform.delay_s = 0.3
    await world.until(lambda: any("/aggregate/s" in key for key in world.platform.invoked))
    await first.kill()
    run = await world.finish()
    assert run.phase is Phase.FINISHED
    made = Counter(key for key in world.platform.worked if "/aggregate/" in key)
    assert made == Counter([shard_key("join"), *(shard_key(f"s{n}") for n in range(4))])


async def test_a_damaged_shard_is_made_again_before_the_weights_are_put_together(world: World):
    """The join names it, and it alone."""

    def refuse(activation_id: str):
        bad = Refused(key=shard_key("s0"), reason="its sha256 is another one")
        result = encode(AggregateResult(weights=None, loss=None, accuracy=None, refused=(bad,), seconds={}))
        world.platform.publish(shard_key("join"), "exp-1", activation_id, result=result)
        return result

    world.platform.behave[shard_key("join")] = refuse
    await world.submit(spec(shards=2, rounds_max=1))
    run = await world.finish()
    assert run.phase is Phase.FINISHED
    made = [key for key in world.platform.worked if "/aggregate/" in key]
    assert made[2:] == [shard_key("join"), shard_key("s0", 1), shard_key("join", 1)]


async def test_the_first_updates_are_added_up_while_others_are_awaited(world: World):
    """The aggregator is told the sums and the rest; the order is the clients', not that of their arrival."""
    tasks, held = {}, asyncio.Event()
    invoke, work = world.platform.invoke, world.platform._work

    async def noted(function, payload, *, key, timeout_s):
        tasks[key] = payload
        if key == "exp-1/r1/client_3/a0":
            await held.wait()
        return await invoke(function, payload, key=key, timeout_s=timeout_s)

    world.platform.invoke = noted
    await world.submit(spec(clients=4, rounds_max=1, early_updates_min=2))
    keeper = world.start()
    fold = shard_key("s0/fold")
    await world.until(lambda: any(one.updates == 3 for one in world.run_of().folds))
    assert world.run_of().phase is Phase.TRAINING
    held.set()
    run = await world.finish(keeper=keeper)
    assert run.phase is Phase.FINISHED
    assert work is not None
    folds = [key for key in world.platform.worked if "/fold/" in key]
    told = [one["client"] for key in folds for one in tasks[key]["updates"]]
    assert folds[0] == fold
    assert told == ["client_0", "client_1", "client_2"]
    last = tasks[shard_key("s0")]
    assert [one["client"] for one in last["updates"]] == ["client_3"]
    assert last["begun"] == {"sums": {"name": folds[-1], "sha256": "0" * 64, "nbytes": 8}, "samples": 30}
    assert (last["wire"], last["folds"], tasks[fold]["folds"]) == (2, False, True)
    assert len(run.history[0].updates) == 4


async def test_a_fold_that_hangs_is_done_without(world: World):
    """The shard waits for it until its time is up, and then adds everything itself."""
    world.platform.behave[shard_key("s0/fold")] = lambda _: None
    world.platform.delay_s = 0.05
    await world.submit(
        spec(clients=4, rounds_max=1, early_updates_min=1, server_timeout_ms=400, attempts_max=1)
    )
    run = await world.finish()
    assert run.phase is Phase.FINISHED
    assert len(run.history[0].updates) == 4
