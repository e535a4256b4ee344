"""What is known of the keepers, and where the conductor belongs."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedkeeper.core.conducting import KEEPERS_MAX, LATENCIES_MAX, Placement, Policy, choose, rest_ms
from fedkeeper.core.machine import apply
from fedkeeper.core.model import (
    ClaimConductor,
    KeeperInfo,
    KeeperLost,
    KeeperMeasured,
    KeeperRemoved,
    KeeperStarted,
    State,
)
from tests.strategies import values

NEAR = {"keeper/k1": 1.0, "keeper/k2": 1.0, "keeper/k3": 1.0, "cluster/a": 2.0, "cluster/b": 4.0}


def keeper(name: str, latencies: dict[str, float] | None = None, **others: object) -> KeeperInfo:
    """One that has measured, if it says how far it is."""
    own = {to: ms for to, ms in (latencies or {}).items() if to != f"keeper/{name}"}
    given = {"measured": latencies is not None, "latencies": own, **others}
    return KeeperInfo(name=name, api="http://k", version=2, **given)


def cluster(*keepers: KeeperInfo, conductor: str = "", **others: object) -> State:
    """Of these, one of them conducting since 1000 ms."""
    known = {one.name: one for one in keepers}
    return State(keepers=known, conductor=conductor, conductor_since_ms=1_000, **others)


def far(by: float) -> dict[str, float]:
    """Everything that much farther than NEAR."""
    return {name: ms * by for name, ms in NEAR.items()}


def without(*names: str) -> dict[str, float]:
    """NEAR, but for these."""
    return {name: ms for name, ms in NEAR.items() if name not in names}


THREE = (keeper("k1", NEAR), keeper("k2", NEAR), keeper("k3", NEAR))
LOST = keeper("k2", NEAR, alive=False, reason="not heard")
RAFT, LATENCY = Policy(), Policy(placement=Placement.LATENCY)
TURNS = Policy(placement=Placement.ROTATE, every_rounds=2)
TIMES = Policy(placement=Placement.ROTATE, every_rounds=0, every_s=10)


@pytest.mark.parametrize(
    ("state", "policy", "leader", "choice"),
    [
        # raft
        (cluster(*THREE), RAFT, "k1", ("k1", "k1 leads")),
        (cluster(*THREE, conductor="k1"), RAFT, "k1", None),
        (cluster(*THREE, conductor="k1"), RAFT, "k2", ("k2", "k2 leads")),
        (cluster(*THREE, conductor="k1", pinned=True), RAFT, "k2", None),
        (
            cluster(THREE[0], LOST, THREE[2], conductor="k2", pinned=True),
            RAFT,
            "k1",
            ("k1", "k1 leads; k2 is lost: not heard"),
        ),
        (cluster(*THREE, conductor="k9"), RAFT, "k1", ("k1", "k1 leads; k9 is no keeper any more")),
        (State(), RAFT, "k1", ("k1", "k1 leads")),
        (cluster(THREE[0], LOST, conductor="k2"), RAFT, "k2", None),  # it leads, so it lives
        # rotate
        (cluster(*THREE), TURNS, "k2", ("k2", "k2 leads, so the rotation begins with it")),
        (cluster(*THREE, conductor="k2", conductor_rounds=1), TURNS, "k1", None),
        (
            cluster(*THREE, conductor="k2", conductor_rounds=2),
            TURNS,
            "k1",
            ("k3", "k3 follows k2, which conducted 2 round(s), its turn is 2"),
        ),
        (
            cluster(*THREE, conductor="k3", conductor_rounds=3),
            TURNS,
            "k1",
            ("k1", "k1 follows k3, which conducted 3 round(s), its turn is 2"),
        ),
        (cluster(*THREE, conductor="k2", conductor_rounds=2, pinned=True), TURNS, "k1", None),
        (cluster(THREE[0], conductor="k1", conductor_rounds=9), TURNS, "k1", None),
        (
            cluster(THREE[0], LOST, THREE[2], conductor="k1", conductor_rounds=2),
            TURNS,
            "k1",
            ("k3", "k3 follows k1, which conducted 2 round(s), its turn is 2"),
        ),
        (
            cluster(THREE[0], LOST, THREE[2], conductor="k2"),
            TURNS,
            "k1",
            ("k3", "k3 follows k2; k2 is lost: not heard"),
        ),
        (cluster(*THREE, conductor="k1"), TIMES, "k1", None),  # now is 10999 ms
        (
            cluster(*THREE, conductor="k1", now_ms=0),
            replace(TIMES, every_s=9.999),
            "k1",
            ("k2", "k2 follows k1, which conducted 10.0 s, its turn is 9.999 s"),
        ),
        # latency
        (
            cluster(keeper("k1"), keeper("k2")),
            LATENCY,
            "k2",
            ("k2", "k2 leads, and conducts until another keeper is measured to be nearer"),
        ),
        (cluster(keeper("k1"), keeper("k2"), conductor="k1"), LATENCY, "k2", None),
        (
            cluster(keeper("k1", far(2)), keeper("k2", NEAR), keeper("k3", far(3)), conductor="k1"),
            LATENCY,
            "k3",
            ("k2", "k2 is nearest: 1.0 ms to keepers, 3.0 ms to clusters; k1 has 2.0 and 6.0"),
        ),
        (cluster(keeper("k1", far(1.4)), *THREE[1:], conductor="k1"), LATENCY, "k1", None),
        (
            cluster(keeper("k1", far(1.5)), *THREE[1:], conductor="k1"),
            LATENCY,
            "k1",
            ("k2", "k2 is nearest: 1.0 ms to keepers, 3.0 ms to clusters; k1 has 1.5 and 4.5"),
        ),
        (
            cluster(keeper("k1", without("cluster/b")), keeper("k2", far(9)), conductor="k1"),
            LATENCY,
            "k1",
            (
                "k2",
                "k2 is nearest: 9.0 ms to keepers, 27.0 ms to clusters; k1 does not reach every cluster and a"
                " majority of the keepers",
            ),
        ),
        (
            cluster(keeper("k1", without("keeper/k2", "keeper/k3")), *THREE[1:], conductor="k1"),
            LATENCY,
            "k1",
            (
                "k2",
                "k2 is nearest: 1.0 ms to keepers, 3.0 ms to clusters; k1 does not reach every cluster and a"
                " majority of the keepers",
            ),
        ),
        # Nobody reaches b: that says nothing about the keepers.
        (
            cluster(keeper("k1", without("cluster/b")), keeper("k2", without("cluster/b")), conductor="k1"),
            LATENCY,
            "k1",
            None,
        ),
        (
            cluster(keeper("k1"), *THREE[1:], conductor="k1"),
            LATENCY,
            "k1",
            None,
        ),  # it will have measured soon
        (
            cluster(keeper("k1"), LOST, keeper("k3", NEAR), conductor="k2"),
            LATENCY,
            "k1",
            (
                "k3",
                "k3 is nearest: 1.0 ms to keepers, 3.0 ms to clusters; k1 has not measured yet; k2 is lost:"
                " not heard",
            ),
        ),
        (cluster(keeper("k1", {}), conductor="k1"), LATENCY, "k1", None),
    ],
)
def test_the_conductor_belongs(state, policy, leader, choice):
    """Where the policy says, with the reason; None leaves it as it is."""
    found = choose(state, policy, leader=leader, now_ms=10_999)
    assert (found and (found.keeper, found.why)) == choice


@given(
    state=values(State),
    names=st.lists(st.sampled_from(("k1", "k2", "k3")), unique=True),
    conductor=st.sampled_from(("", "k1", "k2", "k9")),
    placement=st.sampled_from(Placement),
)
def test_a_choice_is_a_living_keeper_and_is_kept(state, names, conductor, placement):
    """Once claimed, it is not moved again at once: or the conductor would wander for ever."""
    infos = list(state.keepers.values())
    known = {name: replace(infos[n % len(infos)], name=name) for n, name in enumerate(names) if infos}
    state = replace(state, keepers=known, conductor=conductor, pinned=False)
    policy = Policy(placement=placement)
    choice = choose(state, policy, leader="k1", now_ms=state.now_ms)
    if choice is None:
        assert conductor == "k1" or (conductor in known and known[conductor].alive)
        return
    assert choice.keeper == "k1" or known[choice.keeper].alive
    assert choice.keeper != conductor
    claim = ClaimConductor(keeper=choice.keeper, expected_epoch=state.epoch, why=choice.why, at_ms=0)
    claimed = apply(state, claim).state
    assert (claimed.conductor, claimed.conductor_why, claimed.conductor_rounds) == (
        choice.keeper,
        choice.why,
        0,
    )
    assert choose(claimed, policy, leader="k1", now_ms=claimed.now_ms) is None


ONE = apply(State(), KeeperStarted(keeper="k1", api="http://k", version=2, at_ms=7)).state


@pytest.mark.parametrize(
    ("command", "rejected"),
    [
        (KeeperMeasured(keeper="k2", latencies={}, at_ms=1), "no keeper 'k2' has started here"),
        (KeeperLost(keeper="k2", reason="", at_ms=1), "no keeper 'k2' has started here"),
        (KeeperRemoved(keeper="k2", at_ms=1), "no keeper 'k2' has started here"),
        (KeeperMeasured(keeper="k1", latencies={"keeper/k2": math.nan}, at_ms=1), "no number of 0 or more"),
        (KeeperMeasured(keeper="k1", latencies={"keeper/k2": math.inf}, at_ms=1), "no number of 0 or more"),
        (KeeperMeasured(keeper="k1", latencies={"keeper/k2": -1}, at_ms=1), "no number of 0 or more"),
        (
            KeeperMeasured(keeper="k1", latencies={f"c{n}": 1 for n in range(LATENCIES_MAX + 1)}, at_ms=1),
            "too many latencies",
        ),
        (KeeperStarted(keeper="", api="", version=2, at_ms=1), "name is empty"),
        (KeeperStarted(keeper="k2", api="x" * 513, version=2, at_ms=1), "too long"),
    ],
)
def test_what_does_not_fit_changes_nothing(command, rejected):
    """Every size has its limit, and only a keeper that said that it is there is known."""
    applied = apply(ONE, command)
    assert rejected in applied.rejected
    assert applied.state == ONE


def test_a_keepers_life():
    """Started, measured, lost, back again by a word of it, removed; no clock of it moves the state's."""
    measured = apply(ONE, KeeperMeasured(keeper="k1", latencies={"cluster/a": 1.5}, at_ms=9)).state
    assert measured.keepers["k1"] == replace(
        ONE.keepers["k1"], measured=True, latencies={"cluster/a": 1.5}, seen_ms=9
    )
    lost = apply(measured, KeeperLost(keeper="k1", reason="not heard", at_ms=99)).state
    assert lost.keepers["k1"] == replace(measured.keepers["k1"], alive=False, reason="not heard")
    assert apply(lost, KeeperLost(keeper="k1", reason="still", at_ms=99)).rejected
    back = apply(lost, KeeperMeasured(keeper="k1", latencies={"cluster/a": 1.5}, at_ms=9)).state
    assert back == measured
    again = apply(lost, KeeperStarted(keeper="k1", api="http://other", version=3, at_ms=20)).state
    assert again.keepers["k1"] == KeeperInfo(
        name="k1", api="http://other", version=3, started_ms=20, seen_ms=20
    )
    gone = apply(again, KeeperRemoved(keeper="k1", at_ms=21)).state
    assert gone == State()


def test_no_more_keepers_are_known_than_could_be():
    """One that is removed makes room."""
    state = State()
    for number in range(KEEPERS_MAX):
        state = apply(state, KeeperStarted(keeper=f"k{number}", api="", version=2, at_ms=1)).state
    one_more = KeeperStarted(keeper="more", api="", version=2, at_ms=1)
    assert apply(state, one_more).rejected
    assert not apply(state, replace(one_more, keeper="k3")).rejected
    assert not apply(apply(state, KeeperRemoved(keeper="k3", at_ms=1)).state, one_more).rejected


def test_the_same_keeper_may_claim_again():
    """A new epoch, from which its rounds and its time count anew."""
    state = cluster(*THREE, conductor="k1", epoch=4, conductor_rounds=3, pinned=True)
    claim = ClaimConductor(
        keeper="k1", expected_epoch=4, why="it was started again", pinned=True, at_ms=5_000
    )
    after = apply(state, claim).state
    assert (after.epoch, after.conductor, after.conductor_rounds) == (5, "k1", 0)
    assert (after.conductor_since_ms, after.pinned, after.conductor_why) == (5_000, True, claim.why)
    assert apply(after, claim).rejected


def test_a_keeper_that_could_not_conduct_is_left_alone_for_a_while():
    """It says so with the claim of the next one; in a row it counts up, until it has committed a round."""
    state = cluster(*THREE, conductor="k1", epoch=1)
    gave = ClaimConductor(
        keeper="k2", expected_epoch=1, why="k1 cannot", unfit="no store", unfit_ms=500, at_ms=2_000
    )
    state = apply(state, gave).state
    assert (state.keepers["k1"].unfit, state.keepers["k1"].unfit_until_ms) == ("no store", 2_500)
    assert (rest_ms(state, "k1", 2_400), rest_ms(state, "k1", 2_600), rest_ms(state, "k2", 2_400)) == (
        100,
        0,
        0,
    )
    assert choose(state, RAFT, leader="k1", now_ms=2_400) is None
    back = choose(state, RAFT, leader="k1", now_ms=2_500)
    assert back is not None
    assert back.keeper == "k1"
    state = apply(state, ClaimConductor(keeper="k1", expected_epoch=2, at_ms=2_500)).state
    again = replace(gave, expected_epoch=3, at_ms=2_600)
    assert apply(state, again).state.keepers["k1"].unfit_times == 2
    worked = replace(state, conductor_rounds=1)
    assert apply(worked, again).state.keepers["k1"].unfit_times == 1
    well = apply(worked, ClaimConductor(keeper="k2", expected_epoch=3, at_ms=2_600)).state
    assert well.keepers["k1"] == THREE[0]


def test_a_keeper_that_could_not_conduct_may_be_asked_to_or_started_again():
    """By hand it tries at once; a new life begins with nothing; its word that it is up changes nothing."""
    unfit = keeper("k1", unfit="no store", unfit_times=3, unfit_until_ms=9_000, started_ms=7)
    state = cluster(unfit, *THREE[1:], conductor="k2", epoch=1)
    asked = ClaimConductor(keeper="k1", expected_epoch=1, pinned=True, at_ms=2_000)
    assert rest_ms(apply(state, asked).state, "k1", 2_000) == 0
    same = KeeperStarted(keeper="k1", api="http://k", version=2, at_ms=7)
    assert rest_ms(apply(state, same).state, "k1", 2_000) == 7_000
    assert rest_ms(apply(state, replace(same, at_ms=8)).state, "k1", 2_000) == 0


def test_when_nobody_can_conduct_it_stays_where_it_is():
    """Whoever conducts then tries again itself; if it is lost, somebody else does."""
    ones = [keeper(f"k{n}", NEAR, unfit="no store", unfit_times=1, unfit_until_ms=9_000) for n in (1, 2, 3)]
    for policy in (RAFT, LATENCY, TURNS):
        assert choose(cluster(*ones, conductor="k2"), policy, leader="k1", now_ms=5_000) is None
    lost = cluster(ones[0], replace(ones[1], alive=False), ones[2], conductor="k2")
    choice = choose(lost, RAFT, leader="k1", now_ms=5_000)
    assert choice is not None
    assert choice.keeper == "k1"


def test_a_leader_that_cannot_conduct_has_another_one_do_it():
    """And says why."""
    unfit = keeper("k1", NEAR, unfit="no store", unfit_times=1, unfit_until_ms=9_000)
    choice = choose(cluster(unfit, LOST, THREE[2], conductor="k2"), RAFT, leader="k1", now_ms=5_000)
    assert choice is not None
    assert (choice.keeper, choice.why) == (
        "k3",
        "k1 leads, but cannot conduct: no store; k2 is lost: not heard",
    )
