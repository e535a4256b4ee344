"""fl_server_init on OpenWhisk: the arguments are an InitTask."""

import handler

from fedkeeper.runtime import activation
from fedkeeper.runtime.wire import InitTask


def main(arguments):
    """Entry point of the action."""
    return activation.openwhisk(arguments, InitTask, handler.run)
