"""nodeinfo on OpenFaaS: takes nothing, answers the facts in JSON."""

import json

import handler


def main(_request):
    """What the watchdog passes requests on to."""
    return json.dumps(handler.describe()), 200, {"Content-Type": "application/json"}
