"""The OpenWhisk API's activations: listed, read, their logs and results.

Source: apache/openwhisk, core/controller/.../Activations.scala.
"""

from __future__ import annotations

from aiohttp import web

from fedkeeper.fabric.bodies import json_response
from fedkeeper.fabric.openwhisk_entities import (
    NOT_FOUND,
    Refused,
    check_activation_id,
    flag,
    forbidden,
    instant,
    name_filter,
    page,
)
from fedkeeper.fabric.openwhisk_platform import Platform
from fedkeeper.fabric.store import Query, Store


class ActivationRecords:
    """Handlers of /namespaces/{namespace}/activations."""

    def __init__(self, platform: Platform, store: Store) -> None:
        self._platform = platform
        self._store = store

    def routes(self, base: str) -> list[web.RouteDef]:
        """All routes under `base`."""
        one = f"{base}/activations/{{id:[^/]+}}"
        return [
            *(web.get(f"{base}/activations{end}", self._list, allow_head=False) for end in ("", "/")),
            *(web.get(f"{one}{end}", self._get, allow_head=False) for end in ("", "/")),
            web.get(f"{one}/{{part:logs|result}}", self._get, allow_head=False),
        ]

    async def _list(self, request: web.Request) -> web.Response:
        _, name = self._platform.owned(request)
        skip, limit = page(request.query, "activations")
        docs, count = flag(request.query, "docs"), flag(request.query, "count")
        query = Query(
            scope=name.namespace,
            name=name_filter(request.query),
            since_ms=instant(request.query, "since"),
            upto_ms=instant(request.query, "upto"),
            skip=skip,
            limit=limit,
        )
        if docs and count:
            raise Refused(400, "The parameter 'docs' is not permitted with 'count'.")
        if count:
            return json_response({"activations": await self._store.count_activations(query)})
        return json_response(await self._store.activations(query, full=docs))

    async def _get(self, request: web.Request) -> web.Response:
        caller, name = self._platform.named(request)
        activation_id = check_activation_id(request.match_info["id"])
        if caller.namespace != name.namespace:
            raise forbidden(f"{name.namespace}/{activation_id}")
        record = await self._store.activation(name.namespace, activation_id)
        if record is None:
            raise Refused(404, NOT_FOUND)
        match request.match_info.get("part"):
            case "logs":
                return json_response({"logs": record["logs"]})
            case "result":
                return json_response(record["response"])
            case _:
                return json_response(record)
