"""What a command has at hand once the keepers are reached."""

from __future__ import annotations

from dataclasses import dataclass

from fedkeeper.cli.interrupts import Interrupts
from fedkeeper.cli.session import Cluster
from fedkeeper.cli.show import Screen
from fedkeeper.config import Experiment


@dataclass(frozen=True, slots=True, kw_only=True)
class Reached:
    """The keepers, whose they are, and where to say what."""

    experiment: Experiment
    cluster: Cluster
    screen: Screen
    interrupts: Interrupts
