"""The OpenAPI document, made from the table of routes and the types of what goes in and out."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from http import HTTPStatus
from typing import Any, Final

import msgspec

import fedkeeper
from fedkeeper.core.model import RunSpec
from fedkeeper.keeper.api import schemas
from fedkeeper.keeper.api.guard import Access
from fedkeeper.keeper.api.routes import Route
from fedkeeper.keeper.api.settings import TIMEOUT_HEADER

ALWAYS: Final = (400, 403, 405, 500, 503)  # what every route may answer with
WITH_BODY: Final = (408, 411, 413, 415, 417)
_REF: Final = "#/components/schemas/{name}"
_ABOUT: Final = """\
Each keeper of a FedKeeper cluster serves this. Writes, and reads that must be up to date, are answered by the
leader: the others answer 307 with its address (send the token to addresses of keepers only). Every error has
the same shape: its kind, what is wrong, what to try, and whether nothing happened for certain (`definite`).
Off loopback a token is needed: a reader's for what reads, an operator's for the rest."""


def document(routes: Iterable[Route]) -> dict[str, Any]:
    """OpenAPI 3.1."""
    routes = tuple(routes)
    kinds = [schemas.Failure, RunSpec]
    for route in routes:
        kinds += [route.body] if route.body else []
        kinds += [kind for answer in route.answers.values() for kind in _kinds(answer)]
    kinds = list(dict.fromkeys(kinds))
    made, named = msgspec.json.schema_components(kinds, ref_template=_REF)
    refs = dict(zip(kinds, made, strict=True))
    # Its type says "any object", for the sake of the messages about what is wrong with it.
    named["Submission"]["properties"]["spec"] = refs[RunSpec]
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, refs)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "FedKeeper",
            "version": fedkeeper.__version__,
            "description": _ABOUT,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "paths": paths,
        "components": {
            "schemas": named,
            "parameters": {
                "timeout": {
                    "name": TIMEOUT_HEADER,
                    "in": "header",
                    "description": "seconds that the caller waits: the keeper gives up in time",
                    "schema": {"type": "number", "minimum": 0},
                }
            },
            "securitySchemes": {
                "reader": {"type": "http", "scheme": "bearer", "description": "reader_token, operator_token"},
                "operator": {"type": "http", "scheme": "bearer", "description": "operator_token"},
            },
        },
    }


def _kinds(answer: Any) -> tuple[Any, ...]:
    if answer is None:
        return ()
    return answer if isinstance(answer, tuple) else (answer,)


def _operation(route: Route, refs: Mapping[Any, Any]) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": re.sub(r"[^a-z0-9]+", "_", f"{route.method} {route.path[4:]}".lower()).strip("_"),
        "summary": route.about,
        "parameters": [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
            for name in re.findall(r"{(\w+)}", route.path)
        ]
        + [
            {"name": field.name, "in": "query", "description": field.about, "schema": dict(field.schema)}
            for field in route.query
        ]
        + [{"$ref": "#/components/parameters/timeout"}],
        "responses": _responses(route, refs),
        "security": _security(route.needs),
    }
    if route.details:
        operation["description"] = route.details
    if route.body is not None:
        operation["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": refs[route.body]}},
        }
    return operation


def _security(needs: Access) -> list[dict[str, list[str]]]:
    if needs is Access.NOBODY:
        return [{}]
    both: list[dict[str, list[str]]] = [{"operator": []}, {}]  # the last one: on loopback without tokens
    return [{"reader": []}, *both] if needs is Access.READER else both


def _responses(route: Route, refs: Mapping[Any, Any]) -> dict[str, Any]:
    failed = {"application/json": {"schema": refs[schemas.Failure]}}
    statuses = {*ALWAYS, *route.errors}
    if route.needs is not Access.NOBODY:
        statuses.add(401)
    if route.body is not None:
        statuses.update(WITH_BODY)
    if route.leader:
        statuses.add(504)
    answers = {
        str(status): {"description": HTTPStatus(status).phrase, "content": failed} for status in statuses
    }
    if route.leader:
        answers["307"] = {
            "description": "Another keeper answers this",
            "headers": {"Location": {"required": True, "schema": {"type": "string", "format": "uri"}}},
            "content": {"application/json": {"schema": {"type": "object", "required": ["location"]}}},
        }
    for status, answer in route.answers.items():
        kinds = [refs[kind] for kind in _kinds(answer)]
        schema = {"type": "string"} if not kinds else kinds[0] if len(kinds) == 1 else {"anyOf": kinds}
        answers[str(status)] = {
            "description": HTTPStatus(status).phrase,
            "content": {route.media: {"schema": schema}},
        }
    return dict(sorted(answers.items()))
