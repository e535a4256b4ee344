"""What must be built by hand before `-d`: the images of functions on platforms that run nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedkeeper import packaging
from fedkeeper.config import Experiment, Learning
from fedkeeper.deployment import Target
from fedkeeper.platforms import describe, part


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageContexts:
    """What was written for one platform."""

    platform: str
    stack: Path
    images: Mapping[str, str]  # function -> image


def write_images(
    experiment: Experiment, chosen: Mapping[str, Sequence[Target]], folder: Path
) -> tuple[ImageContexts, ...]:
    """Write what the images of the chosen functions are built from, below `folder`, platform by platform.

    `chosen`: scenario -> functions on clusters. Those of platforms that run packages are left out, and so are
    embedded clusters. ConfigError: a function has no source for the platform, or a file cannot be written.
    """
    archives: dict[str, dict[str, bytes]] = {}
    images: dict[str, dict[str, str]] = {}
    for scenario, targets in chosen.items():
        found = experiment.scenario(scenario)
        include = found.data_sampling.include if isinstance(found, Learning) else ()
        for target in targets:
            cluster = experiment.cluster(target.cluster)
            platform, function = cluster.platform, target.function
            if not describe(platform).build_command or cluster.embedded:
                continue
            source = experiment.source(scenario, function, platform)
            archives.setdefault(platform, {})[function] = packaging.build(source, platform, include=include)
            image = experiment.function(scenario, function, platform).image
            images.setdefault(platform, {})[function] = image or f"{function}:latest"
    return tuple(
        ImageContexts(
            platform=platform,
            stack=part(platform, "images").write_contexts(folder / platform, packages, images[platform]),
            images=images[platform],
        )
        for platform, packages in archives.items()
    )
