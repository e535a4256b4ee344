"""fl_client on OpenFaaS: a TrainTask in JSON, or a binary body from the forwarding function."""

import handler

from fedkeeper.runtime import activation
from fedkeeper.runtime.wire import TrainTask


def main(request):
    """What the watchdog passes requests on to."""
    if request.mimetype == activation.BINARY:
        return activation.http_blob(request, handler.run_forwarded)
    call_id = request.headers.get("X-Call-Id", "")
    return activation.http(request, TrainTask, handler.run, activation_id=call_id)
