from __future__ import annotations

import base64
import json
from collections.abc import Callable
from dataclasses import replace

import pytest

from fedkeeper.errors import StoreUnavailable, TaskError, UpdateRefused
from fedkeeper.runtime import activation
from fedkeeper.runtime.base import ObjectStore
from fedkeeper.runtime.memory import MemoryObjects
from fedkeeper.runtime.wire import (
    WIRE_VERSION,
    DataSpec,
    ForwardTask,
    InitResult,
    InitTask,
    ModelSpec,
    Outcome,
    PartitionSpec,
    Ref,
    Source,
    TrainingSpec,
    TrainTask,
    decode,
    encode,
)

DATA = DataSpec(**{name: Source(url="own:data") for name in DataSpec.__slots__})
TASK = InitTask(
    key="trial/init/a0",
    run="trial",
    clients=("c",),
    model=ModelSpec(name="cnn", input_shape=(28, 28, 1)),
    data=DATA,
    partition=PartitionSpec(scheme="iid"),
    seed=1,
    max_model_bytes=1,
)
RESULT = InitResult(weights=Ref(name="trial/w0", sha256="00", nbytes=1), samples={"c": 1}, seconds={})


def succeed(_task: InitTask, _store: ObjectStore) -> InitResult:
    """A step that works."""
    return RESULT


def fail(error: BaseException) -> Callable[[InitTask, ObjectStore], InitResult]:
    """A step that does not."""

    def step(_task: InitTask, _store: ObjectStore) -> InitResult:
        raise error

    return step


class Request:
    """What Flask gives to a Cloud Function, as far as it is used."""

    def __init__(self, body: bytes, **headers: str) -> None:
        self.body, self.headers = body, headers

    def get_data(self) -> bytes:
        """The body."""
        return self.body


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> MemoryObjects:
    """The store that FEDKEEPER_STORE names."""
    memory = MemoryObjects()
    address = {
        "hosts": "db:1",
        "database": "d",
        "collection": "c",
        "username": "u",
        "password": "pass:word-1",
    }
    monkeypatch.setenv("FEDKEEPER_STORE", json.dumps(address))
    monkeypatch.setattr(activation, "open_store", lambda _address: memory)
    monkeypatch.setenv("__OW_ACTIVATION_ID", "f" * 32)
    return memory


def test_a_result_is_answered_and_published(store: MemoryObjects) -> None:
    """The outcome carries the same result as the answer, and the platform's activation ID."""
    answer = activation.openwhisk(encode(TASK), InitTask, succeed)
    outcome = store.shelf.outcomes[TASK.key]
    assert answer == encode(RESULT)
    assert outcome == replace(outcome, ok=True, result=answer, reason="", activation_id="f" * 32, run="trial")
    assert decode(InitResult, outcome.result) == RESULT


def test_google_takes_its_activation_id_from_the_header(store: MemoryObjects) -> None:
    """Function-Execution-Id is what the keeper chose when it invoked."""
    request = Request(json.dumps(encode(TASK)).encode(), **{"Function-Execution-Id": "abc"})
    body, status, headers = activation.google(request, InitTask, succeed)
    assert (status, headers["Content-Type"]) == (200, "application/json")
    assert json.loads(body) == encode(RESULT)
    assert store.shelf.outcomes[TASK.key].activation_id == "abc"


def test_a_key_that_another_activation_holds_is_left_to_it(store: MemoryObjects) -> None:
    """Nothing is done and nothing published: the other one will."""
    store.claim(TASK.key, run="trial", activation_id="another")
    answer = activation.openwhisk(encode(TASK), InitTask, fail(AssertionError("must not run")))
    assert answer == {"duplicate": True, "key": TASK.key}
    assert not store.shelf.outcomes


def test_the_same_activation_may_run_again(store: MemoryObjects, monkeypatch: pytest.MonkeyPatch) -> None:
    """A platform that reschedules an activation gets its work done; the first outcome stands."""
    first = activation.openwhisk(encode(TASK), InitTask, succeed)
    outcome = store.shelf.outcomes[TASK.key]
    monkeypatch.setattr(activation.time, "time_ns", lambda: 1)
    assert activation.openwhisk(encode(TASK), InitTask, succeed) == first
    assert store.shelf.outcomes[TASK.key] == outcome


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (
            UpdateRefused("tensor 'w' has 3 values that are NaN"),
            "UpdateRefused: tensor 'w' has 3 values that are NaN",
        ),
        (TaskError("no such array", hint="try x"), "TaskError: no such array (try x)"),
        (ValueError("two\n  lines"), "ValueError: two lines"),
        (MemoryError(), "MemoryError:"),
        (SystemExit(3), "SystemExit: 3"),
        (RuntimeError("x" * 10_000), "RuntimeError: " + "x" * 486),
    ],
)
def test_a_failure_is_published_with_one_line(
    store: MemoryObjects, error: BaseException, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Class and message; the platform is told the same; the traceback is in the activation's log."""
    answer = activation.openwhisk(encode(TASK), InitTask, fail(error))
    outcome = store.shelf.outcomes[TASK.key]
    assert answer == {"error": reason}
    assert outcome == replace(outcome, ok=False, result={}, reason=reason)
    assert "in step" in capsys.readouterr().err


def test_google_says_500_with_the_reason(store: MemoryObjects) -> None:
    """In JSON, so that whoever reads the answer learns as much as from the store."""
    request = Request(json.dumps(encode(TASK)).encode())
    body, status, headers = activation.google(request, InitTask, fail(TaskError("no")))
    assert (status, headers["Content-Type"], json.loads(body)) == (
        500,
        "application/json",
        {"error": "TaskError: no"},
    )
    assert store.shelf.outcomes[TASK.key].activation_id  # one was made up


@pytest.mark.parametrize("body", [b"", b"[1]", b"{", b"{}", b'{"key": 3, "run": "r"}'])
def test_a_request_that_is_no_task_is_answered_only(store: MemoryObjects, body: bytes) -> None:
    """Without a key there is nothing to publish under."""
    _, status, _ = activation.google(Request(body), InitTask, succeed)
    assert status == 500
    assert not store.shelf.outcomes


@pytest.mark.parametrize("change", [{"wire": WIRE_VERSION + 1}, {"wire": "1"}, {"seed": "one"}])
def test_a_task_of_another_version_fails_under_its_key(store: MemoryObjects, change: dict) -> None:
    """The keeper learns that what it sent cannot be read, and need not wait for the deadline."""
    activation.openwhisk({**encode(TASK), **change}, InitTask, succeed)
    outcome = store.shelf.outcomes[TASK.key]
    assert not outcome.ok
    assert outcome.reason.startswith("TaskError: InitTask")


def test_a_loss_that_is_not_a_number_never_leaves(store: MemoryObjects) -> None:
    """JSON has no NaN; the failure says which field it was."""
    bad = replace(RESULT, seconds={"model": float("nan")})
    answer = activation.openwhisk(encode(TASK), InitTask, lambda *_: bad)
    assert answer["error"] == "TaskError: InitResult.seconds.model is nan, and JSON has no such number"
    assert not store.shelf.outcomes[TASK.key].ok


def test_secrets_stay_inside(
    store: MemoryObjects, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever a library puts into its message: neither answer, nor outcome, nor log shows them."""
    key = "-----BEGIN PRIVATE KEY-----\n" + "A" * 64 + "\n-----END PRIVATE KEY-----\n"
    clients = {
        "ow": {"platform": "openwhisk", "auth": "23bc46b1-71f6:123zO3xZCLrMN6v2"},
        "gcf": {"platform": "google", "service_account": {"private_key": key}},
    }
    monkeypatch.setenv("FEDKEEPER_CLIENTS", json.dumps(clients))
    leak = f"mongodb://u:pass:word-1@db 23bc46b1-71f6:123zO3xZCLrMN6v2 123zO3xZCLrMN6v2 {'A' * 64} {key}"
    answer = activation.openwhisk(encode(TASK), InitTask, fail(RuntimeError(leak)))
    told = str(answer) + store.shelf.outcomes[TASK.key].reason + capsys.readouterr().err
    for secret in ("word-1", "123zO3xZCLrMN6v2", "A" * 64):
        assert secret not in told
    assert "***" in told


def test_a_function_without_a_store_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """It was deployed for the invoker route."""
    monkeypatch.delenv("FEDKEEPER_STORE", raising=False)
    assert "FEDKEEPER_STORE is not set" in activation.openwhisk(encode(TASK), InitTask, succeed)["error"]


def test_a_store_that_is_away_is_reported_to_the_platform() -> None:
    """Nothing can be published then; the keeper learns it from the activation."""

    class Away(MemoryObjects):
        def publish(self, outcome: Outcome) -> bool:
            raise StoreUnavailable(f"no primary for {outcome.key}")

    answer = activation.perform(
        encode(TASK), InitTask, fail(TaskError("no")), activation_id="a", store=Away()
    )
    assert answer == {
        "error": "TaskError: no; nor could that be published: StoreUnavailable: no primary for trial/init/a0"
    }


def test_a_forwarded_training_goes_by_the_trainings_key(store: MemoryObjects) -> None:
    """So the keeper waits for one key, whichever route the client is on."""
    train = TrainTask(
        key="trial/r1/c/a0",
        run="trial",
        round=1,
        client="c",
        weights=RESULT.weights,
        model=TASK.model,
        data=DATA,
        training=TrainingSpec(optimizer="sgd", learning_rate=0.1, local_epochs=1, batch_size=1),
        seed=1,
        max_model_bytes=1,
    )
    forward = ForwardTask(train=train, cluster="gcf", function="c", url="http://c", timeout_s=1.0)
    activation.openwhisk(encode(forward), ForwardTask, lambda *_: RESULT)
    assert store.shelf.outcomes["trial/r1/c/a0"].run == "trial"


def test_bytes_travel_both_ways() -> None:
    """As base64 on OpenWhisk, as they are on Cloud Functions; no store is asked."""
    blob = base64.b64encode(b"\0abc").decode()
    answer = activation.openwhisk_blob({"blob": blob}, lambda body: body[::-1])
    assert base64.b64decode(answer["blob"]) == b"cba\0"
    assert activation.http_blob(Request(b"\0abc"), lambda body: body[::-1]) == (
        b"cba\0",
        200,
        {"Content-Type": "application/octet-stream"},
    )


def test_failures_with_bytes_are_reported_the_platforms_way() -> None:
    """{"error": ...} on OpenWhisk, HTTP 500 on Cloud Functions; bad base64 is a failure as well."""

    def broken(_body: bytes) -> bytes:
        raise TaskError("no")

    assert activation.openwhisk_blob({"blob": "AA=="}, broken) == {"error": "TaskError: no"}
    assert "error" in activation.openwhisk_blob({"blob": "?"}, broken)
    assert activation.http_blob(Request(b""), broken)[:2] == (b'{"error":"TaskError: no"}', 500)
