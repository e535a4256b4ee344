"""nodeinfo on OpenWhisk: takes nothing, answers the facts."""

import handler


def main(_arguments):
    """Entry point of the action."""
    return handler.describe()
