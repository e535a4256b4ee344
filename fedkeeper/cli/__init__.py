"""The commands: the only place that prints or exits."""

from fedkeeper.cli.commands import deploy, fedkeeper, main

__all__ = ["deploy", "fedkeeper", "main"]
