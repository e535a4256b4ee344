"""OpenWhisk's rules for names, IDs and query parameters, and its words for breaking them. Pure.

Source: apache/openwhisk, common/scala/.../core/entity (EntityPath, FullyQualifiedEntityName, limits),
.../http/ErrorResponse.scala (Messages) and core/controller/.../RestAPIs.scala; pekko-http for the words
around them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from fedkeeper.fabric.bodies import MEGABYTE

PAYLOAD_MAX_BYTES: Final = MEGABYTE
WAIT_MAX_MS: Final = 60_000
NOT_FOUND: Final = "The requested resource does not exist."
CONFORMANCE: Final = "Resource by this name exists but is not in this collection."
NOT_ALLOWED: Final = "Request defines parameters that are not allowed (e.g., reserved properties)."
ACTIVATION_HEADER: Final = "x-openwhisk-activation-id"
NAME_MAX: Final = 256
_NAME: Final = re.compile(r"\A([\w]|[\w][\w@ .&-]{0,254}[\w@.&-])\Z", re.ASCII)
_ACTIVATION_ID: Final = re.compile(r"[0-9a-f]{32}\Z")
_TRUE: Final = frozenset({"true", "yes", "on", "1"})
_FALSE: Final = frozenset({"false", "no", "off", "0"})


class Refused(Exception):
    """The request breaks a rule: `status` and the platform's own words."""

    def __init__(self, status: int, words: str) -> None:
        super().__init__(words)
        self.status = status
        self.words = words


def malformed(problem: str) -> Refused:
    """400 for content that cannot be read as what it should be."""
    return Refused(400, f"The request content was malformed:\n{problem}")


def forbidden(resource: str) -> Refused:
    """403 for `resource`, which is "namespace[/package][/name]"."""
    return Refused(403, f"The supplied authentication is not authorized to access '{resource:.600}'.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """What an action may ask for, smallest and largest; what a namespace may ask for in a minute."""

    timeout_ms: tuple[int, int] = (100, 3_600_000)
    memory_mb: tuple[int, int] = (128, 2048)
    logs_mb: tuple[int, int] = (0, 10)
    concurrency: tuple[int, int] = (1, 1)
    invocations_per_minute: int = 1_000_000
    fires_per_minute: int = 1_000_000
    concurrent_invocations: int = 1_000_000  # of one namespace, running or waiting for a worker
    sequence_length: int = 50  # atomic actions, those of inner sequences counted in


@dataclass(frozen=True, slots=True)
class FullName:
    """Where an entity is: "namespace/name", or "namespace/package/name" of an action in a package."""

    namespace: str
    package: str
    name: str

    @property
    def path(self) -> str:
        """All that precedes the name."""
        return f"{self.namespace}/{self.package}" if self.package else self.namespace

    @property
    def local(self) -> str:
        """The name within the namespace."""
        return f"{self.package}/{self.name}" if self.package else self.name

    def __str__(self) -> str:
        return f"{self.path}/{self.name}"

    def body(self) -> dict[str, str]:
        """As rules and triggers show it."""
        return {"name": self.name, "path": self.path}


def parse_full_name(sent: object, own: str) -> FullName:
    """Read "/ns/name", "ns/package/name" or {"path", "name"}; the namespace `_` is `own`. Refused 400."""
    if isinstance(sent, dict) and isinstance(sent.get("path"), str) and isinstance(sent.get("name"), str):
        sent = f"{sent['path']}/{sent['name']}"
    if not isinstance(sent, str):
        raise malformed("fully qualified name malformed")
    parts = [part for part in sent.split("/") if part]
    if not parts or not all(_NAME.match(part) for part in parts):
        raise malformed(f"requirement failed: path contains invalid parts {parts!r:.200}")
    if len(parts) < 2:
        words = "The fully qualified name of the entity must contain at least the namespace and the name"
        raise malformed(f"requirement failed: {words} of the entity.")
    if len(parts) > 3:
        raise malformed("fully qualified name malformed")
    namespace = own if parts[0] == "_" else parts[0]
    return FullName(namespace, "/".join(parts[1:-1]), parts[-1])


def is_path(text: object) -> bool:
    """Whether it is one or more names with slashes between them."""
    parts = [part for part in text.split("/") if part] if isinstance(text, str) else []
    return bool(parts) and all(_NAME.match(part) for part in parts)


def check_name(name: str) -> str:
    """`name`, if an entity may be called that. Refused 400."""
    if len(name) > NAME_MAX:
        raise Refused(400, f"Name segement longer than allowed: {len(name)} > {NAME_MAX}.")
    if not _NAME.match(name):
        raise Refused(400, "The name of the entity contains illegal characters.")
    return name


def check_namespace(name: str) -> str:
    """`name`, if a namespace may be called that. Refused 400."""
    if len(name) > NAME_MAX:
        raise Refused(400, f"Namespace longer than allowed: {len(name)} > {NAME_MAX}.")
    if not _NAME.match(name):
        raise Refused(400, "The namespace contains illegal characters.")
    return name


def check_activation_id(text: str) -> str:
    """`text`, if it has the form of an activation ID. Refused 400."""
    if len(text) != 32:
        raise Refused(400, f"Activation id length is {len(text)} but must be 32.")
    if not _ACTIVATION_ID.match(text):
        raise Refused(400, "The activation id is not valid.")
    return text


def _malformed_query(name: str, problem: str) -> Refused:
    return Refused(400, f"The query parameter '{name}' was malformed:\n{problem}")


def flag(query: Mapping[str, str], name: str, *, default: bool = False) -> bool:
    """A boolean query parameter as pekko reads it: true/yes/on/1 and false/no/off/0 in any case."""
    text = query.get(name)
    if text is None:
        return default
    if text.lower() in _TRUE | _FALSE:
        return text.lower() in _TRUE
    raise _malformed_query(name, f"'{text:.40}' is not a valid Boolean value")


def _whole(text: str) -> int | None:
    return int(text) if re.fullmatch(r"[+-]?[0-9]{1,18}", text) else None


def page(query: Mapping[str, str], collection: str) -> tuple[int, int]:
    """(skip, limit) of a list: limit 0..200, where 0 means 200 and 30 is the default. Refused 400."""
    values = {"limit": 30, "skip": 0}
    for name in values:
        text = query.get(name)
        if text is None:
            continue
        value = _whole(text)
        if value is None or abs(value) >= 1 << 31:
            raise _malformed_query(name, f"The value '{text:.40}' is not an integer for {collection}.")
        values[name] = value
    limit, skip = values["limit"], values["skip"]
    if not 0 <= limit <= 200:
        words = f"The value '{limit}' is not in the range of 0 to 200 for {collection}."
        raise _malformed_query("limit", words)
    if skip < 0:
        words = f"The value '{skip}' is not greater than or equal to 0 for {collection}."
        raise _malformed_query("skip", words)
    return skip, limit or 200


def instant(query: Mapping[str, str], name: str) -> int | None:
    """A query parameter in milliseconds since 1970, None if absent. Refused 400."""
    text = query.get(name)
    value = None if text is None else _whole(text)
    if text is not None and value is None:
        raise _malformed_query(name, f"Parameter is not a valid value for epoch seconds: {text:.40}")
    return value


def name_filter(query: Mapping[str, str]) -> str:
    """The query parameter `name`: "name" or "package/name", "" if absent or blank. Refused 400."""
    text = query.get("name", "")
    parts = [part for part in text.split("/") if part]
    if not text.strip():
        return ""
    if not 1 <= len(parts) <= 2 or not all(_NAME.match(part) for part in parts):
        words = f"Parameter may be a 'simple' name or 'package-name/simple' name: {text:.300}"
        raise _malformed_query("name", words)
    return "/".join(parts)


def wait_ms(query: Mapping[str, str]) -> int:
    """How long a blocking invocation may wait, in ms. Refused 400."""
    text = query.get("timeout")
    value = WAIT_MAX_MS if text is None else _whole(text)
    if value is None or not 1 <= value <= WAIT_MAX_MS:
        raise _malformed_query("timeout", f"Timeout must be number of milliseconds up to {WAIT_MAX_MS}.")
    return value


def annotation(entity: Mapping[str, Any], key: str) -> Any:
    """The annotation's value, None if it has none."""
    return next((item["value"] for item in entity["annotations"] if item["key"] == key), None)


def truthy(entity: Mapping[str, Any], key: str, *, default: bool = False) -> bool:
    """Whether an annotation switches something on, as Parameters.isTruthy has it."""
    if all(item["key"] != key for item in entity["annotations"]):
        return default
    value = annotation(entity, key)
    return bool(value) if value is None or isinstance(value, (bool, int, float, str)) else True
