"""IAM of a function: its policy, and who may invoke it. Pure.

Source: googleapis, google/iam/v1/{policy,iam_policy}.proto; cloud.google.com/functions/docs/reference/iam.
Who may invoke a function is said, on the real platform, by the policy of its Cloud Run service; here there
is one policy for both, and roles/run.invoker counts in it.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from fedkeeper.fabric.google_rpc import Refused, invalid

INVOKERS: Final = frozenset({"roles/run.invoker", "roles/cloudfunctions.invoker"})
PERMISSIONS: Final = frozenset(
    {"run.routes.invoke"}
    | {f"cloudfunctions.functions.{verb}" for verb in (
        "call", "create", "delete", "generateUploadUrl", "get", "getIamPolicy", "invoke", "list",
        "setIamPolicy", "sourceCodeGet", "sourceCodeSet", "update",
    )}
    | {f"cloudfunctions.{kind}.{verb}" for kind in ("operations", "locations", "runtimes")
       for verb in ("get", "list")}
)  # fmt: skip
EMPTY_ETAG: Final = "ACAB"  # as the platform gives for a policy that was never set
_ROLE: Final = re.compile(r"(roles|(projects|organizations)/[a-z0-9-]{1,63}/roles)/[A-Za-z0-9_.]{1,64}\Z")
_MEMBER: Final = re.compile(
    r"(allUsers|allAuthenticatedUsers|(user|serviceAccount|group):[^\s:@]+@[^\s:@]+|domain:[^\s:@]+"
    r"|(principal|principalSet)://\S+|deleted:\S+)\Z"
)
_BINDINGS_MAX, _MEMBERS_MAX = 100, 1500


def new_policy(old: Mapping[str, Any] | None, body: Mapping[str, Any]) -> dict[str, Any]:
    """The policy that `body` ({"policy": …}) puts in the place of `old`. Refused.

    ABORTED when its etag is not that of `old`: somebody else has written in between.
    """
    policy = body.get("policy")
    if not isinstance(policy, dict):
        raise invalid("policy is required.")
    etag = policy.get("etag") or ""
    if etag and not hmac.compare_digest(str(etag).encode(), shown(old)["etag"].encode()):
        raise Refused(
            "ABORTED",
            "There were concurrent policy changes. Please retry the whole read-modify-write with exponential"
            " backoff.",
        )
    bindings = policy.get("bindings") or []
    if not isinstance(bindings, list) or len(bindings) > _BINDINGS_MAX:
        raise invalid(f"policy.bindings must be a list of at most {_BINDINGS_MAX}.")
    kept = [{"role": _role(one), "members": _members(one)} for one in bindings]
    version = policy.get("version") or 1
    if version not in (1, 3):
        raise invalid("policy.version must be 1 or 3.")
    new: dict[str, Any] = {"version": version, "bindings": [one for one in kept if one["members"]]}
    digest = hashlib.sha256(json.dumps([shown(old)["etag"], new]).encode()).digest()
    return {**new, "etag": base64.b64encode(digest[:8]).decode()}


def shown(policy: Mapping[str, Any] | None) -> dict[str, Any]:
    """A policy as the API answers it."""
    return {key: value for key, value in (policy or {"etag": EMPTY_ETAG}).items() if value != []}


def held(body: Mapping[str, Any]) -> list[str]:
    """Which of the asked permissions the project's own account has: those that there are. Refused."""
    asked = body.get("permissions") or []
    if not isinstance(asked, list) or not all(isinstance(one, str) for one in asked):
        raise invalid("permissions must be a list of names.")
    wild = [one for one in asked if "*" in one]
    if wild:
        raise invalid(f"Permission {wild[0][:80]} is not valid: wildcards are not allowed.")
    return [one for one in asked if one in PERMISSIONS]


def may_invoke(policy: Mapping[str, Any] | None, *, email: str) -> bool:
    """Whether the policy lets `email` (empty: somebody without a token) invoke the function."""
    bindings = (policy or {}).get("bindings", [])
    members = {member for one in bindings if one["role"] in INVOKERS for member in one["members"]}
    known = {"allAuthenticatedUsers", f"serviceAccount:{email}", f"user:{email}"} if email else set()
    return not members.isdisjoint({"allUsers"} | known)


def _role(binding: Any) -> str:
    role = binding.get("role") if isinstance(binding, dict) else None
    if not isinstance(role, str) or not _ROLE.match(role):
        raise invalid(f"Role {str(role)[:80]} is not supported for this resource.")
    if binding.get("condition"):
        raise invalid("Conditions in bindings are not supported by this platform.")
    return role


def _members(binding: Mapping[str, Any]) -> Sequence[str]:
    members = binding.get("members") or []
    if not isinstance(members, list) or len(members) > _MEMBERS_MAX:
        raise invalid(f"members must be a list of at most {_MEMBERS_MAX}.")
    for member in members:
        if not isinstance(member, str) or not _MEMBER.match(member):
            raise invalid(f"The member {str(member)[:80]} is of an unknown type.")
    return members
