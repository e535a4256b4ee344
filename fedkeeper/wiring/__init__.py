"""The composition root: a config becomes objects that know each other, opened and closed in one place."""

from fedkeeper.wiring.session import ExperimentSession, open_experiment

__all__ = ["ExperimentSession", "open_experiment"]
