from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fedkeeper.errors import ObjectMissing, TaskError
from fedkeeper.runtime.assignment import assigned_rows
from fedkeeper.runtime.memory import MemoryObjects
from fedkeeper.runtime.wire import (
    DataSpec,
    ModelSpec,
    Ref,
    Source,
    TrainingSpec,
    TrainTask,
    assignment_name,
)

TASK = TrainTask(
    key="trial/r1/c0/a0",
    run="trial",
    round=1,
    client="c0",
    weights=Ref(name="trial/w0", sha256="00", nbytes=1),
    model=ModelSpec(name="cnn", input_shape=(28, 28, 1)),
    data=DataSpec(**{name: Source(url="own:data") for name in DataSpec.__slots__}),
    training=TrainingSpec(optimizer="adam", learning_rate=0.1, local_epochs=1, batch_size=1),
    seed=1,
    max_model_bytes=1,
)


def dealt(*rows: int, client: str = "c0") -> MemoryObjects:
    """A store in which the client has these rows."""
    store = MemoryObjects()
    store.put(assignment_name("trial", client), {"rows": np.array(rows, np.int64)}, run="trial", round_no=0)
    return store


def test_rows_are_read_once_for_a_dealing() -> None:
    """The next round's come without the store, and cannot be written to."""
    task = replace(TASK, dealt="one")
    assert list(assigned_rows(task, dealt(3, 5))) == [3, 5]
    again = assigned_rows(replace(task, round=2), MemoryObjects())
    assert list(again) == [3, 5]
    with pytest.raises(ValueError, match="read-only"):
        again[0] = 4


def test_another_dealing_of_the_same_name_is_read_anew() -> None:
    """Whoever drops a run and submits another under its name does not train on the rows of the first."""
    assert list(assigned_rows(replace(TASK, dealt="two"), dealt(1))) == [1]
    assert list(assigned_rows(replace(TASK, dealt="three"), dealt(2))) == [2]
    with pytest.raises(ObjectMissing):
        assigned_rows(replace(TASK, dealt="two", client="c1"), dealt(1))


def test_tasks_that_do_not_say_which_dealing_read_every_time() -> None:
    """As those of an older keeper."""
    assert list(assigned_rows(TASK, dealt(1))) == [1]
    assert list(assigned_rows(TASK, dealt(2))) == [2]


def test_what_is_kept_is_bounded() -> None:
    """The one that was used longest ago makes room."""
    for number in range(5):
        assigned_rows(replace(TASK, dealt=f"big {number}"), dealt(*range(300_000)))
    assert len(assigned_rows(replace(TASK, dealt="big 4"), MemoryObjects())) == 300_000
    with pytest.raises(ObjectMissing):
        assigned_rows(replace(TASK, dealt="big 0"), MemoryObjects())


def test_an_assignment_without_rows_is_named() -> None:
    """By its client."""
    store = MemoryObjects()
    store.put(assignment_name("trial", "c0"), {"other": np.zeros(1)}, run="trial", round_no=0)
    with pytest.raises(TaskError, match="'c0' holds no tensor 'rows'"):
        assigned_rows(TASK, store)
