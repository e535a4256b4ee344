"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import click

SAMPLE: Final = "config-sample.yaml"
CONFIG: Final = "config.yaml"
CONTEXT: Final = {"help_option_names": ["-h", "--help"], "max_content_width": 110}

config_option = click.option(
    "-c",
    "--configfile",
    default=CONFIG,
    show_default=True,
    type=click.Path(path_type=Path),
    help=f"The experiment, YAML; see {SAMPLE}.",
)
verbose_option = click.option(
    "-v", "--verbose", is_flag=True, help="Events and tracebacks on stderr as they come."
)
fresh_option = click.option("--fresh", is_flag=True, help="Abandon an unfinished run and start anew.")
new_option = click.option("--new", is_flag=True, help="Start another run beside an unfinished one.")
detach_option = click.option("--detach", is_flag=True, help="Start it and leave; see it again with attach.")
json_option = click.option("--json", "plain", is_flag=True, help="As JSON, for programs.")
