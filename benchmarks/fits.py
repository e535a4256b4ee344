"""The floor of benchmarks.training: a warm process that trains clients one after another, with no round.

Started with a JSON object as its argument (see `Fits`); for every line that it reads it trains every client
once, and answers with the wall and CPU seconds of that. It uses the product's own training step, with one
thread, at the workers' nice value.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

import numpy as np

from fedkeeper.runtime import models
from fedkeeper.runtime.data import Examples
from fedkeeper.runtime.training import train
from fedkeeper.runtime.wire import DataSpec, ModelSpec, Ref, Source, TrainingSpec, TrainTask

_NOWHERE = Source(url="benchmark:nothing")


def task(asked: dict[str, Any], client: int) -> TrainTask:
    """What a client would be told."""
    return TrainTask(
        key=f"floor/{client}",
        run="floor",
        round=1,
        client=f"client_{client}",
        weights=Ref(name="", sha256="", nbytes=0),
        model=ModelSpec(name=asked["model"], input_shape=(28, 28, 1)),
        data=DataSpec(
            train_images=_NOWHERE, train_labels=_NOWHERE, test_images=_NOWHERE, test_labels=_NOWHERE
        ),
        training=TrainingSpec(
            optimizer=asked["optimizer"], learning_rate=1e-3, local_epochs=1, batch_size=asked["batch"]
        ),
        seed=0,
        max_model_bytes=1 << 30,
    )


def main() -> None:
    """Trace with a first fit, say so, then a set of fits for every line."""
    asked = json.loads(sys.argv[1])
    os.nice(asked["nice"])
    with np.load(asked["data"]) as arrays:
        images, labels = arrays["x_train"], arrays["y_train"].astype(np.int64)
    shards = [
        Examples(
            images[start : start + asked["samples"]], labels[start : start + asked["samples"]], (28, 28, 1)
        )
        for start in range(0, asked["clients"] * asked["samples"], asked["samples"])
    ]
    weights = models.weights_of(models.build(task(asked, 0).model, seed=0))
    train(task(asked, 0), weights, shards[0])
    print(json.dumps({"ready": True}), flush=True)
    for _ in sys.stdin:
        wall, cpu = time.perf_counter(), time.process_time()
        for number, rows in enumerate(shards):
            train(task(asked, number), weights, rows)
        taken = {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}
        print(json.dumps(taken), flush=True)


if __name__ == "__main__":
    main()
