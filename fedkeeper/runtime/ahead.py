"""Working on one thing while the next ones are being fetched."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterator
from typing import TypeVar

T = TypeVar("T")

_LOOK_S = 0.1  # how soon a fetcher that nobody waits for any more notices it


def ahead(source: Iterator[T], most: int) -> Generator[T]:
    """The same things, fetched by a thread, `most` of them in advance.

    What the source raises is raised here, in its turn. When the iterator is closed, the thread ends.
    """
    ready: queue.Queue[tuple[T | None, BaseException | None, bool]] = queue.Queue(most)
    over = threading.Event()

    def put(item: tuple[T | None, BaseException | None, bool]) -> bool:
        while not over.is_set():
            try:
                ready.put(item, timeout=_LOOK_S)
            except queue.Full:
                continue
            return True
        return False

    def fetch() -> None:
        try:
            for one in source:
                if not put((one, None, False)):
                    return
        except BaseException as exc:  # noqa: BLE001 - raised where the things are used
            put((None, exc, True))
        else:
            put((None, None, True))

    thread = threading.Thread(target=fetch, name="fetching ahead", daemon=True)
    thread.start()
    try:
        while True:
            one, problem, last = ready.get()
            if problem is not None:
                raise problem
            if last:
                return
            yield one  # type: ignore[misc]  # there is one, if it is not the last
            del one
    finally:
        over.set()
        thread.join()
