"""FedAvg over a synthetic model, which notes when each round began and was aggregated."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, Context, Message
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

TENSOR = 2**18  # numbers, as in benchmarks/functions/fl_server_init
CONNECT_S_MAX = 300

app = ServerApp()


class Noted(FedAvg):
    """FedAvg with a journal: one line for each round, Unix seconds."""

    def __init__(self, journal: Path, **settings: Any) -> None:
        super().__init__(**settings)
        self._journal = journal
        self._started = 0.0

    def configure_train(self, server_round: int, *rest: Any) -> Iterable[Message]:
        """Begin a round."""
        self._started = time.time()
        return super().configure_train(server_round, *rest)

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
        """End a round."""
        trained, arrived = time.time(), list(replies)
        result = super().aggregate_train(server_round, arrived)
        line = {
            "round": server_round,
            "updates": sum(not one.has_error() for one in arrived),
            "started": self._started,
            "trained": trained,
            "aggregated": time.time(),
        }
        with self._journal.open("a") as file:
            file.write(json.dumps(line) + "\n")
        return result


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Called by Flower."""
    clients, numbers = int(context.run_config["clients"]), int(context.run_config["numbers"])
    end = time.monotonic() + CONNECT_S_MAX
    while (here := len(list(grid.get_node_ids()))) < clients:
        if time.monotonic() > end:
            raise TimeoutError(f"{here} of {clients} SuperNodes in {CONNECT_S_MAX} s")
        time.sleep(0.2)
    chance = np.random.default_rng(1)
    sizes = [min(TENSOR, numbers - at) for at in range(0, numbers, TENSOR)]
    strategy = Noted(
        Path(str(context.run_config["journal"])),
        fraction_evaluate=0.0,
        min_train_nodes=clients,
        min_available_nodes=clients,
    )
    strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord([chance.standard_normal(size, np.float32) for size in sizes]),
        num_rounds=int(context.run_config["rounds"]),
    )
