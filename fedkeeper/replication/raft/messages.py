"""What keepers say to each other, and whether a message is well-formed: peers may be of another version."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

FIELDS: Final[Mapping[str, Mapping[str, type]]] = {
    "append": {"term": int, "commit": int, "before": int, "before_term": int, "entries": list, "quiet": bool},
    "appended": {"term": int, "next": int, "reset": bool, "success": bool, "newcomer": bool},
    "snapshot": {"term": int, "index": int, "offset": int, "size": int, "data": bytes},
    "snapshot_ack": {"term": int, "index": int, "received": int},
    "pre_vote": {"term": int, "last_index": int, "last_term": int},
    "pre_vote_answer": {"term": int, "granted": bool, "current": int},
    "request_vote": {"term": int, "last_log_index": int, "last_log_term": int},
    "response_vote": {"term": int},
    "timeout_now": {"term": int},
    "forward": {"term": int, "key": bytes, "kind": int, "body": bytes},
    "refused": {"key": bytes, "reason": str},
    "seen": {"incarnations": dict},
    "begun": {"cluster": str, "founders": dict, "members": dict},
    "welcome": {"term": int, "cluster": str, "founders": dict, "until": int},
    "removed": {"term": int},
}

# These promise nothing that has to be on disk first: a leader's entries count as its own only once it has
# synced them itself, and it sends them meanwhile.
FREE: Final = frozenset({"append", "snapshot", "forward", "refused"})


def fault(message: Mapping[str, Any]) -> str:
    """What is wrong with it; empty if nothing is."""
    fields = FIELDS.get(str(message.get("type")))
    if fields is None:
        return f"unknown type {str(message.get('type'))[:40]!r}"
    for name, kind in fields.items():
        if type(message.get(name)) is not kind:
            return f"{message['type']}: {name} is no {kind.__name__}"
    if message["type"] == "append":
        return _fault_of_entries(message["entries"], message["before"])
    if message["type"] == "forward" and not 0 <= message["kind"] <= 255:
        return "forward: no such kind"
    return ""


def _fault_of_entries(entries: list[Any], before: int) -> str:
    for index, entry in enumerate(entries, before + 1):
        if (
            not isinstance(entry, list | tuple)
            or len(entry) != 3
            or type(entry[0]) is not bytes
            or not entry[0]
            or entry[1] != index
            or type(entry[2]) is not int
        ):
            return f"append: entry {index} is none"
    return ""
