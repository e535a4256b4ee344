"""What the handlers of OpenWhisk's collections share: callers and their rights, and how names are resolved.

Source: apache/openwhisk, core/controller/.../entitlement/{Package,Action,}Collection.scala and
common/scala/.../core/entity/{WhiskPackage,WhiskAction}.scala (resolveBinding, resolveAction…).
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hmac
import secrets
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Final
from weakref import WeakValueDictionary

from aiohttp import web

from fedkeeper.fabric.bodies import parse_object, read_body
from fedkeeper.fabric.openwhisk_entities import (
    CONFORMANCE,
    NOT_FOUND,
    Bounds,
    FullName,
    Refused,
    check_name,
    check_namespace,
    forbidden,
)
from fedkeeper.fabric.openwhisk_parameters import Pairs, merge
from fedkeeper.fabric.store import Document, Store

TRANSACTION: Final[ContextVar[str]] = ContextVar("transaction", default="")
# Headers of the answer in place of the API's own for CORS; a mutable dictionary, so that handlers may add.
ANSWER_HEADERS: Final[ContextVar[dict[str, str]]] = ContextVar("answer_headers")
_KNOWN_MAX: Final = 1024  # headers; there is one for each namespace, or two
KINDS: Final = ("action", "package", "trigger", "rule")  # all share the names of a namespace


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks: a namespace and its "uuid:key"."""

    namespace: str
    auth: str = field(repr=False)


class Keys:
    """Who may use which namespace: HTTP Basic, user = UUID, password = key."""

    def __init__(self, auth: Mapping[str, str]) -> None:
        self._by_user: dict[str, tuple[str, str]] = {}
        self._known: dict[str, Caller] = {}  # by the header that has proved them
        self._by_namespace: dict[str, str] = {}
        self.replace(auth)

    def replace(self, auth: Mapping[str, str]) -> None:
        """Take namespace -> "uuid:key"."""
        self._known = {}
        self._by_namespace = dict(auth)
        self._by_user = {
            user: (key, namespace)
            for namespace, (user, _, key) in ((name, pair.partition(":")) for name, pair in auth.items())
        }

    def caller(self, request: web.Request) -> Caller:
        """The caller of a request. Refused 401."""
        if "Authorization" not in request.headers:
            words = "The resource requires authentication, which was not supplied with the request"
            raise Refused(401, words)
        caller = self.known(request)
        if caller is None:
            raise Refused(401, "The supplied authentication is invalid")
        return caller

    def known(self, request: web.Request) -> Caller | None:
        """The caller of a request, None if it names none or in vain."""
        header = request.headers.get("Authorization", "")
        if (known := self._known.get(header)) is not None:
            return known
        kind, _, value = header.partition(" ")
        try:
            pair = base64.b64decode(value.strip(), validate=True).decode() if kind.lower() == "basic" else ""
        except (binascii.Error, ValueError):
            pair = ""
        user, _, password = pair.partition(":")
        key, namespace = self._by_user.get(user, (secrets.token_hex(), ""))
        if not namespace or not hmac.compare_digest(key.encode(), password.encode()):
            return None
        if len(self._known) < _KNOWN_MAX:
            self._known[header] = Caller(namespace, pair)
        return Caller(namespace, pair)

    def owner(self, namespace: str) -> Caller | None:
        """Whose namespace it is, None if there is none of that name."""
        auth = self._by_namespace.get(namespace)
        return None if auth is None else Caller(namespace, auth)


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolved:
    """An action, as it is to be invoked."""

    document: Document
    name: FullName  # where it really is
    parameters: Pairs  # its package's, its binding's and its own, merged in this order
    binding: str = ""  # "ns/package", if it was reached through one

    @property
    def entity(self) -> dict[str, Any]:
        """The action with all its parameters."""
        return {**self.document.body, "parameters": self.parameters}


class Platform:
    """Names, rights and locks over the store."""

    def __init__(self, store: Store, keys: Keys, bounds: Bounds) -> None:
        self.store = store
        self.keys = keys
        self.bounds = bounds
        self._changing: WeakValueDictionary[tuple[str, str], asyncio.Lock] = WeakValueDictionary()

    def changing(self, name: FullName) -> asyncio.Lock:
        """Held by whoever writes an entity, or the package that it is in."""
        return self._changing.setdefault((name.namespace, name.package or name.name), asyncio.Lock())

    def named(self, request: web.Request) -> tuple[Caller, FullName]:
        """The caller, and what the path names (name "" for a collection). Refused 400, 401."""
        caller = self.keys.caller(request)
        asked = request.match_info["namespace"]
        namespace = caller.namespace if asked == "_" else check_namespace(asked)
        package, name = (request.match_info.get(key, "") for key in ("package", "name"))
        for part in filter(None, (package, name)):
            check_name(part)
        return caller, FullName(namespace, package, name)

    def owned(self, request: web.Request) -> tuple[Caller, FullName]:
        """The same, of a caller's own namespace. Refused 400, 401, 403."""
        caller, name = self.named(request)
        if caller.namespace != name.namespace:
            raise forbidden(str(name) if name.name else name.namespace)
        return caller, name

    async def find(self, kind: str, name: FullName) -> Document | None:
        """The entity, None if its name is free. Refused 409 if another kind of entity has the name."""
        found = await self.store.get(kind, name.namespace, name.local)
        if found is None and not name.package:
            for other in KINDS:
                if other != kind and await self.store.get(other, name.namespace, name.name) is not None:
                    raise Refused(409, CONFORMANCE)
        return found

    async def get(self, kind: str, name: FullName) -> Document:
        """The entity. Refused 404, 409."""
        found = await self.find(kind, name)
        if found is None:
            raise Refused(404, NOT_FOUND)
        return found

    async def check_package_readable(self, caller: Caller, name: FullName) -> None:
        """Whether the caller may read a package, and what it binds to. Refused 403, 404, 409, 422."""
        seen: set[FullName] = set()
        while True:
            seen.add(name)
            owner = caller.namespace == name.namespace
            try:
                found = await self.find("package", name)
            except Refused as exc:
                raise exc if owner else forbidden(str(name)) from None
            if found is None:
                raise Refused(404, NOT_FOUND) if owner else forbidden(str(name))
            binding = found.body["binding"]
            if not owner and (binding or not found.body["publish"]):
                raise forbidden(str(name))
            if not binding:
                return
            name = FullName(binding["namespace"], "", binding["name"])
            if name in seen:
                raise _circular(name)

    async def check_action_readable(self, caller: Caller, name: FullName) -> None:
        """Whether the caller may read and invoke an action. Refused 403, 404, 409."""
        if name.package:
            await self.check_package_readable(caller, FullName(name.namespace, "", name.package))
        elif caller.namespace != name.namespace:
            raise forbidden(str(name))

    async def provider(self, name: FullName) -> tuple[FullName, Pairs]:
        """The package that a package or binding stands for, and the parameters of both.

        Refused 404, 409, 422.
        """
        seen: set[FullName] = set()
        parameters: Pairs = []
        while True:
            seen.add(name)
            found = await self.get("package", name)
            parameters = merge(found.body["parameters"], parameters)
            binding = found.body["binding"]
            if not binding:
                return name, parameters
            name = FullName(binding["namespace"], "", binding["name"])
            if name in seen:
                raise _circular(name)

    async def resolve(self, name: FullName) -> Resolved:
        """The action, wherever it is, with its parameters. Refused 404, 409; rights are not looked at."""
        if not name.package:
            document = await self.get("action", name)
            return Resolved(document=document, name=name, parameters=document.body["parameters"])
        real, inherited = await self.provider(FullName(name.namespace, "", name.package))
        there = FullName(real.namespace, real.name, name.name)
        document = await self.get("action", there)
        return Resolved(
            document=document,
            name=there,
            parameters=merge(inherited, document.body["parameters"]),
            binding="" if there.path == name.path else name.path,
        )

    async def in_package(self, package: FullName) -> list[Document]:
        """All actions of a package, last updated first."""
        prefix = f"{package.name}/"
        found: list[Document] = []
        last = prefix
        while page := await self.store.after("action", package.namespace, name=last, limit=200):
            found += [document for document in page if document.name.startswith(prefix)]
            if not page[-1].name.startswith(prefix):
                break
            last = page[-1].name
        return sorted(found, key=lambda document: (-document.updated_ms, document.name))


def _circular(name: FullName) -> Refused:
    return Refused(422, f"Package binding '{name}' contains a circular reference.")


async def object_body(request: web.Request, allowed: int) -> dict[str, Any]:
    """The JSON object in a request's body of at most `allowed` bytes, {} if it has none. Refused 415."""
    declared = request.headers.get("Content-Type")
    if declared is not None and request.content_type != "application/json":
        shown = f"The request's Content-Type [{declared:.100}] is not supported. Expected:\napplication/json"
        raise Refused(415, shown)
    return parse_object(await read_body(request, allowed))
