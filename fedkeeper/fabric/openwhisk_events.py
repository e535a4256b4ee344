"""The OpenWhisk API's triggers and rules. Only a rule's document knows what it joins and if it is active.

Source: apache/openwhisk, core/controller/.../{Triggers,Rules}.scala.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Final

from aiohttp import web

from fedkeeper.fabric.activations import Activations, now_ms
from fedkeeper.fabric.bodies import MEGABYTE, dump_json, json_response
from fedkeeper.fabric.openwhisk_entities import (
    ACTIVATION_HEADER,
    NOT_FOUND,
    PAYLOAD_MAX_BYTES,
    FullName,
    Refused,
    flag,
    forbidden,
    malformed,
    page,
)
from fedkeeper.fabric.openwhisk_invocations import Invocations
from fedkeeper.fabric.openwhisk_parameters import check_final
from fedkeeper.fabric.openwhisk_platform import Caller, Platform, object_body
from fedkeeper.fabric.openwhisk_puts import put_rule, put_trigger, read_rule, summary
from fedkeeper.fabric.records import TRIGGER
from fedkeeper.fabric.store import Document

_PUT_MAX_BYTES: Final = 3 * MEGABYTE
_INACTIVE: Final = "inactive"


class Events:
    """Handlers of /namespaces/{namespace}/triggers and …/rules."""

    def __init__(self, platform: Platform, activations: Activations, invocations: Invocations) -> None:
        self._platform = platform
        self._store = platform.store
        self._activations = activations
        self._invocations = invocations

    def routes(self, base: str) -> list[web.RouteDef]:
        """All routes under `base`."""
        trigger, rule = f"{base}/triggers/{{name:[^/]+}}", f"{base}/rules/{{name:[^/]+}}"
        return [
            *(web.get(f"{base}/triggers{end}", self._list_triggers, allow_head=False) for end in ("", "/")),
            web.put(trigger, self._put_trigger),
            web.get(trigger, self._get_trigger, allow_head=False),
            web.delete(trigger, self._delete_trigger),
            web.post(trigger, self._fire),
            *(web.get(f"{base}/rules{end}", self._list_rules, allow_head=False) for end in ("", "/")),
            web.put(rule, self._put_rule),
            web.get(rule, self._get_rule, allow_head=False),
            web.delete(rule, self._delete_rule),
            web.post(rule, self._set_status),
        ]

    # --- triggers

    async def _list_triggers(self, request: web.Request) -> web.Response:
        return await self._list(request, "trigger")

    async def _put_trigger(self, request: web.Request) -> web.Response:
        _, name = self._platform.owned(request)
        overwrite = flag(request.query, "overwrite")
        body = await object_body(request, _PUT_MAX_BYTES)
        async with self._platform.changing(name):
            old = await self._find("trigger", name, overwrite=overwrite)
            at_ms = now_ms()
            entity = put_trigger(name, body, None if old is None else old.body, now_ms=at_ms)
            await self._put("trigger", name, entity, at_ms)
            return json_response(await self._with_rules(entity, name))

    async def _get_trigger(self, request: web.Request) -> web.Response:
        _, name = self._platform.owned(request)
        document = await self._platform.get("trigger", name)
        return json_response(await self._with_rules(document.body, name))

    async def _delete_trigger(self, request: web.Request) -> web.Response:
        """Its rules stay, inactive, until somebody gives them another trigger."""
        _, name = self._platform.owned(request)
        async with self._platform.changing(name):
            document = await self._platform.get("trigger", name)
            shown = await self._with_rules(document.body, name)
            await self._store.remove("trigger", name.namespace, name.name)
            for rule in await self._rules_of(name):
                await self._set(FullName(name.namespace, "", rule["name"]), _INACTIVE)
        return json_response(shown)

    async def _fire(self, request: web.Request) -> web.Response:
        caller, name = self._platform.owned(request)
        self._invocations.throttles.fire(caller.namespace)
        payload = await object_body(request, PAYLOAD_MAX_BYTES)
        trigger = (await self._platform.get("trigger", name)).body
        rules = await self._rules_of(name)
        if all(rule["status"] == _INACTIVE for rule in rules):
            return web.Response(status=204)
        # As the platform does, but without the caller's key: it is not the action's to know.
        headers = {key.lower(): value for key, value in request.headers.items()}
        headers.pop("authorization", None)
        own = {item["key"]: item["value"] for item in trigger["parameters"]}
        told = {
            "namespace": caller.namespace,
            "name": name.name,
            "version": trigger["version"],
            "kind": TRIGGER,
            "start": now_ms(),
            "result": payload,
        }

        async def work(activation_id: str) -> list[str]:
            del activation_id  # the actions do not learn of it
            arguments = {**own, "__ow_headers": headers, **payload}
            return list(await asyncio.gather(*(self._apply(rule, arguments, caller) for rule in rules)))

        activation = self._activations.start_event(told, work)
        await activation.written()
        answer = {"activationId": activation.id}
        return json_response(answer, status=202, headers={ACTIVATION_HEADER: activation.id})

    async def _apply(self, rule: Mapping[str, Any], arguments: Mapping[str, Any], caller: Caller) -> str:
        """Invoke the rule's action, as its caller would; the line of the trigger's log that tells of it."""
        action = _full_name(rule["action"])
        told: dict[str, Any] = {
            "rule": f"{rule['namespace']}/{rule['name']}",
            "action": str(action),
            "statusCode": 0,
            "success": True,
        }
        if rule["status"] == _INACTIVE:
            words = f"Rule '{told['rule']}' is inactive, action '{action}' was not activated."
            return _line(told | {"statusCode": 1, "success": False, "error": words})
        try:
            self._invocations.throttles.invoke(caller.namespace)
            resolved = await self._invocations.resolve(caller, action)
            check_final(resolved.entity, arguments)
            activation = self._invocations.begin(resolved, arguments, caller)
        except Refused as exc:
            code = 3 if exc.status >= 500 else 1
            return _line(told | {"statusCode": code, "success": False, "error": exc.words})
        return _line(told | {"activationId": activation.id})

    async def _with_rules(self, trigger: Mapping[str, Any], name: FullName) -> dict[str, Any]:
        rules = {
            f"{rule['namespace']}/{rule['name']}": {"action": rule["action"], "status": rule["status"]}
            for rule in await self._rules_of(name)
        }
        return {**trigger, **({"rules": rules} if rules else {})}

    async def _rules_of(self, name: FullName) -> list[Mapping[str, Any]]:
        found = await self._store.after("rule", name.namespace, name="", limit=-1)
        return [document.body for document in found if document.body["trigger"] == name.body()]

    # --- rules

    async def _list_rules(self, request: web.Request) -> web.Response:
        return await self._list(request, "rule")

    async def _put_rule(self, request: web.Request) -> web.Response:
        caller, name = self._platform.owned(request)
        overwrite = flag(request.query, "overwrite")
        body = await object_body(request, _PUT_MAX_BYTES)
        sent = read_rule(body, name.namespace)
        if "trigger" in sent and sent["trigger"].namespace != caller.namespace:
            raise forbidden(str(sent["trigger"]))
        if "action" in sent:
            await self._platform.check_action_readable(caller, sent["action"])
        async with self._platform.changing(name):
            old = await self._find("rule", name, overwrite=overwrite)
            if old is not None:
                kept = {field: _full_name(old.body[field]) for field in ("trigger", "action")}
                sent = kept | sent
            if len(sent) < 2:
                raise Refused(400, "rule requires a valid trigger and a valid action")
            await self._check_joined(sent)
            at_ms = now_ms()
            entity = put_rule(name, body, None if old is None else old.body, joined=sent, now_ms=at_ms)
            await self._put("rule", name, entity, at_ms)
        return json_response(entity)

    async def _check_joined(self, joined: Mapping[str, FullName]) -> None:
        try:
            await self._platform.get("trigger", joined["trigger"])
        except Refused as exc:
            raise Refused(400, f"trigger /{joined['trigger']} does not exist") from exc
        try:
            await self._platform.resolve(joined["action"])
        except Refused as exc:
            raise Refused(400, f"action /{joined['action']} does not exist") from exc

    async def _get_rule(self, request: web.Request) -> web.Response:
        _, name = self._platform.owned(request)
        return json_response((await self._platform.get("rule", name)).body)

    async def _delete_rule(self, request: web.Request) -> web.Response:
        _, name = self._platform.owned(request)
        async with self._platform.changing(name):
            document = await self._platform.get("rule", name)
            await self._store.remove("rule", name.namespace, name.name)
        return json_response({**document.body, "status": _INACTIVE})

    async def _set_status(self, request: web.Request) -> web.Response:
        _, name = self._platform.owned(request)
        status = (await object_body(request, PAYLOAD_MAX_BYTES)).get("status")
        if not isinstance(status, str):
            raise malformed("key not found: status")
        if status not in {"active", _INACTIVE}:
            raise malformed(f"requirement failed: {status:.40} is not a recognized rule state")
        rule = (await self._platform.get("rule", name)).body
        trigger = _full_name(rule["trigger"])
        if rule["status"] != status and not await self._store.get("trigger", trigger.namespace, trigger.name):
            raise Refused(404, "Only rules with existing triggers can be activated")
        await self._set(name, status)
        return web.Response(text="OK")

    async def _set(self, name: FullName, status: str) -> None:
        async with self._platform.changing(name):
            document = await self._store.get("rule", name.namespace, name.name)
            if document is None:
                raise Refused(404, NOT_FOUND)
            await self._put("rule", name, {**document.body, "status": status}, document.updated_ms)

    # --- both

    async def _list(self, request: web.Request, kind: str) -> web.Response:
        _, name = self._platform.owned(request)
        skip, limit = page(request.query, f"{kind}s")
        if flag(request.query, "count"):
            return json_response({f"{kind}s": max(0, await self._store.count(kind, name.namespace) - skip)})
        found = await self._store.newest(kind, name.namespace, skip=skip, limit=limit)
        return json_response([summary(kind, document.body) for document in found])

    async def _find(self, kind: str, name: FullName, *, overwrite: bool) -> Document | None:
        old = await self._platform.find(kind, name)
        if old is not None and not overwrite:
            raise Refused(409, "resource already exists")
        return old

    async def _put(self, kind: str, name: FullName, entity: dict[str, Any], at_ms: int) -> None:
        await self._store.put(
            Document(kind=kind, scope=name.namespace, name=name.name, updated_ms=at_ms, body=entity)
        )


def _full_name(body: Mapping[str, str]) -> FullName:
    namespace, _, package = body["path"].partition("/")
    return FullName(namespace, package, body["name"])


def _line(told: Mapping[str, Any]) -> str:
    return dump_json(told).decode()
