"""fl_server_aggregator on OpenFaaS: the body is an AggregateTask in JSON."""

import handler

from fedkeeper.runtime import activation
from fedkeeper.runtime.wire import AggregateTask


def main(request):
    """What the watchdog passes requests on to."""
    call_id = request.headers.get("X-Call-Id", "")
    return activation.http(request, AggregateTask, handler.run, activation_id=call_id)
