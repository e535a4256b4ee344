"""What of a config the functions are told, and which of them every round calls."""

from __future__ import annotations

from pathlib import Path

import msgspec

from fedkeeper.config import load
from fedkeeper.runtime.environment import AHEAD_VARIABLE, Ahead, StoreAddress
from fedkeeper.runtime.wire import ModelSpec
from fedkeeper.wiring.packages import Packages, learning_targets

SAMPLE = Path(__file__).parents[2] / "config-sample.yaml"


def test_clients_and_aggregator_are_ready_before_they_are_called_and_clients_know_their_model() -> None:
    """The function that draws the first weights is called once a run, and is not waited for by any round."""
    experiment = load(SAMPLE)
    packages = Packages(
        experiment=experiment,
        scenario=experiment.learning_name,
        store=StoreAddress(hosts="127.0.0.1:1", database="d", collection="c"),
        access={},
    )
    made = [packages.wanted(target).package for target in learning_targets(experiment)]
    assert {package.source for package in made if package.ahead} == {"fl_client", "fl_server_aggregator"}
    told = {package.source for package in made if AHEAD_VARIABLE in package.environment}
    assert told == {"fl_client"}
    client = next(package for package in made if package.source == "fl_client")
    text = client.environment[AHEAD_VARIABLE].get_secret_value()
    assert msgspec.json.decode(text, type=Ahead) == Ahead(
        model=ModelSpec(name="cnn", input_shape=(28, 28, 1), hidden_size=500, output_size=10),
        optimizer="adam",
        proximal_mu=0.0,
        batch_size=32,
    )
