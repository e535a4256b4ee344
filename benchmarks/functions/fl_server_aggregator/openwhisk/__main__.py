"""fl_server_aggregator on OpenWhisk: the arguments are an AggregateTask."""

import handler

from fedkeeper.runtime import activation
from fedkeeper.runtime.wire import AggregateTask


def main(arguments):
    """Entry point of the action."""
    return activation.openwhisk(arguments, AggregateTask, handler.run)
