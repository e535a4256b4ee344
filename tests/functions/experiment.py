"""A learnable experiment that is small enough to train in a blink: 8 x 8 images of four classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fedkeeper.runtime.wire import (
    AggregateTask,
    DataSpec,
    InitTask,
    ModelSpec,
    PartitionSpec,
    Ref,
    Source,
    TrainingSpec,
    TrainTask,
    UpdateRef,
)

RUN = "trial-1"
CLIENTS = ("client_0", "client_1", "client_2")
TRAIN_ROWS, TEST_ROWS = 240, 60
SMALL = ModelSpec(name="mnistnn", input_shape=(8, 8, 1), hidden_size=16, output_size=4)
TRAINING = TrainingSpec(optimizer="adam", learning_rate=0.01, local_epochs=2, batch_size=32)
BYTES_MAX = 64 << 20


def write_data(folder: Path) -> DataSpec:
    """Write the four arrays to one .npz: the class is the bright quarter of the image."""
    chance = np.random.Generator(np.random.PCG64(7))
    arrays = {}
    for part, rows in (("train", TRAIN_ROWS), ("test", TEST_ROWS)):
        labels = chance.integers(0, 4, rows).astype(np.uint8)
        images = chance.integers(0, 90, (rows, 8, 8)).astype(np.uint8)
        for image, label in zip(images, labels, strict=True):
            top, left = 4 * (label // 2), 4 * (label % 2)
            image[top : top + 4, left : left + 4] += 60
        arrays |= {f"x_{part}": images, f"y_{part}": labels}
    path = folder / "small.npz"
    np.savez(path, **arrays)
    sources = {name: Source(url=path.as_uri(), array=name) for name in arrays}
    return DataSpec(
        train_images=sources["x_train"],
        train_labels=sources["y_train"],
        test_images=sources["x_test"],
        test_labels=sources["y_test"],
    )


def init_task(data: DataSpec, *, model: ModelSpec = SMALL, seed: int = 1, scheme: str = "iid") -> InitTask:
    """Start `RUN`."""
    return InitTask(
        key=f"{RUN}/init/a0",
        run=RUN,
        clients=CLIENTS,
        model=model,
        data=data,
        partition=PartitionSpec(scheme=scheme),
        seed=seed,
        max_model_bytes=BYTES_MAX,
    )


def train_task(
    data: DataSpec,
    weights: Ref,
    *,
    client: str = CLIENTS[0],
    round_no: int = 1,
    model: ModelSpec = SMALL,
    training: TrainingSpec = TRAINING,
    max_model_bytes: int = BYTES_MAX,
) -> TrainTask:
    """One client's work of a round, first attempt."""
    return TrainTask(
        key=f"{RUN}/r{round_no}/{client}/a0",
        run=RUN,
        round=round_no,
        client=client,
        weights=weights,
        model=model,
        data=data,
        training=training,
        seed=1,
        max_model_bytes=max_model_bytes,
    )


def aggregate_task(
    data: DataSpec,
    base: Ref,
    updates: tuple[UpdateRef, ...],
    *,
    round_no: int = 1,
    model: ModelSpec = SMALL,
    shard: int = 0,
    shards: int = 1,
) -> AggregateTask:
    """Close a round, first attempt."""
    return AggregateTask(
        key=f"{RUN}/r{round_no}/aggregate/s{shard}/a0",
        shard=shard,
        shards=shards,
        run=RUN,
        round=round_no,
        base=base,
        updates=updates,
        model=model,
        data=data,
        max_model_bytes=BYTES_MAX,
    )
