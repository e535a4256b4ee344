"""What every log must do; run on the one with a disk and on the one without."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

import pytest
from structlog.testing import capture_logs

from fedkeeper.core.model import ClaimConductor, State, StopRun, Tick
from fedkeeper.errors import JournalError
from fedkeeper.replication.memory import MemoryLog
from tests.replication import toy


class LogContract:
    """Subclass it once per log and supply `opened`, an async context manager over `apply=`."""

    async def test_propose_returns_what_the_command_did(self):
        """The state after it, and by default of the core's own machine."""
        async with self.opened() as log:
            applied = await log.propose(ClaimConductor(keeper="k1", expected_epoch=0, at_ms=5))
            assert applied.state == log.state
            assert (log.state.epoch, log.state.conductor, log.state.now_ms) == (1, "k1", 5)

    async def test_a_rejection_is_a_value(self):
        """It is in the answer, and is no error of the log."""
        async with self.opened() as log:
            applied = await log.propose(Tick(epoch=9, at_ms=5))
            assert applied.rejected

    async def test_commands_are_applied_in_the_order_of_their_proposals(self):
        """Also when they are proposed without waiting for each other."""
        async with self.opened(apply=toy.apply) as log:
            answers = await asyncio.gather(*(log.propose(toy.command(n)) for n in range(1, 301)))
            assert [answer.state.now_ms for answer in answers] == list(range(1, 301))
            assert log.state == toy.after(300)

    async def test_listeners_hear_every_command_in_order(self):
        """And find the state as it was after that command."""
        heard = []
        async with self.opened(apply=toy.apply) as log:
            log.listen(lambda command, applied: heard.append((command, applied.state == log.state)))
            await asyncio.gather(*(log.propose(toy.command(n)) for n in range(1, 51)))
        assert heard == [(toy.command(n), True) for n in range(1, 51)]

    async def test_a_listener_has_heard_of_it_when_propose_returns(self):
        """So a caller finds done what listeners do."""
        heard = []
        async with self.opened(apply=toy.apply) as log:
            log.listen(lambda command, _: heard.append(command))
            await log.propose(toy.command(1))
            assert heard == [toy.command(1)]

    async def test_a_stopped_listener_hears_no_more(self):
        """Stopping twice is harmless, and the same function may listen twice."""
        heard = []

        def listener(command, _):
            heard.append(command.at_ms)

        async with self.opened(apply=toy.apply) as log:
            stop, _ = log.listen(listener), log.listen(listener)
            await log.propose(toy.command(1))
            stop()
            stop()
            await log.propose(toy.command(2))
        assert heard == [1, 1, 2]

    async def test_a_listener_that_is_stopped_by_another_is_not_called(self):
        """Not even for the command during which it was stopped."""
        heard = []
        async with self.opened(apply=toy.apply) as log:
            log.listen(lambda *_: stop())
            stop = log.listen(lambda *_: heard.append("late"))
            await log.propose(toy.command(1))
        assert heard == []

    async def test_a_listener_that_raises_hurts_nobody(self):
        """It is reported; the proposer, the log and the other listeners go on."""
        heard = []
        async with self.opened(apply=toy.apply) as log:
            log.listen(lambda *_: 1 / 0)
            log.listen(lambda command, _: heard.append(command.at_ms))
            with capture_logs() as logs:
                await log.propose(toy.command(1))
            await log.propose(toy.command(2))
            assert toy.count(log.state) == 2
        assert heard == [1, 2]
        assert [(entry["event"], entry["log_level"]) for entry in logs] == [("listener failed", "error")]

    async def test_what_cannot_be_written_is_refused_and_changes_nothing(self):
        """A wrong type would stop every later start; the log itself goes on."""
        async with self.opened(apply=toy.apply) as log:
            with pytest.raises(JournalError, match="cannot be written"):
                await log.propose(StopRun(run="m", reason=None, at_ms=1))
            assert log.state == State()
            await log.propose(toy.command(1))

    async def test_a_fault_in_the_machine_costs_one_command(self):
        """The others, also those that were proposed with it, are applied."""
        async with self.opened(apply=toy.apply) as log:
            one, poisoned, two = await asyncio.gather(
                log.propose(toy.command(1)),
                log.propose(StopRun(run="poison", reason="", at_ms=9)),
                log.propose(toy.command(2)),
                return_exceptions=True,
            )
            assert isinstance(poisoned, JournalError)
            assert isinstance(poisoned.__cause__, ZeroDivisionError)
            assert (one.state, two.state) == (toy.after(1), toy.after(2))
            assert log.state == toy.after(2)

    async def test_a_closed_log_takes_nothing(self):
        """Its state can still be read, and closing twice is harmless."""
        async with self.opened(apply=toy.apply) as log:
            await log.propose(toy.command(1))
            await log.close()
            await log.close()
            with pytest.raises(JournalError, match="closed"):
                await log.propose(toy.command(2))
            assert toy.count(log.state) == 1


class TestMemoryLog(LogContract):
    """The double."""

    @asynccontextmanager
    async def opened(self, **options):
        log = MemoryLog(**options)
        yield log
        await log.close()

    async def test_it_can_be_told_to_fail(self):
        """So that users of a log can be tested for a full disk."""
        log = MemoryLog(apply=toy.apply)
        log.failure = JournalError("the disk is full")
        with pytest.raises(JournalError, match="full"):
            await log.propose(toy.command(1))
        assert log.state == State()
