"""What a run leaves behind for people and their tools, in `logs/<run>/` and `params/`. Never a secret.

Rounds are written whole from the replicated history, activations are merged by key, so a resumed run
neither loses nor doubles a row. A full disk is said once and never stops a run: the next write that
succeeds is complete again.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import msgspec
import yaml

from fedkeeper import logs
from fedkeeper.core.model import Attempt, Kind, RoundRecord, Run
from fedkeeper.providers.base import Activation

REASON_CHARS_MAX: Final = 500
FILE_NAME_CHARS_MAX: Final = 200
NUMBERED_CLIENT: Final = re.compile(r"client_(\d+)")

_DUMPER: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)  # of libyaml, where it was built with it


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundRow:
    """One line of rounds.csv; times in seconds, `bytes` of the updates, loss and accuracy on the test set.

    invoke_s: until every platform had taken its invocations; train_s: from there to the last update;
    aggregate_s, evaluate_s: as the aggregator measured them; total_s: the whole round by the keeper's clock.
    """

    round: int
    loss: float | None
    accuracy: float | None
    train_loss: float | None
    invoke_s: float
    train_s: float
    aggregate_s: float
    evaluate_s: float
    total_s: float
    bytes: int
    updates: int
    failures: int
    gave_up: int
    samples: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ActivationRow:
    """One line of activations.csv. Texts, because that is what is read back; empty is "not known".

    cold: cold | warm; status: the core's word (ok, failed, silent, abandoned, running);
    start, end: ISO 8601 in UTC with milliseconds, by the platform's clock where it says so.
    """

    run: str
    round: str
    client: str = ""  # empty for server tasks
    platform: str = ""
    cluster: str  # where the client lives
    function: str = ""
    invoked_on: str = ""  # the cluster that gave the activation ID: the invoker's, on the invoker route
    attempt: str
    key: str
    activation_id: str = ""
    cold: str = ""
    status: str
    start: str = ""
    end: str = ""
    duration_ms: str = ""
    billed_ms: str = ""
    memory_mb: str = ""
    reason: str = ""


ROUND_COLUMNS: Final = tuple(field.name for field in fields(RoundRow))
ACTIVATION_COLUMNS: Final = tuple(field.name for field in fields(ActivationRow))


def round_row(record: RoundRecord) -> RoundRow:
    """The line of one committed round."""
    # An invocation may be confirmed after its update was counted: no part of a round is negative.
    invoked_ms = max(record.started_ms, min(record.invoked_ms, record.trained_ms))
    return RoundRow(
        round=record.round,
        loss=record.loss,
        accuracy=record.accuracy,
        train_loss=record.train_loss,
        invoke_s=_span_s(record.started_ms, invoked_ms),
        train_s=_span_s(invoked_ms, record.trained_ms),
        aggregate_s=round(record.aggregate_s, 3),
        evaluate_s=round(record.evaluate_s, 3),
        total_s=_span_s(record.started_ms, record.aggregated_ms),
        bytes=record.update_bytes,
        updates=len(record.updates),
        failures=record.failures,
        gave_up=record.gave_up,
        samples=record.samples,
    )


def function_of(attempt: Attempt) -> str:
    """The function that an attempt invokes on the direct route, as FedKeeper names it."""
    return {
        Kind.INIT: "fl_server_init",
        Kind.AGGREGATE: "fl_server_aggregator",
        Kind.SHARD: "fl_server_aggregator",
        Kind.FOLD: "fl_server_aggregator",
    }.get(attempt.kind, attempt.client)


def activation_row(
    attempt: Attempt,
    *,
    platform: str,
    function: str = "",
    invoked_on: str = "",
    activation: Activation | None = None,
) -> ActivationRow:
    """The line of one attempt, with what the platform says of it where that is known."""
    start_ms = activation.start_ms if activation else attempt.sent_ms
    end_ms = activation.end_ms if activation else attempt.ended_ms
    reason = attempt.reason or (activation.reason if activation else "")
    cold = None if activation is None else activation.cold
    return ActivationRow(
        run=attempt.run,
        round=str(attempt.round),
        client=attempt.client,
        platform=platform,
        cluster=attempt.cluster,
        function=(activation.function if activation else "") or function or function_of(attempt),
        invoked_on=invoked_on or attempt.cluster,
        attempt=str(attempt.number),
        key=attempt.key,
        activation_id=attempt.activation_id or (activation.activation_id if activation else ""),
        cold="" if cold is None else "cold" if cold else "warm",
        status=str(attempt.status),
        start=_iso(start_ms),
        end=_iso(end_ms),
        duration_ms=str(max(0, end_ms - start_ms)) if start_ms and end_ms else "",
        billed_ms=str(activation.billed_ms) if activation else "",
        memory_mb=str(activation.memory_mb) if activation else "",
        reason=_one_line(reason),
    )


class Report:
    """The files of one run in `folder` (logs/<run>). No method raises for the disk's sake."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._functions = folder / "functions"
        self._activations: dict[str, ActivationRow] = {}  # those that may still change
        self._from_round = 0  # of the earliest of them; what is before is on disk alone
        self._loaded = False
        self._rewrite = True  # the file on disk is not, or may not be, what is in memory
        self._rounds = -1  # in rounds.csv; -1: not looked yet

    def rounds(self, run: Run) -> list[RoundRow]:
        """Write rounds.csv from the run's history; return the rows that were not there yet."""
        path = self.folder / "rounds.csv"
        if self._rounds < 0:
            self._rounds = _lines(path) - 1
        rows = [round_row(record) for record in run.history]
        write_text(path, _csv(ROUND_COLUMNS, map(_values, rows)))
        news, self._rounds = rows[max(0, self._rounds) :], len(rows)
        return news

    def lacks(self, attempt: Attempt) -> bool:
        """Whether its line is not there, says another status, or nothing of what the platform knows."""
        if not self._loaded:
            self._load()
        row = self._activations.get(attempt.key)
        if row is None or row.status != str(attempt.status):
            return True
        return bool(attempt.activation_id) and not row.billed_ms

    def forget(self, before_round: int) -> None:
        """Keep no lines of earlier rounds in memory: nothing is to come of attempts that have such."""
        if before_round > self._from_round:
            self._from_round = before_round
            if self._rewrite:  # some of them may not be on disk
                return
            self._activations = {key: row for key, row in self._activations.items() if self._kept(row)}

    def _kept(self, row: ActivationRow) -> bool:
        return not row.round.isdigit() or int(row.round) >= self._from_round

    def activations(self, rows: Iterable[ActivationRow]) -> list[ActivationRow]:
        """Merge `rows` by key: new ones are appended, known ones filled in; empty fields erase nothing.

        Returns those that are new, or have another status now.
        """
        if not self._loaded:
            self._load()
        fresh, news = [], []
        for row in rows:
            old = self._activations.get(row.key)
            merged = row if old is None else _merge(old, row)
            if merged == old:
                continue
            if old is None or old.status != merged.status:
                news.append(merged)
            self._activations[row.key] = merged
            if old is None:
                fresh.append(merged)
            else:
                self._rewrite = True
        path = self.folder / "activations.csv"
        if self._rewrite:
            self._rewrite = not self._write_whole(path)
        elif fresh:
            text = logs.redact(_csv((), (_values(row) for row in fresh)))
            with _disk(path) as done:
                with path.open("a", encoding="utf-8", errors="replace", newline="") as file:
                    file.write(text)
                done.append(True)
            self._rewrite = not done
        return news

    def function_log(self, key: str, activation: Activation) -> None:
        """Write functions/<key>.log: what the function itself wrote during its activation.

        In place: there are thousands, and one that a crash cut short has no line in activations.csv yet.
        """
        head = f"# {key}: activation {activation.activation_id} of {activation.function}, {activation.status}"
        span = f"# {_iso(activation.start_ms)} to {_iso(activation.end_ms)}"
        text = "\n".join([head, span, *activation.logs, ""])
        name = f"{self._functions}/{file_name(key)}.log"
        with _disk(self._functions):
            try:
                file = open(name, "wb")  # noqa: PTH123, SIM115 - half of its time is pathlib's
            except FileNotFoundError:
                self._functions.mkdir(parents=True, exist_ok=True)
                file = open(name, "wb")  # noqa: PTH123, SIM115
            with file:
                file.write(logs.redact(text).encode(errors="replace"))

    def config(self, experiment: Mapping[str, Any] | str) -> None:
        """Write config.yaml: the experiment as it runs; the caller has left the secrets out."""
        text = experiment
        if not isinstance(text, str):
            text = yaml.dump(dict(text), Dumper=_DUMPER, sort_keys=False, allow_unicode=True)
        write_text(self.folder / "config.yaml", text)

    def _load(self) -> None:
        """Read back what an earlier keeper wrote; a line that was cut short is dropped."""
        self._loaded = True
        path = self.folder / "activations.csv"
        with _disk(path):
            self._activations = {row.key: row for row in _read_back(path) if self._kept(row)}

    def _write_whole(self, path: Path) -> bool:
        """With the lines that are on disk alone, each where it was; nothing if those cannot be read."""
        rows = dict(self._activations)
        if self._from_round:
            with _disk(path) as read:
                before = {row.key: row for row in _read_back(path)}
                rows = before | {key: _merge(before.get(key, row), row) for key, row in rows.items()}
                read.append(True)
            if not read:  # else what is only there would be lost
                return False
        done = write_text(path, _csv(ACTIVATION_COLUMNS, map(_values, rows.values())))
        if done:
            self._activations = {key: row for key, row in rows.items() if self._kept(row)}
        return done


def write_params(
    *,
    init: tuple[Path, Mapping[str, Any]],
    usage: tuple[Path, Mapping[str, Any]],
    folder: Path,
    clients: Mapping[str, Mapping[str, Any]],
) -> None:
    """Write the functions' inputs, as the ancestor did: `init` and `usage` (for the aggregator) to their
    files, those of the clients to `folder`/client<i>.json.

    The values are plain JSON without secrets. Inputs of clients that are no longer there are removed.
    """
    for path, value in (init, usage):
        write_json(path, value)
    written = set()
    for client, task in clients.items():
        numbered = NUMBERED_CLIENT.fullmatch(client)
        name = f"client{numbered[1]}.json" if numbered else f"{file_name(client)}.json"
        written.add(name)
        write_json(folder / name, task)
    with _disk(folder):
        for path in folder.glob("client*.json"):
            if path.name not in written:
                path.unlink()


def write_json(path: Path, value: Mapping[str, Any]) -> bool:
    """Replace `path` by `value` as JSON; False if the disk would not."""
    return write_text(path, msgspec.json.format(msgspec.json.encode(value), indent=4).decode() + "\n")


def write_text(path: Path, text: str) -> bool:
    """Replace `path` at once, secrets hidden; False, and a warning the first time, if the disk would not.

    A file that says so already is left alone: each new conductor has the inputs of all clients to write.
    """
    fresh = path.with_name(f".{path.name}.{os.getpid()}.new")
    data = logs.redact(text).encode(errors="replace")
    with _disk(path) as done:
        if _holds(path, data):
            return True
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            fresh.write_bytes(data)
            fresh.replace(path)
        except OSError:
            with contextlib.suppress(OSError):
                fresh.unlink(missing_ok=True)
            raise
        done.append(True)
    return bool(done)


def _holds(path: Path, data: bytes) -> bool:
    try:
        return path.read_bytes() == data
    except FileNotFoundError:
        return False


def file_name(key: str) -> str:
    """A file's name for `key`, one for one: "mnist-1/r3/client_7/a0" is mnist-1--r3--client_7--a0."""
    name = quote(key.replace("/", "--"), safe="")
    if len(name) <= FILE_NAME_CHARS_MAX:
        return name
    return f"{name[: FILE_NAME_CHARS_MAX - 17]}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"


@contextlib.contextmanager
def _disk(path: Path) -> Iterator[list[bool]]:
    """Turn what the disk refuses into one warning per folder; callers append True when they are through."""
    done: list[bool] = []
    try:
        yield done
    except OSError as exc:
        logs.complain_once(f"report {path.parent}", f"{path}: not written ({exc}); the run goes on")


def _read_back(path: Path) -> Iterator[ActivationRow]:
    """The whole lines of activations.csv, if it is there. OSError if it cannot be read."""
    if not path.exists():
        return
    with path.open(encoding="utf-8", errors="replace", newline="") as file:
        for values in csv.reader(file):
            if len(values) == len(ACTIVATION_COLUMNS) and tuple(values) != ACTIVATION_COLUMNS:
                yield ActivationRow(**dict(zip(ACTIVATION_COLUMNS, values, strict=True)))


def _lines(path: Path) -> int:
    try:
        return path.read_bytes().count(b"\n")
    except OSError:
        return 0


def _csv(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    if header:
        writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue()


def _values(row: RoundRow | ActivationRow) -> list[object]:
    """The row's fields in order; None becomes an empty cell."""
    return [getattr(row, field.name) for field in fields(row)]


def _merge(old: ActivationRow, new: ActivationRow) -> ActivationRow:
    cells = {name: getattr(new, name) or getattr(old, name) for name in ACTIVATION_COLUMNS}
    if old.billed_ms and not new.billed_ms:  # times by the platform's own clock are the better ones
        cells.update(start=old.start, end=old.end, duration_ms=old.duration_ms)
    return ActivationRow(**cells)


def _span_s(start_ms: int, end_ms: int) -> float:
    return max(0, end_ms - start_ms) / 1000 if start_ms and end_ms else 0.0


def _iso(at_ms: int) -> str:
    if not at_ms:
        return ""
    at = datetime.fromtimestamp(at_ms / 1000, tz=UTC)
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _one_line(text: str) -> str:
    """One record is one line, so that a file cut short loses its last record only."""
    return " ".join(text.split())[:REASON_CHARS_MAX]
