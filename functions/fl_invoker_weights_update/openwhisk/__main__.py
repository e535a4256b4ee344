"""fl_invoker_weights_update on OpenWhisk: the arguments are a ForwardTask."""

import handler

from fedkeeper.runtime import activation
from fedkeeper.runtime.environment import client_access
from fedkeeper.runtime.wire import ForwardTask


def main(arguments):
    """Entry point of the action."""
    return activation.openwhisk(
        arguments, ForwardTask, lambda task, store: handler.run(task, store, client_access(task.cluster))
    )
