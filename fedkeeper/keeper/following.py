"""A run's events from any keeper: reads a stream, and goes on at another keeper when it breaks off."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Final

import msgspec
import requests

from fedkeeper.core.model import RoundRecord, Run
from fedkeeper.errors import ApiError, ApiRefused, FedKeeperError, NotThere
from fedkeeper.keeper.calling import Caller, Request
from fedkeeper.runtime.learned import learn

learn(Run)

SILENCE_S: Final = 5.0  # without even a keep-alive, a keeper is taken for dead
EVENT_BYTES_MAX: Final = 256 * 1024 * 1024
PAUSE_S: Final = 0.1


def follow(caller: Caller, path: str, *, history_from: int = 0, stopped: Callable[[], bool]) -> Iterator[Run]:
    """The run at once and after its changes, never an older one than before, each with its whole history.

    Ends when the run has ended, is forgotten, or `stopped` says so (asked with every keep-alive). Raises
    NotThere if no keeper has the run, and what is the matter when no keeper has answered for
    `caller.timeout_s`.
    """
    history: dict[int, RoundRecord] = {}
    newest = -1  # id of the latest event: the index in the log, which all keepers share
    silent_since = time.monotonic()
    problem: FedKeeperError = ApiError(f"{path}: no keeper is known")
    while not stopped():
        for url in caller.known():
            query = {"history_from": max([history_from, *(number + 1 for number in history)])}
            request = Request(method="GET", path=path, query=query)
            try:
                with caller.stream(url, request, silence_s=SILENCE_S) as pieces:
                    for number, kind, data in _events(pieces, stopped):
                        silent_since = time.monotonic()
                        if kind == "end" and number >= newest:
                            return
                        if kind != "run" or number < newest:
                            continue
                        newest = number
                        run = _run(data)
                        history |= {past.round: past for past in run.history}
                        yield replace(run, history=tuple(history[key] for key in sorted(history)))
                problem = ApiError(f"{url}: the stream broke off")
            except ApiRefused:
                raise
            except (ApiError, requests.RequestException) as exc:
                problem = exc if isinstance(exc, FedKeeperError) else ApiError(f"{url}: the stream broke off")
            if stopped():
                return
        if time.monotonic() - silent_since > (caller.timeout_s if not isinstance(problem, NotThere) else 1.0):
            raise problem
        caller.learn()
        caller.closed.wait(PAUSE_S)


def _events(pieces: Iterator[bytes], stopped: Callable[[], bool]) -> Iterator[tuple[int, str, bytes]]:
    """(id, kind, data) of each event. Raises ApiError for what is no such stream."""
    waiting = bytearray()
    for piece in pieces:
        if stopped():
            return
        waiting += piece
        if len(waiting) > EVENT_BYTES_MAX:
            raise ApiError("an event is too large")
        if b"\n\n" not in waiting[-len(piece) - 1 :]:
            continue
        *whole, rest = waiting.split(b"\n\n")
        waiting = rest
        for event in whole:
            fields = {
                key.decode("ascii", "replace"): bytes(value)
                for key, colon, value in (line.partition(b": ") for line in event.split(b"\n"))
                if colon
            }
            if "event" in fields:
                yield int(fields.get("id", b"0")), fields["event"].decode(), fields.get("data", b"")


def _run(data: bytes) -> Run:
    try:
        # The standard library's parser: it takes lone surrogates, which platforms' messages may hold.
        return msgspec.convert(json.loads(data), Run)
    except (ValueError, RecursionError, msgspec.ValidationError) as exc:
        raise ApiError(
            "an event holds no run that this version reads", hint="are all of one version?"
        ) from exc
