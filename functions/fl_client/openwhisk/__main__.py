"""fl_client on OpenWhisk: a TrainTask, or {"blob": base64} from the forwarding function."""

import handler

from fedkeeper.runtime import activation
from fedkeeper.runtime.wire import TrainTask


def main(arguments):
    """Entry point of the action."""
    if "blob" in arguments:
        return activation.openwhisk_blob(arguments, handler.run_forwarded)
    return activation.openwhisk(arguments, TrainTask, handler.run)
