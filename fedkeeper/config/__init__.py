"""One YAML file per experiment: read once, whole, typed, frozen; `load` is the way in."""

from fedkeeper.config.experiment import Config, Embedded, Experiment, Logs, Placement
from fedkeeper.config.files import shipped
from fedkeeper.config.functions import Function
from fedkeeper.config.keeper_rules import member_to_start
from fedkeeper.config.keepers import Api, Keepers, Member, Tls, host_and_port
from fedkeeper.config.mongo import Mongo
from fedkeeper.config.providers import Cluster
from fedkeeper.config.reading import load
from fedkeeper.config.redaction import secrets_of
from fedkeeper.config.scenario import Aggregation, Learning, Limits, Scenario

__all__ = [
    "Aggregation",
    "Api",
    "Cluster",
    "Config",
    "Embedded",
    "Experiment",
    "Function",
    "Keepers",
    "Learning",
    "Limits",
    "Logs",
    "Member",
    "Mongo",
    "Placement",
    "Scenario",
    "Tls",
    "host_and_port",
    "load",
    "member_to_start",
    "secrets_of",
    "shipped",
]
