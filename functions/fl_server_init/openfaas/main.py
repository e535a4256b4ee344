"""fl_server_init on OpenFaaS: the body is an InitTask in JSON."""

import handler

from fedkeeper.runtime import activation
from fedkeeper.runtime.wire import InitTask


def main(request):
    """What the watchdog passes requests on to."""
    call_id = request.headers.get("X-Call-Id", "")
    return activation.http(request, InitTask, handler.run, activation_id=call_id)
