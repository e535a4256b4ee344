"""fl_invoker_weights_update on OpenFaaS: the body is a ForwardTask in JSON."""

import handler

from fedkeeper.runtime import activation
from fedkeeper.runtime.environment import client_access
from fedkeeper.runtime.wire import ForwardTask


def main(request):
    """What the watchdog passes requests on to."""
    return activation.http(
        request,
        ForwardTask,
        lambda task, store: handler.run(task, store, client_access(task.cluster)),
        activation_id=request.headers.get("X-Call-Id", ""),
    )
