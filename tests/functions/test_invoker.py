from __future__ import annotations

import base64
import json
from collections.abc import Callable
from dataclasses import replace
from types import ModuleType

import numpy as np
import pytest

from fedkeeper.errors import ObjectMissing, TaskError, UpdateRefused
from fedkeeper.runtime.environment import ClientAccess
from fedkeeper.runtime.forwarding import pack_update, unpack_task
from fedkeeper.runtime.memory import MemoryObjects
from fedkeeper.runtime.updates import Trained
from fedkeeper.runtime.wire import DataSpec, ForwardTask, Ref, assignment_name, weights_name
from functions.fl_invoker_weights_update import handler as invoker
from tests.functions.experiment import RUN, train_task
from tests.runtime.web import Asked, Reply, serving

ACCESS = ClientAccess(platform="openwhisk", auth="uuid:key")
ROWS = np.arange(7)
TENSORS = {"00:dense/kernel": np.ones((4, 2), np.float32), "01:dense/bias": np.zeros(2, np.float32)}
TRAINED = Trained(samples=7, loss=0.5, accuracy=None, seconds={"load": 0.1, "train": 0.2})


@pytest.fixture
def weights(store: MemoryObjects) -> Ref:
    """Weights and a client's rows in the store; no TensorFlow is needed to forward them."""
    store.put(assignment_name(RUN, "client_0"), {"rows": ROWS}, run=RUN, round_no=0)
    return store.put(weights_name(RUN, 0), TENSORS, run=RUN, round_no=0)


def forwarded(
    data: DataSpec,
    weights: Ref,
    store: MemoryObjects,
    answer: Callable[[bytes], bytes],
    *,
    max_model_bytes: int = 1 << 20,
) -> tuple[object, list[Asked]]:
    """Forward to a client that answers with `answer`: (result, what it was asked)."""

    def reply(asked: Asked) -> Reply:
        body = answer(base64.b64decode(json.loads(asked.body)["blob"]))
        return Reply(body=json.dumps({"blob": base64.b64encode(body).decode()}).encode())

    with serving(reply) as web:
        task = ForwardTask(
            train=train_task(data, weights, max_model_bytes=max_model_bytes),
            cluster="local",
            function="client_0",
            url=f"{web.url}/api/v1/namespaces/guest/actions/client_0",
            timeout_s=30.0,
        )
        try:
            return invoker.run(task, store, ACCESS), web.asked
        finally:
            assert len(web.asked) == 1


def test_the_clients_update_is_stored_under_the_key(
    data: DataSpec, store: MemoryObjects, weights: Ref
) -> None:
    """The client gets the task, the weights and its rows in one body; what it says of them is the result."""
    update = {name: value + 1 for name, value in TENSORS.items()}
    seen = []

    def client(body: bytes) -> bytes:
        seen.append(unpack_task(body))
        return pack_update(update, TRAINED)

    result, _ = forwarded(data, weights, store, client)
    ((task, got, rows),) = seen
    assert task == train_task(data, weights, max_model_bytes=1 << 20)
    assert list(got) == list(TENSORS)
    assert all(np.array_equal(got[name], TENSORS[name]) for name in TENSORS)
    assert np.array_equal(rows, ROWS)
    assert rows.dtype == np.int64
    assert result.update.name == task.key
    assert np.array_equal(store.get(task.key)["01:dense/bias"], np.ones(2))
    assert (result.samples, result.loss, result.accuracy) == (7, 0.5, None)
    assert set(result.seconds) == {"load", "train", "fetch", "client", "store"}


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"01:dense/bias": np.array([np.nan, 0], np.float32)}, "1 values that are NaN or infinite"),
        ({"01:dense/bias": np.zeros(3, np.float32)}, r"is float32\[3\], not float32\[2\]"),
        ({"01:dense/bias": np.zeros(2, np.float64)}, r"is float64\[2\], not float32\[2\]"),
        ({"more": np.zeros(1, np.float32)}, "'more' is unknown"),
    ],
)
def test_an_update_that_must_not_be_averaged_is_not_stored(
    data: DataSpec, store: MemoryObjects, weights: Ref, change: dict[str, np.ndarray], problem: str
) -> None:
    """The client is a stranger: what it hands in is checked before it is written."""
    with pytest.raises(UpdateRefused, match=problem):
        forwarded(data, weights, store, lambda _: pack_update({**TENSORS, **change}, TRAINED))
    assert train_task(data, weights).key not in store.shelf.objects


def test_a_client_cannot_choose_its_weight_in_the_average(
    data: DataSpec, store: MemoryObjects, weights: Ref
) -> None:
    """It was given seven rows, so seven it is."""
    boast = replace(TRAINED, samples=7_000_000)
    with pytest.raises(UpdateRefused, match="trained on 7000000 rows, it has 7"):
        forwarded(data, weights, store, lambda _: pack_update(TENSORS, boast))


def test_an_oversized_update_is_refused(data: DataSpec, store: MemoryObjects, weights: Ref) -> None:
    """By the task's own limit."""
    with pytest.raises(UpdateRefused, match="at most 39"):
        forwarded(data, weights, store, lambda _: pack_update(TENSORS, TRAINED), max_model_bytes=39)


@pytest.mark.parametrize("body", [b"", b"hello", b"\xff" * 64])
def test_nonsense_is_named(data: DataSpec, store: MemoryObjects, weights: Ref, body: bytes) -> None:
    """Bytes that are no tensors."""
    with pytest.raises(TaskError, match="the body is damaged"):
        forwarded(data, weights, store, lambda _: body)


def test_nothing_is_sent_when_the_weights_are_missing(data: DataSpec, store: MemoryObjects) -> None:
    """The client is not troubled with what cannot work."""
    with serving(lambda _: Reply()) as web:
        task = ForwardTask(
            train=train_task(data, Ref(name="none", sha256="", nbytes=1)),
            cluster="local",
            function="client_0",
            url=web.url,
            timeout_s=30.0,
        )
        with pytest.raises(ObjectMissing):
            invoker.run(task, store, ACCESS)
        assert not web.asked


def test_a_real_client_answers_the_forwarder(
    data: DataSpec, client: ModuleType, store: MemoryObjects, initial: Ref
) -> None:
    """The same update as on the direct route, bit for bit."""
    direct = client.run(train_task(data, initial), store).update
    rows = store.get(assignment_name(RUN, "client_0"))["rows"]
    result, _ = forwarded(data, initial, store, client.run_forwarded)
    assert result.update == direct
    assert result.samples == len(rows)
