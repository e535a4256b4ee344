"""Tensors as bytes: safetensors, which holds names, dtypes, shapes and raw data, and nothing that runs.

Ships inside every function's zip. Used for objects in the store and for the HTTP bodies of the invoker
route, whose metadata carries the task.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors import numpy as safetensors

from fedkeeper.errors import ObjectDamaged
from fedkeeper.runtime.base import Tensors

# The format sorts tensors by dtype and name; a model's layers have an order of their own.
_ORDER = "fedkeeper.order"


def pack(tensors: Tensors, metadata: Mapping[str, str] | None = None) -> bytes:
    """One safetensors file that remembers the order of `tensors`.

    Without metadata, the same tensors give the same bytes. Arrays are numeric or boolean and may have any
    shape, () too; ValueError for other dtypes.
    """
    ready = {}
    for name, array in tensors.items():
        if array.dtype.kind not in "biufc":
            raise ValueError(f"tensor {name!r} has dtype {array.dtype}, only numbers can be stored")
        # ascontiguousarray makes (1,) of (): reshape it back.
        ready[name] = np.ascontiguousarray(array).reshape(array.shape)
    return bytes(safetensors.save(ready, metadata={**(metadata or {}), _ORDER: json.dumps(list(ready))}))


def unpack(
    data: bytes, *, bytes_max: int | None = None
) -> tuple[dict[str, NDArray[np.generic]], dict[str, str]]:
    """(tensors in the order they were packed in, metadata) of one safetensors file.

    The library copies each tensor once, so the arrays may be written to and `data` may be dropped.

    Raises:
        ObjectDamaged: longer than `bytes_max`, not safetensors, or of a dtype that numpy lacks.
    """
    if bytes_max is not None and len(data) > bytes_max:
        raise ObjectDamaged(f"{len(data)} bytes of tensors, at most {bytes_max} are taken")
    try:
        tensors = safetensors.load(data)
        # The library gives no metadata of bytes; after `load` the header is known to be sound.
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        metadata: dict[str, str] = dict(header.get("__metadata__") or {})
        order = json.loads(metadata.pop(_ORDER, "null"))
    except (SafetensorError, KeyError, ValueError) as exc:
        raise ObjectDamaged(f"not tensors in the safetensors format: {exc!r}") from exc
    if order is None:
        return tensors, metadata
    if not isinstance(order, list) or sorted(order, key=str) != sorted(tensors):
        raise ObjectDamaged("the tensors' order names other tensors than there are")
    return {name: tensors[name] for name in order}, metadata


def describe(data: bytes) -> list[dict[str, object]]:
    """Name, dtype, shape and place (first byte, byte after the last) of each tensor in what `pack` made.

    For manifests: enough to read one tensor by its range of bytes.
    """
    header_bytes = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + header_bytes])
    metadata = header.pop("__metadata__", None) or {}
    order = json.loads(metadata[_ORDER]) if _ORDER in metadata else list(header)
    return [
        {
            "name": name,
            "dtype": header[name]["dtype"],
            "shape": header[name]["shape"],
            "begin": 8 + header_bytes + header[name]["data_offsets"][0],
            "end": 8 + header_bytes + header[name]["data_offsets"][1],
        }
        for name in order
    ]
