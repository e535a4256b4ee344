"""fl_server_init on Cloud Functions: the body is an InitTask in JSON."""

import handler

from fedkeeper.runtime import activation
from fedkeeper.runtime.wire import InitTask


def main(request):
    """Entry point of the HTTP function."""
    return activation.google(request, InitTask, handler.run)
