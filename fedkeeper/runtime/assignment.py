"""The rows that a client was dealt: read from the store once per worker and run."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from fedkeeper.errors import TaskError
from fedkeeper.runtime.base import ObjectStore
from fedkeeper.runtime.wire import TrainTask, assignment_name

_KEPT_BYTES_MAX: Final = 8 * 1024 * 1024  # of all assignments that stay in memory between activations

_Key = tuple[str, str, str]
_kept: OrderedDict[_Key, NDArray[Any]] = OrderedDict()
_one_at_a_time = threading.Lock()


def assigned_rows(task: TrainTask, store: ObjectStore) -> NDArray[Any]:
    """The numbers of the client's rows, not to be written to.

    A run's rows are dealt once, so they are kept under the run, its submission (`TrainTask.dealt`) and the
    client. Raises TaskError if the assignment holds none; ObjectMissing, ObjectDamaged.
    """
    key = (task.dealt, task.run, task.client)
    with _one_at_a_time:
        if key in _kept:
            _kept.move_to_end(key)
            return _kept[key]
    assigned = store.get(assignment_name(task.run, task.client))
    if "rows" not in assigned:
        raise TaskError(f"the assignment of {task.client!r} holds no tensor 'rows'")
    rows = assigned["rows"]
    rows.flags.writeable = False
    if task.dealt:
        _keep(key, rows)
    return rows


def _keep(key: _Key, rows: NDArray[np.generic]) -> None:
    with _one_at_a_time:
        _kept[key] = rows
        while sum(one.nbytes for one in _kept.values()) > _KEPT_BYTES_MAX:
            _kept.popitem(last=False)
