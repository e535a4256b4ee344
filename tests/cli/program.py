"""The commands as a real process, over a fake session: `python -m tests.cli.program '{script}' main -s`."""

import json
import sys
from pathlib import Path

from fedkeeper import cli
from tests.cli.fakes import Script, World


def run() -> None:
    """Leave the file `waiting` when the session waits, and `closed` when it was closed."""
    told, command, *arguments = sys.argv[1:]
    script = Script(**json.loads(told), on_wait=Path("waiting").touch)
    world = World(script=script, on_close=Path("closed").touch)
    getattr(cli, command)(arguments, obj=world.backend(), prog_name=f"{command}.py")


if __name__ == "__main__":
    run()
