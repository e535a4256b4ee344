"""What a worker prints, cut into the logs of its activations."""

from __future__ import annotations

import asyncio
import os
from datetime import UTC, datetime

STREAMS = ("stdout", "stderr")
LINE_BYTES_MAX = 16 << 10  # longer ones are split, as Docker's log driver does
MIB = 1 << 20
MAY_BE_MISSING = "The action did not initialize or run as expected. Log data might be missing."


def log_line(stream: str, text: str) -> str:
    """A line of an activation's log as OpenWhisk stores it, stamped with the present time."""
    stamp = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    return f"{stamp:<30} {stream}: {text}"


class ActivationLog:
    """The lines of one activation, up to its limit; complete when both streams have shown its marker.

    Without a marker it holds what is in the pipes when the worker has answered (`Output.drain`): enough for
    workers of one activation at a time, since what was written before the answer is there by then.
    """

    def __init__(self, bytes_max: int, marker: str = "") -> None:
        self.marker = marker
        self._bytes_max = bytes_max
        self._bytes = 0
        self._truncated = False
        self._lines: list[str] = []
        self._open = set(STREAMS)
        self.complete = asyncio.Event()

    def add(self, stream: str, text: str) -> bool:
        """Take a line; False if it was the marker (what precedes it on the line is kept)."""
        text, ended, _ = text.partition(self.marker) if self.marker else (text, "", "")
        if text or not ended:
            self._keep(stream, text)
        if ended:
            self.end_of(stream)
        return not ended

    def reopen(self) -> None:
        """Go on after the marker: a worker's start and its call each end with one."""
        self._open = set(STREAMS)
        self.complete.clear()

    def end_of(self, stream: str) -> None:
        """The worker closed this stream: no marker will come."""
        self._open.discard(stream)
        if not self._open:
            self.complete.set()

    def _keep(self, stream: str, text: str) -> None:
        self._bytes += len(text.encode()) + 1  # with its end: an empty line costs memory too
        if self._bytes <= self._bytes_max:
            self._lines.append(log_line(stream, text))
        else:
            self._truncated = True

    def lines(self, *, unexpected: bool = False) -> tuple[str, ...]:
        """All lines so far. `unexpected`: the activation ended in a developer error."""
        if self._bytes_max == 0:
            return ()
        lines = list(self._lines)
        if self._truncated:
            limit = f"the total bytes size exceeds the limit of {self._bytes_max} bytes."
            lines.append(log_line("stderr", f"Logs were truncated because {limit}"))
        if unexpected:
            lines.append(log_line("stderr", MAY_BE_MISSING))
        return tuple(lines)


class Output:
    """Reads a worker's stdout and stderr all the time: a full pipe would block the function."""

    def __init__(self) -> None:
        self.logs: list[ActivationLog] = []  # those that are being written, oldest first
        self._pending: dict[str, bytes] = dict.fromkeys(STREAMS, b"")
        self._fds: dict[str, int] = {}

    def attach(self, stdout: int, stderr: int) -> None:
        """Start to read from two pipes' reading ends; `close` closes them."""
        for stream, fd in zip(STREAMS, (stdout, stderr), strict=True):
            os.set_blocking(fd, False)
            self._fds[stream] = fd
            asyncio.get_running_loop().add_reader(fd, self._read, stream)

    def _read(self, stream: str) -> bool:
        """Take what is there (at most 64 KiB); False if that was nothing."""
        try:
            data = os.read(self._fds[stream], 64 << 10)
        except BlockingIOError:
            return False
        if not data:
            self._detach(stream)
            return False
        *lines, rest = (self._pending[stream] + data).split(b"\n")
        while len(rest) > LINE_BYTES_MAX:
            lines.append(rest[:LINE_BYTES_MAX])
            rest = rest[LINE_BYTES_MAX:]
        self._pending[stream] = rest
        for line in lines:
            self._give(stream, line)
        return True

    def _give(self, stream: str, line: bytes) -> None:
        """To the activation that is running; of several at once (concurrency > 1), to the oldest."""
        text = line.decode(errors="replace")
        for log in self.logs:
            if log.marker and log.marker in text:
                log.add(stream, text)
                return
        if self.logs:
            self.logs[0].add(stream, text)

    def _flush(self, stream: str) -> None:
        """A last line that has no end."""
        if rest := self._pending[stream]:
            self._pending[stream] = b""
            self._give(stream, rest)

    def _detach(self, stream: str) -> None:
        self._flush(stream)
        fd = self._fds.pop(stream, None)
        if fd is not None:
            asyncio.get_running_loop().remove_reader(fd)
            os.close(fd)
        for log in self.logs:
            log.end_of(stream)

    def drain(self) -> None:
        """Read what is in the pipes (bounded: a pipe holds 64 KiB to 1 MiB), also a line without an end."""
        for stream in list(self._fds):
            for _ in range(16):
                if not self._read(stream):
                    break
            self._flush(stream)

    def close(self) -> None:
        """Stop reading."""
        for stream in STREAMS:
            self._detach(stream)
