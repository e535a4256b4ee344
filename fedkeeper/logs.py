"""Events as JSON lines in `logs/<run>/events.jsonl`, for people on stderr only on demand; never a secret.

Those of a keeper that belong to no run go to its data folder.

A log that cannot be written never stops a run: it is said once on stderr, the lines are kept (bounded)
and tried again with every further event.
"""

from __future__ import annotations

import base64
import json
import logging
import math
import sys
import threading
from collections import deque
from collections.abc import Mapping, MutableMapping
from io import SEEK_END, FileIO
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import structlog
from pydantic import SecretStr

PENDING_LINES_MAX: Final = 10_000  # kept while the file cannot be written, and before it is known
SECRET_CHARS_MIN: Final = 4  # shorter ones would turn ordinary words and numbers into ***
HIDDEN: Final = "***"
EVENTS: Final = "events.jsonl"
OPEN_RUNS_MAX: Final = 16

_secrets: set[str] = set()
_complaints: set[str] = set()


def register_secret(secret: SecretStr) -> None:
    """From now on `secret` is replaced by *** in all events, reports and error messages.

    Its JSON, URL and base64 spellings as well. Secrets of less than 4 characters are not looked for.
    """
    value = secret.get_secret_value()
    if len(value) < SECRET_CHARS_MIN:
        return
    escaped = json.dumps(value)[1:-1]
    _secrets.update(
        {value, value.strip(), escaped, quote(value, safe=""), base64.b64encode(value.encode()).decode()}
    )
    _secrets.discard("")


def redact(text: str) -> str:
    """`text` with every registered secret replaced by ***."""
    for secret in sorted(_secrets, key=len, reverse=True):  # a secret may be part of a longer one
        text = text.replace(secret, HIDDEN)
    return text


def complain_once(topic: str, text: str) -> None:
    """Say `text` on stderr the first time that something is wrong with `topic`."""
    if topic not in _complaints:
        _complaints.add(topic)
        sys.stderr.write(f"Warning: {redact(text)}\n")
        sys.stderr.flush()


class EventFile:
    """Appends lines to one file, and keeps those that it could not write. Safe to use from any thread."""

    def __init__(self) -> None:
        self._path: Path | None = None
        self._file: FileIO | None = None
        self._pending: deque[bytes] = deque(maxlen=PENDING_LINES_MAX)
        self._lock = threading.Lock()

    def open(self, path: Path) -> None:
        """Write to `path` from now on, beginning with what came before it was known."""
        with self._lock:
            self._close()
            self._path = path
            self._flush()

    def write(self, line: str) -> None:
        """Append `line`; never raises for the disk's sake."""
        with self._lock:
            self._pending.append(line.encode("utf-8", "replace") + b"\n")
            self._flush()

    def close(self) -> None:
        """Let go of the file and of what could not be written."""
        with self._lock:
            self._flush()
            self._close()
            self._pending.clear()
            self._path = None

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _ends_well(self) -> bool:
        """The file is empty or ends with a whole line."""
        if self._file is None or self._file.tell() == 0:
            return True
        self._file.seek(-1, SEEK_END)
        return self._file.read(1) == b"\n"

    def _flush(self) -> None:
        if self._path is None:
            return
        try:
            if self._file is None:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._file = FileIO(self._path, "ab+")
                if not self._ends_well():
                    self._pending.appendleft(b"\n")  # a line was cut short when the last keeper died
            while self._pending:
                line = self._pending[0]
                written = self._file.write(line) or 0
                if written < len(line):  # the disk took a part: the rest goes first next time
                    self._pending[0] = line[written:]
                    if not written:
                        return
                else:
                    self._pending.popleft()
        except OSError as exc:
            complain_once(f"events {self._path}", f"{self._path}: cannot write the log ({exc}); going on")


class RunFiles:
    """Events of several runs, each run's in its own file, and one file for all others."""

    def __init__(self, folder: Path, own: EventFile) -> None:
        """`folder`/RUN/events.jsonl get those with a `run`, `own` the others."""
        self._folder = folder
        self._own = own
        self._runs: dict[str, EventFile] = {}  # the latest OPEN_RUNS_MAX
        self._lock = threading.Lock()

    def write(self, line: str, run: object) -> None:
        """Append `line` where it belongs; never raises for the disk's sake."""
        if not isinstance(run, str) or not run or run.startswith(".") or "/" in run:
            self._own.write(line)
            return
        with self._lock:
            file = self._runs.pop(run, None)
            if file is None:
                file = EventFile()
                file.open(self._folder / run / EVENTS)
            self._runs[run] = file
            if len(self._runs) > OPEN_RUNS_MAX:
                self._runs.pop(next(iter(self._runs))).close()
            file.write(line)

    def close(self) -> None:
        """Let go of the runs' files."""
        with self._lock:
            for file in self._runs.values():
                file.close()
            self._runs.clear()


_file = EventFile()
_run_files: RunFiles | None = None  # in a keeper, instead of `_file`
_bound: dict[str, str] = {}  # not context variables: tasks that began earlier must carry the ids too


def set_up(*, verbose: bool = False, people: bool = False, level: str = "info") -> None:
    """Configure structlog and stdlib logging. Events are kept until `to_folder` says where they go.

    `level`: debug | info | warning | error, the least that is written; `people`: for people on stderr as
    well; `verbose` means debug, and stderr.
    """
    least = logging.DEBUG if verbose else logging.getLevelNamesMapping()[level.upper()]
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            _add_bound,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True, key="at"),
            structlog.processors.StackInfoRenderer(),
            structlog.processors.format_exc_info,
            _plain_and_redacted,
            _Tee(people=verbose or people),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(least),
        cache_logger_on_first_use=False,
    )
    root = logging.getLogger()
    if not any(isinstance(handler, _Bridge) for handler in root.handlers):
        root.addHandler(_Bridge(level=logging.WARNING))


def to_folders(folder: Path, *, own: Path, keeper: str) -> None:
    """Append events with a `run` to `folder`/RUN/events.jsonl, others to `own`; each with its `keeper`."""
    global _run_files  # noqa: PLW0603 - structlog's configuration is global as well
    _bound["keeper"] = keeper
    if _run_files is not None:
        _run_files.close()
    _file.open(own)
    _run_files = RunFiles(folder, _file)


def to_folder(folder: Path, *, run: str) -> Path:
    """Append events to `folder`/events.jsonl, each with its `run`; returns the file's path."""
    _bound["run"] = run
    path = folder / EVENTS
    _file.open(path)
    return path


def tear_down() -> None:
    """Close the files and forget ids, secrets and complaints."""
    global _run_files  # noqa: PLW0603
    _file.close()
    if _run_files is not None:
        _run_files.close()
        _run_files = None
    _bound.clear()
    _secrets.clear()
    _complaints.clear()
    root = logging.getLogger()
    for handler in [handler for handler in root.handlers if isinstance(handler, _Bridge)]:
        root.removeHandler(handler)
    structlog.reset_defaults()


def _add_bound(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    for name, value in _bound.items():
        event.setdefault(name, value)
    return event


def _plain_and_redacted(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    return {redact(str(name)): _plain(value) for name, value in event.items()}


def _plain(value: Any) -> Any:
    """JSON types only, redacted: an object's repr could carry a secret, and JSON has no NaN."""
    if isinstance(value, str):
        return redact(value)
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, Mapping):
        return {redact(str(name)): _plain(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(inner) for inner in value]
    return redact(str(value) if isinstance(value, (BaseException, Path)) else repr(value))


class _Tee:
    """The last processor: one JSON line to the file, one for people if asked."""

    def __init__(self, *, people: bool) -> None:
        self._people = (
            structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), timestamp_key="at") if people else None
        )

    def __call__(self, logger: Any, method: str, event: MutableMapping[str, Any]) -> str:
        first = {name: event[name] for name in ("at", "level", "event", "run") if name in event}
        line = json.dumps({**first, **event}, ensure_ascii=False)
        if _run_files is None:
            _file.write(line)
        else:
            _run_files.write(line, event.get("run"))
        if self._people is not None:
            sys.stderr.write(self._people(logger, method, dict(event)) + "\n")
        raise structlog.DropEvent


class _Bridge(logging.Handler):
    """Warnings of the libraries (asyncio, pymongo, aiohttp) become events instead of bare lines on stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        """Pass `record` on."""
        log = structlog.get_logger()
        log.log(record.levelno, record.getMessage(), logger=record.name, exc_info=record.exc_info)
