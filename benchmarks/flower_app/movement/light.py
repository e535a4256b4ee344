"""Many clients in one process, for machines that have no room for a SuperNode and a ClientApp process each.

    python -m movement.light --superlink 127.0.0.1:8000 --clients 100

Each client has a thread, a connection and a key of its own, and exchanges the same messages with the
SuperLink as a SuperNode does; it only starts no process. This uses parts of flwr that are not its public
interface (flwr.supernode, as of 1.42).
"""

from __future__ import annotations

import argparse
import threading
import time

from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_utils import pull_and_inflate_object_from_tree, push_objects
from flwr.supercore.run import RunNotRunningException
from flwr.supernode.fleet_http_connection import http_request_response

from movement.client import moved

POLL_S = 3.0  # as a SuperNode; 100 clients that ask five times a second fill a core of the server


def serve(superlink: str) -> None:
    """Be one client, for ever."""
    with http_request_response(superlink, insecure=True) as connection:
        node_id, receive, send, _, _, pull_object, push_object, confirm = connection
        while True:
            if (received := receive()) is None:
                time.sleep(POLL_S)
                continue
            envelope, tree = received
            run_id, message_id = envelope.metadata.run_id, envelope.metadata.message_id
            try:
                message = pull_and_inflate_object_from_tree(
                    tree,
                    lambda name, run_id=run_id: pull_object(run_id, name),
                    lambda _, run_id=run_id, message_id=message_id: confirm(run_id, message_id),
                    return_type=type(envelope),
                )
                message.metadata.__dict__["_message_id"] = message_id
                reply = moved(message, node_id)
                with no_object_id_recompute():
                    reply.metadata.__dict__["_message_id"] = reply.object_id
                    objects = get_all_nested_objects(reply)
                    wanted, session = send(reply, get_object_tree(reply), 0.0)
                    push_objects(
                        objects,
                        lambda name, data, run_id=run_id, session=session: push_object(
                            run_id, session, name, data
                        ),
                        object_ids_to_push=wanted,
                    )
            except RunNotRunningException:
                continue


def main() -> None:
    """Serve until a signal ends the process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--superlink", required=True)
    parser.add_argument("--clients", type=int, required=True)
    chosen = parser.parse_args()
    threads = [
        threading.Thread(target=serve, args=(chosen.superlink,), daemon=True) for _ in range(chosen.clients)
    ]
    for one in threads:
        one.start()
    for one in threads:
        one.join()


if __name__ == "__main__":
    main()
