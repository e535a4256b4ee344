"""fl_client of the benchmark on OpenWhisk: the arguments are a TrainTask."""

import handler

from fedkeeper.runtime import activation
from fedkeeper.runtime.wire import TrainTask


def main(arguments):
    """Entry point of the action."""
    return activation.openwhisk(arguments, TrainTask, handler.run)
