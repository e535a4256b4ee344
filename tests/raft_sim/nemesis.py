"""What goes wrong, and when: drawn from the seed, now here and now there, then nothing any more."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any

from tests.raft_sim.checks import Checks
from tests.raft_sim.hosts import Host, Outcome
from tests.raft_sim.wires import Weather, Wires
from tests.raft_sim.world import World

CALM = Weather()
Fault = Callable[[], None]


class Nemesis:
    """Plans faults; `make_peace` mends everything."""

    def __init__(
        self,
        world: World,
        wires: Wires,
        checks: Checks,
        hosts: Mapping[str, Host],
        founders: Sequence[str],
        *,
        pace: float = 1.0,
        only: Collection[str] = (),
    ) -> None:
        """`pace`: of the keepers' timing. With it all that takes time here is multiplied.

        `only`: names of the faults that may happen; none: all of them.
        """
        self.world = world
        self._pace = pace
        self.checks = checks
        self.wires = wires
        self.hosts = hosts
        self.founders = tuple(founders)
        self.peace = False
        self._chance = world.chance("nemesis")
        self.wires.weather = self._climate = self._draw_climate()
        self._every_s = pace * self._chance.choice((0.12, 0.3, 0.7))
        for host in self.hosts.values():
            host.when_gone = partial(self._restart_later, host)
        faults: Sequence[tuple[Fault, float]] = (
            (self._kill, 3),
            (self._kill_all, 0.4),
            (self._partition, 3),
            (self._heal, 2),
            (self._pause, 2),
            (self._drift, 0.5),
            (self._storm, 1),
            (self._transfer, 1),
            (self._come_back, 0.3),
            (self._change_members, 1.5),
            (self._wipe, 0.7),
            (self._wipe_and_behead, 0.5),
            (self._fail_disk, 0.7),
        )
        # Each world has its own taste: some faults often, some never.
        self._faults = [
            (fault, weight * self._chance.choice((0.0, 0.5, 1.0, 1.0, 4.0))) for fault, weight in faults
        ]
        if only:
            self._faults = [(fault, 1.0) for fault, _ in faults if fault.__name__.strip("_") in only]

    def start(self) -> None:
        """From soon on."""
        self._after(self._chance.uniform(0.3, 1.0), self._next)

    def make_peace(self) -> None:
        """Everything works again from now on."""
        self.world.tell("--- peace")
        self.peace = True
        self.wires.weather = CALM
        self.wires.heal()
        for host in self.hosts.values():
            host.machine.drift(1.0)
            host.mend_disk()
            host.platter.disarm()
            if host.machine.paused:
                host.machine.resume()
            if not host.machine.running and host.wanted:
                host.start()
        for host in self.members():
            if (
                not host.wanted and not host.machine.running
            ):  # it heard of its removal, and not that it was taken in again
                host.wipe()
                host.wanted = True
                host.start()

    def members(self) -> list[Host]:
        """Who is in the cluster, as its leader of the highest term says; all founders while nobody leads."""
        leading = [host.status for host in self.hosts.values() if host.leads()]
        if not (statuses := [status for status in leading if status is not None]):
            return [self.hosts[name] for name in self.founders]
        newest = max(statuses, key=lambda status: status.term)
        return [self.hosts[member.name] for member in newest.members]

    def _next(self) -> None:
        if self.peace:
            return
        if any(weight for _, weight in self._faults):
            faults, weights = zip(*self._faults, strict=True)
            self._chance.choices(faults, weights)[0]()
        self.world.after(self._every_s * self._chance.expovariate(1.0), self._next)

    def _after(self, delay_s: float, event: Callable[[], object]) -> None:
        self.world.after(self._pace * delay_s, event)

    # --- processes -------------------------------------------------------------------------------

    def _victim(self) -> Host:
        """The leader as often as not."""
        leading = [host for host in self.hosts.values() if host.leads()]
        if leading and self._chance.random() < 0.5:
            return self._chance.choice(leading)
        return self._chance.choice([host for host in self.hosts.values() if host.wanted])

    def _kill(self) -> None:
        host = self._victim()
        if host.machine.running:
            kind = self._chance.choice(("kill", "power", "power in the middle", "kill in the middle"))
            if kind.endswith("middle"):
                host.platter.arm(self._chance.randint(1, 8), power=kind.startswith("power"))
            else:
                host.kill(power=kind == "power")

    def _kill_all(self) -> None:
        power = self._chance.random() < 0.5
        for host in self.hosts.values():
            if host.machine.running:
                host.kill(power=power)

    def _restart_later(self, host: Host) -> None:
        delay_s = 0.1 if self.peace else self._chance.choice((0.01, 0.1, 0.5, 1.5))
        self._after(delay_s, lambda: self._restart(host))

    def _restart(self, host: Host) -> None:
        if host.wanted and not host.machine.running:
            host.start()

    def _pause(self) -> None:
        host = self._victim()
        if host.machine.running and not host.machine.paused:
            self.world.tell(f"{host.name}: paused")
            host.machine.pause()
            self.checks.seen["pauses"] += 1
            self._after(self._chance.choice((0.05, 0.3, 0.6, 1.5)), lambda: self._resume(host))

    def _resume(self, host: Host) -> None:
        if host.machine.running and host.machine.paused:
            self.world.tell(f"{host.name}: goes on")
            host.machine.resume()

    def _drift(self) -> None:
        self._victim().machine.drift(self._chance.choice((0.5, 0.8, 0.97, 1.0, 1.03, 1.25, 2.0)))

    # --- disks -----------------------------------------------------------------------------------

    def _may_be_wiped(self, host: Host) -> bool:
        """One folder at a time: nobody's next is lost before the last one is whole again."""
        views = [one.node.membership.members if one.node else one.knew for one in self.hosts.values()]
        return (
            all(one.whole for one in self.hosts.values())
            and host.status is not None
            and host.status.commit_index >= 3
            # Of fewer, the others are no majority; one that is down may come back with a removal.
            and min(len(view) for view in views if view) >= 3
        )

    def _wipe(self) -> None:
        host = self._victim()
        if self._may_be_wiped(host):
            host.kill()
            host.wipe()

    def _wipe_and_behead(self) -> None:
        """One is cut off for a while; another is wiped; when that comes back, the leader goes."""
        leaders = [host for host in self.hosts.values() if host.leads()]
        others = [host for host in self.hosts.values() if host.node is not None and host not in leaders]
        if len(leaders) != 1 or len(others) < 2:
            return
        cut_off, wiped = self._chance.sample(others, 2)
        self.world.tell(f"{cut_off.name} is cut off, {wiped.name} is wiped, {leaders[0].name} will go")
        cut = [(cut_off.name, name) for name in self.hosts if name != cut_off.name]
        self.wires.partition([*cut, *((other, one) for one, other in cut)])
        draw = self._chance.choice

        def wipe() -> None:
            if not self.peace and self._may_be_wiped(wiped):
                wiped.kill()
                wiped.wipe()
                self.wires.spies.append(welcomed)
                wiped.start()

        def welcomed(sender: str, target: str, message: Mapping[str, Any]) -> None:
            if target == wiped.name and message["type"] == "welcome":
                self.wires.spies.remove(welcomed)
                self._after(draw((0.01, 0.1, 0.3)), lambda: behead(self.hosts[sender]))

        def behead(leader: Host) -> None:
            if not self.peace:
                leader.kill(power=self._chance.random() < 0.3)
                self._heal()

        self._after(draw((0.1, 0.3, 0.6)), wipe)

    def _fail_disk(self) -> None:
        host = self._victim()
        fault = self._chance.choice(("full", "full soon", "read-only", "fsync fails"))
        self.world.tell(f"{host.name}: its disk: {fault}")
        host.fail_disk(fault)

        def mend() -> None:
            if not self.peace:
                host.mend_disk()
                host.kill()

        self._after(self._chance.choice((0.3, 1.5)), mend)

    # --- the network -----------------------------------------------------------------------------

    def _partition(self) -> None:
        names = [name for name, host in self.hosts.items() if host.wanted]
        if len(names) < 2:
            return
        self._chance.shuffle(names)
        victim = self._victim().name
        kind = self._chance.choice(("halves", "alone", "deaf", "mute", "one way", "bridge"))
        size = self._chance.randint(1, len(names) - 1)
        one, other = set(names[:size]), set(names[size:])
        match kind:
            case "halves":
                cut = {(a, b) for a in one for b in other} | {(b, a) for a in one for b in other}
            case "alone":
                cut = {(victim, b) for b in names} | {(b, victim) for b in names}
            case "deaf":
                cut = {(b, victim) for b in names}
            case "mute":
                cut = {(victim, b) for b in names}
            case "one way":
                cut = {(a, b) for a in one for b in other}
            case _:  # everybody sees the first, and the halves do not see each other
                cut = {(a, b) for a in one - {names[0]} for b in other}
                cut |= {(b, a) for a, b in cut}
        cut = {(a, b) for a, b in cut if a != b}
        self.world.tell(f"partition ({kind}): {' '.join(f'{a}>{b}' for a, b in sorted(cut))}")
        self.wires.partition(sorted(cut))
        self.checks.seen["partitions"] += 1
        if self._chance.random() < 0.8:
            self._after(self._chance.choice((0.1, 0.4, 1.0, 2.5)), self._heal)

    def _heal(self) -> None:
        self.world.tell("the partition heals")
        self.wires.heal()

    def _storm(self) -> None:
        self.wires.weather = self._draw_climate()
        self._after(self._chance.uniform(0.3, 2.0), self._calm)

    def _calm(self) -> None:
        if not self.peace:
            self.wires.weather = self._climate

    def _draw_climate(self) -> Weather:
        draw = self._chance.choice
        return Weather(
            delay_s=draw((0.0002, 0.001, 0.005, 0.03)),
            jitter=draw((0.2, 1.0, 3.0)),
            read_s=draw((0.0, 0.001, 0.01)),
            drop=draw((0.0, 0.0, 0.01, 0.1)),
            break_per_s=draw((0.0, 0.0, 0.05, 0.5)),
            rude=draw((0.0, 0.0, 0.05, 0.3)),
            late_s=self._pace * draw((0.0, 0.1, 2.0)),
        )

    # --- leadership and members ------------------------------------------------------------------

    def _transfer(self) -> None:
        for host in self.hosts.values():
            if host.leads():
                to = self._chance.choice(list(self.hosts))
                self.world.tell(f"{host.name}: asked to have {to} lead")
                host.transfer(to, partial(self._transferred, to))
                return

    def _come_back(self) -> None:
        """A leader loses the lead while half a majority still follows it, and gets it again."""
        leader = next((host for host in self.hosts.values() if host.leads()), None)
        if leader is None:
            return
        others = [name for name, host in self.hosts.items() if host.wanted and host is not leader]
        self._chance.shuffle(others)
        away = others[: (len(others) + 1) // 2]
        stay = [leader.name, *others[len(away) :]]
        self.world.tell(f"{leader.name} is left alone with {stay[1:]}, and will lead again")
        self.wires.partition(
            [pair for one in away for other in stay for pair in ((one, other), (other, one))]
        )

        def transfer() -> None:
            for host in self.hosts.values():
                if host.leads() and host is not leader and not self.peace:
                    host.transfer(leader.name, partial(self._transferred, leader.name))

        self._after(0.8, self._heal)
        for wait_s in (0.9, 1.0, 1.2, 1.5):
            self._after(wait_s, transfer)

    def _transferred(self, to: str, outcome: Outcome) -> None:
        self.checks.seen["transfers"] += outcome is None
        self.world.tell(f"{to} was to lead: {'done' if outcome is None else outcome}")

    def _change_members(self) -> None:
        """Add a host that is not in, or remove one that is; sometimes two at once, which must not be."""
        leading = [host for host in self.hosts.values() if host.leads()]
        if not leading:
            return
        leader = self._chance.choice(leading)
        for _ in range(self._chance.choice((1, 1, 1, 2))):
            status = leader.status
            if status is None:
                return
            inside = [member.name for member in status.members]
            outside = [name for name in self.hosts if name not in inside]
            if outside and (len(inside) < 3 or self._chance.random() < 0.5):
                self._add(leader, self.hosts[self._chance.choice(outside)])
            elif len(inside) > 1:
                self._remove(leader, self.hosts[self._chance.choice(inside)])

    def _add(self, leader: Host, host: Host) -> None:
        if not host.wanted:
            host.kill()
            host.wipe()
            # Its config names the members that there are: founders that were all removed begin nothing new.
            assert leader.node is not None
            host.configured = dict.fromkeys([host.name, *leader.node.membership.members], "")
            host.wanted = True
            if self._chance.random() < 0.9:
                host.start()
            else:  # it will come late
                self._after(self._chance.uniform(0.3, 1.5), lambda: self._restart(host))
        self.world.tell(f"{leader.name}: asked to take {host.name} in")
        leader.add(host.name, lambda outcome: self._was_changed(f"{host.name} in", outcome))

    def _remove(self, leader: Host, host: Host) -> None:
        def removed(outcome: Outcome) -> None:
            self._was_changed(f"{host.name} out", outcome)
            if outcome is None:
                host.wanted, host.whole = False, True

        self.world.tell(f"{leader.name}: asked to let {host.name} go")
        leader.remove(host.name, removed)

    def _was_changed(self, what: str, outcome: Outcome) -> None:
        self.checks.seen["changes of the members"] += outcome is None
        self.world.tell(f"members, {what}: {'done' if outcome is None else outcome}")
