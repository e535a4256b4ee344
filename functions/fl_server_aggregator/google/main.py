"""fl_server_aggregator on Cloud Functions: the body is an AggregateTask in JSON."""

import handler

from fedkeeper.runtime import activation
from fedkeeper.runtime.wire import AggregateTask


def main(request):
    """Entry point of the HTTP function."""
    return activation.google(request, AggregateTask, handler.run)
