"""What people see: one line per event, on a terminal with the live state below; a table at the end."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import Final

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from fedkeeper import logs
from fedkeeper.cli.progress import View, best_accuracy, number, outcome, parts, span
from fedkeeper.cli.tables import table
from fedkeeper.core.model import Phase, Run
from fedkeeper.deployment import Line, LineState
from fedkeeper.errors import FedKeeperError

STYLES: Final = {
    LineState.CREATED: "green",
    LineState.UPDATED: "green",
    LineState.REMOVED: "green",
    LineState.FAILED: "bold red",
    LineState.OUTDATED: "yellow",
}
MB: Final = 1024 * 1024


class _Console(Console):
    """Rich ends the process when nobody reads any more; a run goes on."""

    def on_broken_pipe(self) -> None:
        """Let `Screen` hear of it."""
        raise BrokenPipeError


class Screen:
    """Prints; never raises for the terminal's sake, as a closed pipe must not end a run."""

    def __init__(self, console: Console | None = None) -> None:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(AttributeError, ValueError):
                stream.reconfigure(errors="replace")  # type: ignore[union-attr]
        self._console = console or _Console(highlight=False, markup=False, emoji=False)
        self._broken = False

    @property
    def is_terminal(self) -> bool:
        """Whether somebody is looking."""
        return self._console.is_terminal

    def line(self, text: str, style: str = "") -> None:
        """One line, without secrets and control characters."""
        self._print(Text(clean(text), style=style))

    def text(self, text: str) -> None:
        """For programs: as it is but for secrets, on stdout.

        FedKeeperError if it cannot be written: whoever reads it must not take nothing for the answer.
        """
        try:
            self._console.file.write(f"{logs.redact(text)}\n")
            self._console.file.flush()
        except OSError as exc:
            _forget_stdout()
            self._broken = True
            raise FedKeeperError(f"the answer cannot be written to stdout: {exc.strerror or exc}") from exc
        if self._broken:  # by an earlier line: stdout leads nowhere since
            raise FedKeeperError("the answer cannot be written to stdout: nobody reads it any more")

    def warning(self, text: str) -> None:
        """One line on stderr."""
        with contextlib.suppress(OSError):
            sys.stderr.write(f"Warning: {clean(text)}\n")
            sys.stderr.flush()

    def deployment(self, line: Line) -> None:
        """A function's line, once its state is final, or when it has to wait."""
        if line.state is LineState.WORKING and not line.problem:
            return
        text = f"{line.state:<10}{line.cluster}/{line.function}"
        if line.seconds >= 0.05:
            text += f"  {span(line.seconds)}"
        if line.problem:
            text += f": {line.problem}"
        self.line(text, STYLES.get(line.state, ""))

    def found(self, line: Line) -> None:
        """A function as its platform describes it, or why it does not."""
        if line.deployed is None:
            self.deployment(line)
            return
        problem = f": {line.problem}" if line.problem else ""
        where = f"{line.deployed.state:<10}{line.cluster}/{line.function}"
        self.line(f"{where}  version {line.deployed.version}  {line.url}{problem}")

    @contextlib.contextmanager
    def deploying(
        self, verb: str, total: int, *, hidden: Collection[LineState] = ()
    ) -> Iterator[Callable[[Line], None]]:
        """Lines of functions as they come, but for `hidden` ones; on a terminal with a count below."""
        done = 0

        def show(line: Line) -> None:
            nonlocal done
            done += line.state is not LineState.WORKING
            if line.state not in hidden:
                self.deployment(line)

        def below() -> RenderableType:
            return Text(f"{verb}: {done} of {total} functions", style="cyan")

        with self.live(below):
            yield show

    @contextlib.contextmanager
    def live(self, below: Callable[[], RenderableType]) -> Iterator[None]:
        """Keep `below` under the lines while the block runs, if this is a terminal."""
        if not self.is_terminal:
            yield
            return
        with Live(get_renderable=below, console=self._console, refresh_per_second=4, transient=True):
            yield

    def summary(self, run: Run, *, folder: Path, model: Path | None) -> None:
        """The table at the end, and where everything is."""
        self._print(run_table(run))
        if run.history:
            self._print(time_table(run))
        self.line(outcome(run))
        self.line(f"logs:  {folder}")
        if model is not None:
            self.line(f"model: {model}")

    def show(self, what: RenderableType) -> None:
        """A table."""
        self._print(what)

    def hints(self, lines: Iterable[Line]) -> None:
        """What to try, once each."""
        for hint in dict.fromkeys(line.hint for line in lines if line.hint):
            self.line(f"hint: {hint}")

    def _print(self, what: RenderableType) -> None:
        if self._broken:
            return
        try:
            self._console.print(what, soft_wrap=isinstance(what, Text))
        except OSError:  # a closed pipe, or a full disk behind a redirection
            self._broken = True
            _forget_stdout()


def _forget_stdout() -> None:
    """Point stdout nowhere, or Python fails once more when it flushes at its end."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def clean(text: str) -> str:
    """`text` as it may be printed: what a function wrote could command the terminal."""
    return "".join(char if char.isprintable() else " " for char in logs.redact(text))


def now_ms() -> int:
    """Unix time in milliseconds."""
    return time.time_ns() // 1_000_000


def live_view(view: View) -> RenderableType:
    """A bar and two lines that fit 80 columns: where the run is."""
    if view.phase is Phase.DEPLOYING:
        return Text(f"deploying the functions: {span(view.elapsed_s)}", style="bold cyan")
    first = Table.grid(padding=(0, 2))
    target = "" if view.target is None else f" (target {number(view.target)})"
    first.add_row(
        Text(f"round {view.round}/{view.rounds_max} {view.phase}", style="bold cyan"),
        ProgressBar(total=1.0, completed=view.fraction, width=16),
        Text(f"accuracy {number(view.accuracy)}{target}", no_wrap=True),
    )
    return Group(first, Text(status_line(view), no_wrap=True, overflow="ellipsis"))


def status_line(view: View) -> str:
    """The clients of the round, and the time."""
    clients = f"{view.done}/{view.chosen} clients done, {view.running} running, {view.failed} failed"
    if view.waiting:
        clients += f", {view.waiting} waiting"
    if view.gave_up:
        clients += f", {view.gave_up} gave up"
    left = "" if view.left_s is None else f", at most {span(view.left_s)} left"
    return f"{clients} | {span(view.elapsed_s)}{left}"


def run_table(run: Run) -> Table:
    """The figures of a run."""
    last = run.history[-1] if run.history else None
    failed = sum(record.failures for record in run.history)
    gave_up = sum(record.gave_up for record in run.history)
    sent = sum(record.update_bytes for record in run.history)
    figures = table(f"run {run.spec.run}")
    figures.add_column("what")
    figures.add_column("value", justify="right")
    figures.add_row("rounds", f"{len(run.history)} of at most {run.spec.rounds_max}")
    figures.add_row("accuracy, last", number(last.accuracy if last else None))
    figures.add_row("accuracy, best", number(best_accuracy(run)))
    figures.add_row("loss, last", number(last.loss if last else None))
    figures.add_row("updates averaged", str(sum(len(record.updates) for record in run.history)))
    figures.add_row("bytes of updates", f"{sent / MB:.1f} MB")
    figures.add_row("failed attempts", str(failed))
    figures.add_row("clients that gave up", str(gave_up))
    figures.add_row(
        "wall time", span(max(0, run.ended_ms - run.submitted_ms) / 1000 if run.ended_ms else None)
    )
    return figures


def time_table(run: Run) -> Table:
    """Where the time of the rounds went."""
    figures = table("wall time of the rounds, by part")
    figures.add_column("part")
    figures.add_column("in all", justify="right")
    figures.add_column("a round", justify="right")
    for part in parts(run):
        figures.add_row(part.name, f"{part.total_s:.2f} s", f"{part.mean_s:.2f} s")
    return figures
