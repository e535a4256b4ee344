"""The composition root: a config becomes objects that know each other, opened and closed in one place."""

from fedkeeper.wiring.cluster import ClusterSession, open_cluster
from fedkeeper.wiring.hosting import host_keeper
from fedkeeper.wiring.session import ExperimentSession, open_experiment

__all__ = ["ClusterSession", "ExperimentSession", "host_keeper", "open_cluster", "open_experiment"]
