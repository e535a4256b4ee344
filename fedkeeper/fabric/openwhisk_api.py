"""The OpenWhisk REST API as a whole: its collections, and the form of all its answers.

Source: apache/openwhisk, core/controller/.../RestAPIs.scala and common/scala/.../http/BasicHttpService.scala.
"""

from __future__ import annotations

import re
import secrets
import string
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Final

from aiohttp import web

from fedkeeper.fabric.activations import Activations
from fedkeeper.fabric.bodies import BodyMalformed, BodyTooLarge, json_response
from fedkeeper.fabric.openwhisk_about import About
from fedkeeper.fabric.openwhisk_actions import Actions
from fedkeeper.fabric.openwhisk_activations import ActivationRecords
from fedkeeper.fabric.openwhisk_entities import Bounds, Refused
from fedkeeper.fabric.openwhisk_events import Events
from fedkeeper.fabric.openwhisk_invocations import Invocations
from fedkeeper.fabric.openwhisk_packages import Packages
from fedkeeper.fabric.openwhisk_platform import ANSWER_HEADERS, TRANSACTION, Keys, Platform
from fedkeeper.fabric.openwhisk_throttles import Throttles, too_many_in_flight
from fedkeeper.fabric.payloads import PayloadsFull
from fedkeeper.fabric.revisions import Revisions
from fedkeeper.fabric.store import Store
from fedkeeper.fabric.web_actions import WebActions

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_BASE: Final = "/api/v1/namespaces/{namespace:[^/]+}"
_METHODS: Final = ("PUT", "GET", "DELETE", "POST")
_ALPHABET: Final = (string.ascii_letters + string.digits).encode()
_LETTERS: Final = bytes(_ALPHABET[byte % len(_ALPHABET)] for byte in range(256))  # of any byte
_CORS: Final = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Allow-Methods": "GET, DELETE, POST, PUT, HEAD",
    "Access-Control-Allow-Headers": (
        "Authorization, Origin, X-Requested-With, Content-Type, Accept, User-Agent"
    ),
}


class OpenWhisk:
    """All handlers under /api/v1, web actions included.

    `in_flight`: bound of what is in workers or waits for one; `images`: kinds that stand in for images;
    `clock`: whose minutes the throttles count in.
    """

    def __init__(
        self,
        store: Store,
        revisions: Revisions,
        activations: Activations,
        keys: Keys,
        bounds: Bounds,
        in_flight: int,
        images: Mapping[str, str],
        clock: Callable[[], float],
        *,
        share_workers: bool,
    ) -> None:
        bounds = replace(bounds, concurrent_invocations=min(bounds.concurrent_invocations, in_flight))
        platform = Platform(store, keys, bounds)
        throttles = Throttles(bounds, activations.of_namespace, clock)
        invocations = Invocations(
            platform, activations, revisions, throttles, images, in_flight, share_workers=share_workers
        )
        actions = Actions(platform, revisions, invocations)
        self._collections = (
            actions,  # first, as routes are tried in this order
            About(platform),
            Packages(platform, actions),
            Events(platform, activations, invocations),
            ActivationRecords(platform, store),
        )
        self._web = WebActions(platform, invocations)

    def routes(self) -> list[web.RouteDef]:
        """All routes, with their full paths."""
        return [*(route for part in self._collections for route in part.routes(_BASE)), *self._web.routes()]


async def answer_openwhisk(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer with the platform's error bodies and headers, whatever the handler raises."""
    given = request.headers.get("X-Request-ID", "")
    transaction_id = given if re.fullmatch(r"[\w.:@~+/=-]{1,128}", given, re.ASCII) else _new_transaction_id()
    TRANSACTION.set(transaction_id)
    headers = dict(_CORS)
    ANSWER_HEADERS.set(headers)
    of_web = request.path.startswith("/api/v1/web/")
    try:
        is_plain_options = request.method == "OPTIONS" and not of_web
        answer = web.Response(text="OK") if is_plain_options else await handler(request)
    except Refused as exc:
        answer = _error(exc.status, exc.words, transaction_id)
        if exc.status == 401 and not of_web:
            answer.headers["WWW-Authenticate"] = 'Basic realm="OpenWhisk secure realm",charset=UTF-8'
    except BodyTooLarge as exc:
        words = f"Request larger than allowed: {exc.nbytes} > {exc.allowed} bytes."
        answer = _error(413, words, transaction_id)
    except PayloadsFull as exc:
        refused = too_many_in_flight(exc.requests, exc.requests)
        answer = _error(refused.status, refused.words, transaction_id)
    except BodyMalformed as exc:
        answer = _error(400, f"The request content was malformed:\n{exc}", transaction_id)
    except web.HTTPMethodNotAllowed as exc:
        methods = ", ".join([*(method for method in _METHODS if method in exc.allowed_methods), "OPTIONS"])
        words = f"HTTP method not allowed, supported methods: {methods}"
        answer = _error(405, words, transaction_id)
        answer.headers["Allow"] = methods
    except web.HTTPException as exc:
        answer = _error(exc.status, "The requested resource could not be found.", transaction_id)
    answer.headers.update(headers)
    answer.headers["X-Request-ID"] = transaction_id
    return answer


def _error(status: int, words: str, transaction_id: str) -> web.StreamResponse:
    return json_response({"error": words, "code": transaction_id}, status=status)


def _new_transaction_id() -> str:
    return secrets.token_bytes(32).translate(_LETTERS).decode()
