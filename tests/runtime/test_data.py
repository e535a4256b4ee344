from __future__ import annotations

import gzip
import hashlib
import struct
from pathlib import Path

import numpy as np
import pytest

from fedkeeper.errors import TaskError
from fedkeeper.runtime import data
from fedkeeper.runtime.wire import DataSpec, Source

IMAGES = np.arange(5 * 4, dtype=np.uint8).reshape(5, 2, 2) * 12
LABELS = np.array([3, 1, 4, 1, 5], np.uint8)


@pytest.fixture(autouse=True)
def cold() -> None:
    """Every test starts with nothing kept."""
    data.forget()


def idx(array: np.ndarray, kind: int) -> bytes:
    """An idx file, as MNIST is published."""
    return bytes([0, 0, kind, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def source(path: Path, array: str = "", sha256: str = "") -> Source:
    """A file as a source."""
    return Source(url=path.as_uri(), array=array, sha256=sha256)


@pytest.mark.parametrize("name", ["a.npy", "b.npz", "train-images-idx3-ubyte", "d.idx", "e-idx3-ubyte.gz"])
def test_every_format_gives_the_same_array(tmp_path: Path, name: str) -> None:
    """npy, npz, idx and idx.gz."""
    path = tmp_path / name
    if name.endswith(".npy"):
        np.save(path, IMAGES)
    elif name.endswith(".npz"):
        np.savez(path, x=IMAGES)
    elif name.endswith(".gz"):
        path.write_bytes(gzip.compress(idx(IMAGES, 8)))
    else:
        path.write_bytes(idx(IMAGES, 8))
    found = data.read(source(path, "x"))
    assert found.dtype == np.uint8
    assert np.array_equal(found, IMAGES)


@pytest.mark.parametrize("suffix", ["idx", "idx.gz"])
def test_idx_numbers_are_turned_from_big_endian(tmp_path: Path, suffix: str) -> None:
    """Floats as well, plain or packed; what comes out is the machine's own order."""
    body = idx(np.array([1.5, -2.0], ">f4"), 13)
    path = tmp_path / f"values.{suffix}"
    path.write_bytes(gzip.compress(body) if suffix.endswith("gz") else body)
    found = data.read(source(path))
    assert found.tolist() == [1.5, -2.0]
    assert found.dtype.isnative


def test_a_pickle_is_never_read(tmp_path: Path) -> None:
    """Not by name, and not inside an .npy: the hint says how to convert it."""
    with pytest.raises(TaskError, match="is a pickle") as caught:
        data.read(source(tmp_path / "train.obj"))
    assert "numpy.savez" in caught.value.hint
    hidden = tmp_path / "hidden.npy"
    np.save(hidden, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(TaskError, match="cannot be read"):
        data.read(source(hidden))


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("a.csv", b"1,2", "unknown format"),
        ("a.npz", b"not a zip", "cannot be read"),
        ("a.npy", b"not an array", "cannot be read"),
        ("a.idx", b"\x00\x00\x08", "does not start as an idx file"),
        ("a.idx.gz", b"not gzip", "cannot be read"),
        ("a.idx.gz", gzip.compress(idx(IMAGES, 8)[:-3]), "cannot be read"),
        ("a.idx.gz", gzip.compress(b"\0\0\x08\x03" + b"\xff" * 12), "bytes, at most"),
    ],
)
def test_files_that_are_not_what_they_say(tmp_path: Path, name: str, content: bytes, problem: str) -> None:
    """Each names the file and what is wrong with it."""
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(TaskError, match=problem):
        data.read(source(path))


def test_a_missing_member_lists_those_there_are(tmp_path: Path) -> None:
    """x_trian: x_test, x_train."""
    np.savez(tmp_path / "a.npz", x_train=IMAGES, x_test=IMAGES)
    with pytest.raises(TaskError, match=r"no such array; there are: x_test, x_train"):
        data.read(source(tmp_path / "a.npz", "x_trian"))


def test_a_hash_is_checked(tmp_path: Path) -> None:
    """The right one passes in any case of letters, another is refused with both named."""
    path = tmp_path / "a.npy"
    np.save(path, IMAGES)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert len(data.read(source(path, sha256=digest.upper()))) == 5
    with pytest.raises(TaskError, match=digest):
        data.read(source(path, sha256="0" * 64))


def test_a_users_function_gives_an_array(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`module:function`, called without arguments; a missing module hints at the includes."""
    (tmp_path / "own_data.py").write_text("def images():\n    return [[1, 2], [3, 4]]\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert data.read(Source(url="own_data:images")).tolist() == [[1, 2], [3, 4]]
    with pytest.raises(TaskError, match="cannot be imported") as caught:
        data.read(Source(url="no_such_data:images"))
    assert "includes" in caught.value.hint


def spec(folder: Path, images: np.ndarray = IMAGES, labels: np.ndarray = LABELS) -> DataSpec:
    """The same arrays for training and testing."""
    np.savez(folder / "all.npz", x=images, y=labels)
    x, y = source(folder / "all.npz", "x"), source(folder / "all.npz", "y")
    return DataSpec(train_images=x, train_labels=y, test_images=x, test_labels=y)


def test_images_are_scaled_and_shaped_batch_by_batch(tmp_path: Path) -> None:
    """uint8 becomes float32 in 0..1 in the model's shape, labels become int64."""
    examples = data.training_rows(spec(tmp_path), np.array([4, 0]), (2, 2, 1))
    inputs, labels = examples.batch(np.arange(2))
    assert inputs.dtype == np.float32
    assert inputs.shape == (2, 2, 2, 1)
    np.testing.assert_allclose(inputs[0].ravel(), IMAGES[4].ravel() / 255, rtol=1e-6)
    assert labels.tolist() == [5, 3]
    assert labels.dtype == np.int64


def test_other_numbers_are_taken_as_they_are(tmp_path: Path) -> None:
    """Only uint8 is scaled: floats are the user's own business; float labels stay floats."""
    floats = data.testing_rows(spec(tmp_path, IMAGES / 2.0, LABELS / 2.0), (4,))
    inputs, labels = floats.batch(np.arange(5))
    assert inputs.max() == IMAGES.max() / 2
    assert labels.dtype == np.float32


def test_rows_are_kept_for_the_next_activation(tmp_path: Path) -> None:
    """A warm worker reads nothing again for the same rows; for other rows it does."""
    at = spec(tmp_path)
    first = data.training_rows(at, np.array([1]), (4,))
    (tmp_path / "all.npz").unlink()
    assert data.training_rows(at, np.array([1]), (4,)) is first
    with pytest.raises(TaskError, match="no such file"):
        data.training_rows(at, np.array([2]), (4,))


@pytest.mark.parametrize(
    ("rows", "shape", "problem"),
    [
        (np.array([5]), (4,), r"row 5 is assigned.*has 5"),
        (np.array([-1]), (4,), "is assigned"),
        (np.array([], np.int64), (4,), "not a list of int64"),
        (np.array([1.0]), (4,), "not a list of int64"),
        (np.array([1]), (5,), r"images of shape \[2, 2\] do not fit input_shape \[5\]"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, rows: np.ndarray, shape: tuple, problem: str) -> None:
    """Rows that do not exist, images of another size."""
    with pytest.raises(TaskError, match=problem):
        data.training_rows(spec(tmp_path), rows, shape)


def test_images_and_labels_of_different_lengths_are_refused(tmp_path: Path) -> None:
    """Both shapes are in the message."""
    with pytest.raises(TaskError, match=r"images \[5, 2, 2\] and labels \[4\]"):
        data.testing_rows(spec(tmp_path, IMAGES, LABELS[:4]), (4,))


def test_messages_show_no_secrets_of_a_url() -> None:
    """User, password and query are left out."""
    shown = data.shown(Source(url="https://me:secret@host/x.npz?token=secret#secret", array="x"))
    assert shown == "https://host/x.npz[x]"
