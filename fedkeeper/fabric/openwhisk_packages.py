"""The OpenWhisk API's packages and bindings.

Source: apache/openwhisk, core/controller/.../Packages.scala.
"""

from __future__ import annotations

from typing import Any, Final

from aiohttp import web

from fedkeeper.fabric.activations import now_ms
from fedkeeper.fabric.bodies import MEGABYTE, json_response
from fedkeeper.fabric.openwhisk_actions import Actions
from fedkeeper.fabric.openwhisk_entities import FullName, Refused, flag, page
from fedkeeper.fabric.openwhisk_parameters import merge
from fedkeeper.fabric.openwhisk_platform import Caller, Platform, object_body
from fedkeeper.fabric.openwhisk_puts import put_package, read_binding, summary
from fedkeeper.fabric.store import Document

_PUT_MAX_BYTES: Final = 3 * MEGABYTE


class Packages:
    """Handlers of /namespaces/{namespace}/packages."""

    def __init__(self, platform: Platform, actions: Actions) -> None:
        self._platform = platform
        self._actions = actions

    def routes(self, base: str) -> list[web.RouteDef]:
        """All routes under `base`."""
        path = f"{base}/packages/{{name:[^/]+}}"
        return [
            web.get(f"{base}/packages", self._list, allow_head=False),
            web.get(f"{base}/packages/", self._list, allow_head=False),
            web.put(path, self._put),
            web.get(path, self._get, allow_head=False),
            web.delete(path, self._delete),
        ]

    async def _list(self, request: web.Request) -> web.Response:
        """Of another's namespace, only what is shared."""
        caller, name = self._platform.named(request)
        skip, limit = page(request.query, "packages")
        found = await self._platform.store.newest("package", name.namespace, skip=0, limit=-1)
        if caller.namespace != name.namespace:
            found = [item for item in found if item.body["publish"] and not item.body["binding"]]
        if flag(request.query, "count"):
            return json_response({"packages": max(0, len(found) - skip)})
        return json_response([summary("package", item.body) for item in found[skip : skip + limit]])

    async def _put(self, request: web.Request) -> web.Response:
        caller, name = self._platform.owned(request)
        overwrite = flag(request.query, "overwrite")
        if name.name == "default":
            raise Refused(400, "Package name 'default' is reserved.")
        body = await object_body(request, _PUT_MAX_BYTES)
        binding = read_binding(body, name.namespace)
        target = FullName(binding["namespace"], "", binding["name"]) if binding else None
        if target is not None:
            await self._check_bindable(caller, target)
        async with self._platform.changing(name):
            old = await self._platform.find("package", name)
            if old is not None and not overwrite:
                raise Refused(409, "resource already exists")
            at_ms = now_ms()
            entity = put_package(name, body, None if old is None else old.body, now_ms=at_ms)
            if target is not None and (await self._platform.get("package", target)).body["binding"]:
                raise Refused(400, "Cannot bind to another package binding.")
            await self._platform.store.put(
                Document(kind="package", scope=name.namespace, name=name.name, updated_ms=at_ms, body=entity)
            )
        return json_response(entity)

    async def _check_bindable(self, caller: Caller, target: FullName) -> None:
        try:
            await self._platform.check_package_readable(caller, target)
        except Refused as exc:
            if exc.status == 404:
                raise Refused(400, "Binding references a package that does not exist.") from exc
            if exc.status == 409:
                raise Refused(409, "Cannot bind to a resource that is not a package.") from exc
            raise

    async def _get(self, request: web.Request) -> web.Response:
        caller, name = self._platform.named(request)
        try:
            await self._platform.check_package_readable(caller, name)
        except Refused as exc:
            if exc.status == 404:
                raise Refused(404, f"The requested resource '{name}' does not exist.") from exc
            raise
        document = await self._platform.get("package", name)
        provider, parameters = await self._platform.provider(name)
        inside = [document.body for document in await self._platform.in_package(provider)]
        entity = {**document.body, "parameters": merge(parameters, document.body["parameters"])}
        return json_response(entity | _contents(inside))

    async def _delete(self, request: web.Request) -> web.Response:
        _, name = self._platform.owned(request)
        force = flag(request.query, "force")
        async with self._platform.changing(name):
            document = await self._platform.get("package", name)
            inside = [] if document.body["binding"] else await self._platform.in_package(name)
            if inside and not force:
                what = "entity" if len(inside) == 1 else "entities"
                words = f"Package not empty (contains {len(inside)} {what})."
                raise Refused(409, f"{words} Set force param or delete package contents.")
            await self._actions.remove_all(inside)
            await self._platform.store.remove("package", name.namespace, name.name)
        return json_response(document.body)


def _contents(inside: list[Any]) -> dict[str, list[dict[str, Any]]]:
    shown: dict[str, list[dict[str, Any]]] = {"actions": [], "feeds": []}
    for entity in inside:
        feed = any(item["key"] == "feed" for item in entity["annotations"])
        shown["feeds" if feed else "actions"].append(
            {key: entity[key] for key in ("name", "version", "annotations")}
        )
    return shown
