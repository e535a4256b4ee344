"""How a node stands: for people, for placement and for the API."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from fedkeeper.replication.base import LogStatus, Member, Role

if TYPE_CHECKING:
    from fedkeeper.replication.raft.node import RaftNode

ROLES: Final = (Role.FOLLOWER, Role.CANDIDATE, Role.LEADER)  # in the library's order


def problem_of(node: RaftNode) -> str:
    """Why nothing can be committed here now; empty if it can."""
    if node.failure is not None:
        return str(node.failure)
    if problem := node.beginning.problem():
        return problem
    if not node.membership.belongs:
        return f"{node.name} is no member of the cluster, as far as it knows"
    if not node.leader:
        missing = sorted(node.other_names - node.connected_names)
        if 2 * len(missing) > len(node.other_names):
            return f"no majority: {', '.join(missing)} cannot be reached"
        return "no leader"
    return ""


def status_of(node: RaftNode) -> LogStatus:
    """As of now."""
    leads, here = node.leads, node.connected_names | {node.name}

    def match(name: str) -> int | None:
        if not leads:
            return None
        return node.last_index if name == node.name else node.leading.match_of(name)

    return LogStatus(
        name=node.name,
        role=ROLES[node.role],
        leader=node.leader,
        term=node.term,
        voted_for=node.voted_for,
        commit_index=node.commit_index,
        applied_index=node.applied_index,
        last_index=node.last_index,
        members=tuple(
            Member(name=name, address=address, connected=name in here, match_index=match(name))
            for name, address in sorted(node.membership.members.items())
        ),
        ready=node.ready,
        problem=problem_of(node),
        counts=node.beginning.counts,
    )
