"""fl_invoker_weights_update: bring weights to a client without credentials, and its update to the store."""

from __future__ import annotations

from time import monotonic, perf_counter

from fedkeeper.errors import UpdateRefused
from fedkeeper.runtime.assignment import assigned_rows
from fedkeeper.runtime.base import ObjectStore
from fedkeeper.runtime.environment import ClientAccess
from fedkeeper.runtime.forwarding import pack_task, unpack_update
from fedkeeper.runtime.posting import Client, post
from fedkeeper.runtime.updates import check_update, shapes
from fedkeeper.runtime.wire import ForwardTask, TrainResult

_HEADER_BYTES_MAX = 1 << 20  # names, shapes and metadata beside the tensors


def run(task: ForwardTask, store: ObjectStore, access: ClientAccess) -> TrainResult:
    """Post the training to the client exactly once, check its update and store it under the task's key.

    Raises TaskError: the client failed, did not answer within `timeout_s`, or answered nonsense;
    UpdateRefused: its update must not be averaged.
    """
    deadline = monotonic() + task.timeout_s
    begun = perf_counter()
    train = task.train
    weights = store.get(train.weights.name, sha256=train.weights.sha256)
    rows = assigned_rows(train, store)
    body = pack_task(train, weights, rows)
    sent = perf_counter()
    client = Client(name=f"{task.cluster}/{task.function}", url=task.url, access=access)
    answer = post(client, body, deadline=deadline, answer_bytes_max=train.max_model_bytes + _HEADER_BYTES_MAX)
    update, trained = unpack_update(answer)
    answered = perf_counter()
    check_update(update, shapes(weights), bytes_max=train.max_model_bytes)
    if trained.samples != rows.size:  # its weight in the average is not for the client to choose
        raise UpdateRefused(f"{client.name} says it trained on {trained.samples} rows, it has {rows.size}")
    ref = store.hand_in(task.key, update, run=train.run, round_no=train.round, whole=train.whole)
    own = {"fetch": sent - begun, "client": answered - sent, "store": perf_counter() - answered}
    return TrainResult(
        update=ref,
        samples=trained.samples,
        loss=trained.loss,
        accuracy=trained.accuracy,
        seconds={**trained.seconds, **own},
    )
