"""nodeinfo on Cloud Functions: takes nothing, answers the facts in JSON."""

import json

import handler


def main(_request):
    """Entry point of the HTTP function."""
    return json.dumps(handler.describe()), 200, {"Content-Type": "application/json"}
