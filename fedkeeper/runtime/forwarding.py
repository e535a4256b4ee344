"""The invoker route: a client that holds no credentials is sent weights and rows, and answers its update.

One body each way, both made by `tensors.pack`. There: the weights, the rows, and the task as metadata. Back:
the update, and what was learnt of the training as metadata.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from fedkeeper.errors import ObjectDamaged, TaskError
from fedkeeper.runtime.base import Tensors
from fedkeeper.runtime.tensors import pack, unpack
from fedkeeper.runtime.updates import Trained
from fedkeeper.runtime.wire import TrainTask, decode, encode

ROWS: Final = "fedkeeper.rows"  # beside the weights, whose names start with a number
_TASK: Final = "task"
_TRAINED: Final = "trained"


def pack_task(task: TrainTask, weights: Tensors, rows: NDArray[Any]) -> bytes:
    """The body that is sent to the client."""
    return pack({**weights, ROWS: rows}, {_TASK: msgspec.json.encode(encode(task)).decode()})


def unpack_task(body: bytes) -> tuple[TrainTask, dict[str, NDArray[np.generic]], NDArray[Any]]:
    """(task, weights, rows) of such a body. Raises TaskError."""
    tensors, metadata = _unpacked(body)
    if ROWS not in tensors:
        raise TaskError(f"the request holds no {ROWS!r}")
    rows = tensors.pop(ROWS)
    return decode(TrainTask, _json(metadata, _TASK)), tensors, rows


def pack_update(update: Tensors, trained: Trained) -> bytes:
    """The body that the client answers."""
    return pack(update, {_TRAINED: msgspec.json.encode(encode(trained)).decode()})


def unpack_update(body: bytes) -> tuple[dict[str, NDArray[np.generic]], Trained]:
    """(update, what is said of it) of such an answer. Raises TaskError."""
    tensors, metadata = _unpacked(body)
    return tensors, decode(Trained, _json(metadata, _TRAINED))


def _unpacked(body: bytes) -> tuple[dict[str, NDArray[np.generic]], dict[str, str]]:
    try:
        return unpack(body)
    except ObjectDamaged as exc:
        raise TaskError(f"the body is damaged: {exc}") from exc


def _json(metadata: Mapping[str, str], name: str) -> Any:
    try:
        return msgspec.json.decode(metadata.get(name, ""))
    except msgspec.DecodeError as exc:
        raise TaskError(f"the body's {name!r} is not JSON: {exc}") from exc
