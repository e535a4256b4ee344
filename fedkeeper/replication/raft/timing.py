"""How soon a silent leader is replaced: the profiles of the config, as numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Seconds. A leader that is silent for `silence_min_s` to `silence_max_s` is replaced."""

    silence_min_s: float
    silence_max_s: float
    heartbeat_s: float  # less than a third of `silence_min_s`
    tick_s: float  # between two looks at what has no time of its own; at most a tenth of `silence_min_s`


TIMINGS: Final[Mapping[str, Timing]] = {
    "fast": Timing(silence_min_s=0.05, silence_max_s=0.1, heartbeat_s=0.015, tick_s=0.005),
    "steady": Timing(silence_min_s=0.15, silence_max_s=0.3, heartbeat_s=0.045, tick_s=0.01),
    "patient": Timing(silence_min_s=1.0, silence_max_s=2.0, heartbeat_s=0.2, tick_s=0.05),
}
