"""HTTP triggers of Cloud Functions: private by default, as on Cloud Run; and the token endpoint."""

from __future__ import annotations

import asyncio
import re
import secrets
from dataclasses import replace
from typing import Any, Final
from urllib.parse import parse_qs

import structlog
from aiohttp import web
from multidict import CIMultiDict

from fedkeeper.fabric.activations import InFlight
from fedkeeper.fabric.bodies import MEGABYTE, BodyMalformed, BodyTooLarge, json_response, read_body
from fedkeeper.fabric.google_api import CloudFunctions
from fedkeeper.fabric.google_iam import may_invoke
from fedkeeper.fabric.google_pages import page, rate_exceeded
from fedkeeper.fabric.model import HttpRequest, HttpResponse, PoolFull, Revision, Workers
from fedkeeper.fabric.payloads import PayloadsFull
from fedkeeper.fabric.records import SUCCESS, limits_body, records
from fedkeeper.fabric.revisions import Revisions
from fedkeeper.fabric.store import Document
from fedkeeper.fabric.tokens import GRANT_TYPE, TokenRefused, bearer

log = structlog.get_logger(__name__)

REQUEST_MAX_BYTES: Final = 32 * MEGABYTE
RESPONSE_MAX_BYTES: Final = 32 * MEGABYTE
EXECUTION_HEADER: Final = "Function-Execution-Id"
_TOKEN_REQUEST_MAX_BYTES: Final = 64 * 1024
_HOP_BY_HOP: Final = frozenset(
    {"connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "te", "trailer",
     "transfer-encoding", "upgrade", "content-length", "date", "server"}
)  # fmt: skip


class Triggers:
    """Handlers of /fn/… and /token."""

    def __init__(
        self, functions: CloudFunctions, workers: Workers, revisions: Revisions, in_flight: InFlight
    ) -> None:
        self._functions = functions
        self._workers = workers
        self._revisions = revisions
        self._in_flight = in_flight
        self._running: set[asyncio.Task[HttpResponse]] = set()

    def routes(self) -> list[web.RouteDef]:
        """All routes, with their full paths."""
        base = "/fn/{project}/{location}/{function}"
        return [
            web.post("/token", self._token),
            web.get("/oauth2/v1/certs", self._certs),
            web.route("*", base, self._serve),
            web.route("*", base + "/{rest:.*}", self._serve),
        ]

    @property
    def running(self) -> int:
        """How many executions have not ended."""
        return len(self._running)

    async def close(self) -> None:
        """Give up what still runs."""
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    async def _token(self, request: web.Request) -> web.Response:
        """RFC 7523: an assertion signed by a service account, for an ID token (or an access token)."""
        try:
            body = await read_body(request, _TOKEN_REQUEST_MAX_BYTES)
            form = parse_qs(body.decode("ascii"), max_num_fields=10)
        except (BodyTooLarge, BodyMalformed, ValueError):
            return json_response({"error": "invalid_request"}, status=400)
        if form.get("grant_type") != [GRANT_TYPE]:
            return json_response({"error": "unsupported_grant_type"}, status=400)
        try:
            answer = self._functions.authority.grant(form.get("assertion", [""])[0])
        except TokenRefused as exc:
            return json_response({"error": "invalid_grant", "error_description": str(exc)}, status=400)
        return json_response(answer, headers={"Cache-Control": "no-store"})

    async def _certs(self, request: web.Request) -> web.Response:
        """The keys that sign ID tokens, by key ID, as google.oauth2.id_token.verify_token fetches them."""
        del request
        certificates = self._functions.authority.certificates()
        return json_response(certificates, headers={"Cache-Control": "public, max-age=3600"})

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        project, location, function = (request.match_info[key] for key in ("project", "location", "function"))
        document = await self._functions.store.get(
            "function", f"projects/{project}/locations/{location}", function
        )
        if (
            document is None
            or not document.body["serving"]
            or document.body["function"]["state"] == "DELETING"
        ):
            return page(404, request.rel_url.raw_path)
        with self._revisions.use(document.revision):  # from here on an update does not take it away
            return await self._pass_on(request, document)

    async def _pass_on(self, request: web.Request, document: Document) -> web.StreamResponse:
        path = request.rel_url.raw_path
        refused = await self._refused(request, document)
        if refused:
            return page(refused, path)
        try:
            body = await read_body(request, REQUEST_MAX_BYTES)
        except BodyTooLarge:
            return page(413, path)
        except BodyMalformed:
            return page(400, path)
        except PayloadsFull:
            return rate_exceeded()
        try:
            with self._in_flight:
                return await self._execute(self._functions.revision(document), _request(request, body))
        except PoolFull:
            return rate_exceeded()

    async def _execute(self, revision: Revision, request: HttpRequest) -> web.Response:
        # The handler is not cancelled when its client goes away (see front.py), so neither is this.
        task = asyncio.create_task(self._workers.serve(revision, request))
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        try:
            answer = await asyncio.shield(task)
        except PoolFull:
            raise
        except Exception as exc:  # noqa: BLE001 - a fault of the pool is this execution's, not the fabric's
            log.error("execution failed inside the fabric", function=revision.name, error=repr(exc))
            return page(500, request.path)
        await self._record(revision, request.headers[EXECUTION_HEADER], answer)
        if len(answer.body) > RESPONSE_MAX_BYTES:
            return page(500, request.path)
        response = web.Response(status=answer.status, body=answer.body)
        for key, value in answer.headers.items():
            if key.lower() not in _HOP_BY_HOP:
                response.headers[key] = value
        return response

    async def _record(self, revision: Revision, execution_id: str, answer: HttpResponse) -> None:
        """Keep the execution's logs, by function and execution ID, as Cloud Logging would."""
        told: dict[str, Any] = {
            "namespace": revision.name.partition("/locations/")[0],
            "name": revision.name,
            "version": revision.id,
            "kind": "google",
            "limits": limits_body(revision.limits),
        }
        ran = answer.ran
        if ran.status == SUCCESS:
            ran = replace(ran, result={"status": answer.status})  # what was answered is the caller's alone
        summary, full = records(execution_id, told, ran)
        key = f"{revision.name}/{execution_id}/{secrets.token_hex(4)}"  # a caller may send one ID twice
        store = self._functions.store
        await store.end(key, told["namespace"], revision.name, ran.start_ms, summary, full)

    async def _refused(self, request: web.Request, document: Document) -> int:
        """The status that turns the caller away; 0: it may invoke.

        401: the token is not one for this function. 403: no token, or one of somebody who may not.
        """
        name, email = document.body["function"]["name"], ""
        token = _token(request)
        if token:
            try:
                caller = self._functions.authority.function_caller(token, self._functions.url(name))
            except TokenRefused as exc:
                log.info("ID token refused", function=name, why=str(exc))
                return 401
            if caller.project == name.split("/")[1]:
                return 0
            email = caller.email
        return 0 if may_invoke(await self._functions.policy(document), email=email) else 403


def _token(request: web.Request) -> str:
    """The ID token, which may stand apart where the function has an Authorization header of its own."""
    apart = request.headers.get("X-Serverless-Authorization")
    return bearer(apart if apart is not None else request.headers.get("Authorization"))


def _request(request: web.Request, body: bytes) -> HttpRequest:
    headers = CIMultiDict(
        (key, value) for key, value in request.headers.items() if key.lower() not in _HOP_BY_HOP
    )
    # As Cloud Run does: the function may read who called, and cannot call others with the token.
    for name in ("X-Serverless-Authorization", "Authorization"):
        token = bearer(request.headers.get(name))
        if token:
            headers[name] = f"Bearer {token.rpartition('.')[0]}.SIGNATURE_REMOVED_BY_GOOGLE"
            break
    given = headers.pop(EXECUTION_HEADER, "")
    headers[EXECUTION_HEADER] = (
        given if re.fullmatch(r"[A-Za-z0-9_.-]{1,128}", given) else secrets.token_hex(6)
    )
    path = "/" + request.match_info.get("rest", "")
    query = request.rel_url.raw_query_string
    return HttpRequest(
        method=request.method, path=f"{path}?{query}" if query else path, headers=dict(headers), body=body
    )
