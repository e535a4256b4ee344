"""fl_invoker_weights_update on Cloud Functions: the body is a ForwardTask in JSON."""

import handler

from fedkeeper.runtime import activation
from fedkeeper.runtime.environment import client_access
from fedkeeper.runtime.wire import ForwardTask


def main(request):
    """Entry point of the HTTP function."""
    return activation.google(
        request, ForwardTask, lambda task, store: handler.run(task, store, client_access(task.cluster))
    )
