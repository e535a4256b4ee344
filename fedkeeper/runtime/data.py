"""An experiment's arrays: read from where the config says, cut to the rows of one client.

Formats: .npy, .npz (names a member), idx and idx.gz (how MNIST is published). Never a pickle: reading one
runs whatever is in it.
"""

from __future__ import annotations

import collections
import gzip
import hashlib
import math
import pkgutil
import re
import struct
import threading
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from fedkeeper.errors import TaskError
from fedkeeper.runtime.download import local_file
from fedkeeper.runtime.wire import DataSpec, Source

ARRAY_BYTES_MAX: Final = 4 << 30  # one array, unpacked
_KEPT_MAX: Final = 4  # sets of rows in one warm worker

_IDX_DTYPES: Final = {8: "u1", 9: "i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}
_kept: collections.OrderedDict[object, Examples] = collections.OrderedDict()
_one_at_a_time = threading.Lock()


@dataclass(frozen=True, slots=True)
class Examples:
    """Rows to train on or to test with.

    `images`: (n, ...) as published, e.g. (1000, 28, 28) uint8; `labels`: (n,) int64 classes, or (n, ...)
    float32. Scaling and reshaping happen batch by batch: the whole as float32 would take four times as much.
    """

    images: NDArray[Any]
    labels: NDArray[Any]
    input_shape: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[Any]]:
        """Inputs (len(rows), *input_shape) float32, uint8 scaled to 0..1, and their labels."""
        inputs = self.images[rows].astype(np.float32).reshape(len(rows), *self.input_shape)
        if self.images.dtype == np.uint8:
            inputs /= np.float32(255)
        return inputs, self.labels[rows]


def training_rows(spec: DataSpec, rows: NDArray[Any], input_shape: tuple[int, ...]) -> Examples:
    """The training rows that a client was dealt. Kept for the next activation of this process.

    Raises TaskError: no rows, rows that do not exist, sources that cannot be read, arrays that do not fit.
    """
    if rows.ndim != 1 or rows.dtype != np.int64 or not rows.size:
        raise TaskError(f"assigned rows are {rows.dtype}{list(rows.shape)}, not a list of int64 numbers")
    wanted = hashlib.sha256(np.ascontiguousarray(rows).tobytes()).hexdigest()
    return _remembered((spec.train_images, spec.train_labels, wanted, input_shape), rows)


def testing_rows(spec: DataSpec, input_shape: tuple[int, ...]) -> Examples:
    """The whole test set; kept and checked like `training_rows`."""
    return _remembered((spec.test_images, spec.test_labels, "", input_shape), None)


def training_labels(spec: DataSpec) -> NDArray[Any]:
    """The labels of all training rows, for dealing them out."""
    return read(spec.train_labels)


def forget() -> None:
    """Drop the rows that are kept warm, as if the process had just started."""
    _kept.clear()


def _remembered(key: tuple[Source, Source, str, tuple[int, ...]], rows: NDArray[Any] | None) -> Examples:
    with _one_at_a_time:
        if key not in _kept:
            while len(_kept) >= _KEPT_MAX:
                _kept.popitem(last=False)
            _kept[key] = _examples(key[0], key[1], rows, key[3])
        _kept.move_to_end(key)
        return _kept[key]


def _examples(
    images_at: Source, labels_at: Source, rows: NDArray[Any] | None, input_shape: tuple[int, ...]
) -> Examples:
    images, labels = read(images_at), read(labels_at)
    if not images.ndim or not labels.ndim or len(images) != len(labels) or not len(images):
        raise TaskError(
            f"images {list(images.shape)} and labels {list(labels.shape)} do not belong together"
            f" ({shown(images_at)}, {shown(labels_at)})"
        )
    if math.prod(images.shape[1:]) != math.prod(input_shape):
        raise TaskError(
            f"images of shape {list(images.shape[1:])} do not fit input_shape {list(input_shape)}"
            f" ({shown(images_at)})"
        )
    if rows is not None:
        if rows.min() < 0 or rows.max() >= len(images):
            raise TaskError(f"row {rows.max()} is assigned, {shown(images_at)} has {len(images)}")
        images, labels = images[rows], labels[rows]
    kind = np.float32 if labels.dtype.kind == "f" else np.int64
    return Examples(
        np.ascontiguousarray(images), np.ascontiguousarray(labels, dtype=kind), tuple(input_shape)
    )


def read(source: Source) -> NDArray[Any]:
    """The array at `source`, numeric or boolean; a .npy or idx file is mapped, not read.

    Raises TaskError: not there, wrong sha256, unknown format, a pickle, or above ARRAY_BYTES_MAX.
    """
    if re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", source.url):
        array = _called(source)
    else:
        where = shown(source)
        name = source.url.partition("?")[0].partition("#")[0].lower()
        if name.endswith((".pkl", ".pickle", ".obj")):
            raise TaskError(
                f"{where} is a pickle, and reading one runs what is in it",
                hint="convert it once, where you trust it: numpy.savez('data.npz', x_train=..., y_train=...)",
            )
        reader = next((how for suffix, how in _FORMATS if re.search(suffix, name)), None)
        if reader is None:
            raise TaskError(
                f"{where}: unknown format", hint="known: .npz, .npy, idx, idx.gz, module:function"
            )
        path = local_file(source.url, source.sha256)
        try:
            array = reader(path, source)
        except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, struct.error) as exc:
            raise TaskError(f"{where} cannot be read: {exc}") from exc
    if array.dtype.kind not in "biuf":
        raise TaskError(f"{shown(source)} is {array.dtype}, not numbers")
    return array


def shown(source: Source) -> str:
    """A source for messages: without user, password, query and fragment, which may hold secrets."""
    url = re.sub(r"(?<=://)[^/@]*@", "", source.url).partition("?")[0].partition("#")[0]
    return f"{url}[{source.array}]" if source.array else url


def _called(source: Source) -> NDArray[Any]:
    try:
        function = pkgutil.resolve_name(source.url)
    except (ImportError, AttributeError, ValueError) as exc:
        raise TaskError(
            f"data {source.url!r} cannot be imported: {exc}",
            hint="is the file among the function's includes?",
        ) from exc
    array = np.asarray(function())
    if source.sha256 and hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest() != source.sha256:
        raise TaskError(f"data {source.url!r} does not have the sha256 that the config asks for")
    return array


def _npz(path: Path, source: Source) -> NDArray[Any]:
    with zipfile.ZipFile(path) as archive:
        members = {Path(info.filename).stem: info for info in archive.infolist()}
        if source.array not in members:
            raise TaskError(f"{shown(source)}: no such array; there are: {', '.join(sorted(members))}")
        _check_size(members[source.array].file_size)
    with np.load(path, allow_pickle=False) as arrays:
        array: NDArray[Any] = arrays[source.array]
    return array


def _npy(path: Path, _source: Source) -> NDArray[Any]:
    array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    return array


def _idx(path: Path, _source: Source) -> NDArray[Any]:
    """Two zero bytes, dtype, number of axes, the axes as big-endian uint32, then the values."""
    with path.open("rb") as file:
        kind, shape, offset = _idx_header(file.read(4 + 4 * 255))
    array: NDArray[Any] = np.memmap(path, kind, "r", offset, shape)
    return _native(array)


def _idx_gz(path: Path, _source: Source) -> NDArray[Any]:
    with gzip.open(path, "rb") as file:
        head = file.read(4 + 4 * 255)
        kind, shape, offset = _idx_header(head)
        size = math.prod(shape) * kind.itemsize
        body = head[offset:] + file.read(max(size - len(head) + offset, 0))
    return _native(np.frombuffer(body[:size], kind).reshape(shape))


def _idx_header(head: bytes) -> tuple[np.dtype[Any], tuple[int, ...], int]:
    if len(head) < 4 or head[:2] != b"\0\0" or head[2] not in _IDX_DTYPES or not head[3]:
        raise ValueError("it does not start as an idx file does")
    shape = struct.unpack_from(f">{head[3]}I", head, 4)
    kind = np.dtype(_IDX_DTYPES[head[2]])
    _check_size(math.prod(shape) * kind.itemsize)
    return kind, shape, 4 + 4 * head[3]


def _native(array: NDArray[Any]) -> NDArray[Any]:
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def _check_size(size: int) -> None:
    if size > ARRAY_BYTES_MAX:
        raise ValueError(f"the array has {size} bytes, at most {ARRAY_BYTES_MAX} are taken")


_FORMATS: Final = (
    (r"\.npz$", _npz),
    (r"\.npy$", _npy),
    (r"idx[^/]*\.gz$", _idx_gz),
    (r"[.-]idx[^/]*$", _idx),
)
