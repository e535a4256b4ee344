"""From a config to a run that any keeper can conduct, and whether a keeper's own config has what it needs."""

from __future__ import annotations

import math
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import msgspec

from fedkeeper.config import Experiment
from fedkeeper.core.model import ClientPlace, RunSpec
from fedkeeper.errors import ConfigError
from fedkeeper.keeper.tasks import TaskBook
from fedkeeper.wiring.packages import learning_targets


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """What is sent to POST /v1/runs. No secrets."""

    spec: RunSpec
    config: Mapping[str, Any]  # redacted
    fingerprint: Mapping[str, str]  # what of it defines the run, by key

    def encoded(self) -> bytes:
        """The request's body."""
        return msgspec.json.encode(
            {"spec": asdict(self.spec), "config": self.config, "fingerprint": self.fingerprint}
        )


def submission(experiment: Experiment, run: str) -> Submission:
    """The run `run` of `experiment`."""
    learning = experiment.learning
    limits, stopping = learning.limits, learning.stopping
    config, fingerprint = experiment.redacted(), experiment.fingerprint()
    book = TaskBook(
        model=learning.model_spec(),
        data=learning.data_spec(),
        training=learning.training_spec(),
        partition=learning.partition_spec(),
        max_model_bytes=limits.model_bytes_max,
        config=config,
        fingerprint=fingerprint,
        submission=uuid.uuid4().hex,
    )
    waves = math.ceil(len(learning_targets(experiment)) / limits.deployments_in_flight_max)
    spec = RunSpec(
        run=run,
        digest=experiment.digest(),
        seed=experiment.learning_seed,
        clients=tuple(
            ClientPlace(client=place.client, cluster=place.cluster, route=place.route)
            for place in experiment.placements()
        ),
        server_cluster=learning.server_config.server_cluster_name,
        clients_per_round=learning.clients_info.num_clients_per_round,
        rounds_max=stopping.rounds_max,
        target_accuracy=stopping.target_accuracy,
        min_updates=learning.min_updates,
        attempts_max=limits.attempts_max,
        client_timeout_ms=round(limits.client_timeout_s * 1000),
        server_timeout_ms=round(limits.server_timeout_s * 1000),
        round_timeout_ms=round(limits.round_timeout_s * 1000),
        retry_backoff_ms=round(limits.retry_backoff_s * 1000),
        deploy_timeout_ms=round(limits.deploy_timeout_s * 1000 * waves),
        book=book.text(),
        shards=learning.aggregation.shards,
        shard_bytes_max=learning.aggregation.shard_bytes_max,
        shard_updates_bytes_max=learning.aggregation.shard_updates_bytes_max,
        early_updates_min=learning.aggregation.early_updates_min,
        early_bytes_min=learning.aggregation.early_bytes_min,
    )
    return Submission(spec=spec, config=config, fingerprint=fingerprint)


def check_submission(experiment: Experiment, spec: RunSpec, fingerprint: Mapping[str, Any]) -> None:
    """Return if a keeper with this config can conduct the run. ConfigError names every difference."""
    if faults := list(_differences(experiment, spec, fingerprint)):
        raise ConfigError(
            "\n  ".join([f"run {spec.run} does not fit the keepers' config", *faults]),
            hint="give the keepers and the command the same clusters, routes and store",
        )


def _differences(experiment: Experiment, spec: RunSpec, fingerprint: Mapping[str, Any]) -> Iterator[str]:
    known = experiment.clusters()
    places = {place.cluster: place.route for place in spec.clients}
    for name in sorted({*places, spec.server_cluster} - known.keys()):
        yield f"cluster {name!r} is not in it; it has {', '.join(known)}"
    for name, route in sorted(places.items()):
        if name in known and known[name].route != route:
            yield f"cluster {name!r} has route {known[name].route!r} in it, not {route!r}"
    own = experiment.fingerprint()
    for key in sorted(key for key in own if ".mongo_config." in key):
        if key in fingerprint and fingerprint[key] != own[key]:
            yield f"{key} is {own[key]} in it, not {fingerprint[key]}"
