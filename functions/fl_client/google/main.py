"""fl_client on Cloud Functions: a TrainTask in JSON, or a binary body from the forwarding function."""

import handler

from fedkeeper.runtime import activation
from fedkeeper.runtime.wire import TrainTask


def main(request):
    """Entry point of the HTTP function."""
    if request.mimetype == activation.BINARY:
        return activation.http_blob(request, handler.run_forwarded)
    return activation.google(request, TrainTask, handler.run)
