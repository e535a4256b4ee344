"""Sources of functions: where their zips are put and fetched. An URL is the permission, for half an hour."""

from __future__ import annotations

import html
import secrets
import uuid
from collections.abc import Mapping
from typing import Any, Final

from aiohttp import web

from fedkeeper.fabric.bodies import MEGABYTE, BodyMalformed, BodyTooLarge, read_body
from fedkeeper.fabric.google_operations import now_ms
from fedkeeper.fabric.google_rpc import invalid
from fedkeeper.fabric.store import Document, Store

SOURCE_MAX_BYTES: Final = 100 * MEGABYTE
URL_LIFETIME_MS: Final = 30 * 60 * 1000
KINDS: Final = ("upload", "upload-url", "download-url")


class Sources:
    """Handlers of /upload and /download, and what was put there."""

    def __init__(self, store: Store, base_url: str) -> None:
        self._store = store
        self._base_url = base_url

    def routes(self) -> list[web.RouteDef]:
        """Both, with their full paths. Uploads go to Cloud Storage on the real platform."""
        return [web.put("/upload/{token}", self._put), web.get("/download/{token}", self._get)]

    async def upload_url(self, parent: str) -> dict[str, Any]:
        """Where a zip may be put once, and how a function names it afterwards."""
        project, location = parent.split("/")[1::2]
        bucket, name = (
            f"gcf-v2-uploads-{project}.{location}.cloudfunctions.appspot.com",
            f"{uuid.uuid4()}.zip",
        )
        token = await self._permit("upload-url", {"object": f"{bucket}/{name}", "parent": parent})
        url = f"{self._base_url}/upload/{token}"
        return {"uploadUrl": url, "storageSource": {"bucket": bucket, "object": name}}

    async def download_url(self, function: Document) -> dict[str, Any]:
        """Where the source that serves is to be had."""
        token = await self._permit("download-url", {"name": f"{function.name}.zip"}, blob=function.blob)
        return {"downloadUrl": f"{self._base_url}/download/{token}"}

    async def blob(self, parent: str, source: Mapping[str, Any]) -> tuple[str, str]:
        """sha256 and generation of an upload. Refused INVALID_ARGUMENT."""
        place = f"{source['bucket']}/{source['object']}"
        upload = await self._store.get("upload", parent, place)
        if upload is None:
            raise invalid(f"Source object gs://{place[:200]} was not found: upload it first.")
        generation = str(upload.updated_ms * 1000)
        if source.get("generation") not in (None, "0", generation):
            raise invalid(f"Source object gs://{place[:200]} has no generation {source['generation'][:40]}.")
        return upload.blob, generation

    async def _permit(self, kind: str, body: Mapping[str, Any], *, blob: str = "") -> str:
        token, now = secrets.token_urlsafe(32), now_ms()
        told = {**body, "expires_ms": now + URL_LIFETIME_MS}
        await self._store.put(Document(kind=kind, scope="", name=token, updated_ms=now, body=told, blob=blob))
        return token

    async def _put(self, request: web.Request) -> web.Response:
        """Take the zip, once."""
        told = await self._store.get("upload-url", "", request.match_info["token"])
        if told is None:
            return _storage_error(403, "SignatureDoesNotMatch", "Access denied.")
        if told.body["expires_ms"] < now_ms():
            return _storage_error(400, "ExpiredToken", "The provided token has expired.")
        try:
            content = await read_body(request, SOURCE_MAX_BYTES)
        except BodyTooLarge as exc:
            words = f"Your proposed upload is larger than the maximum object size: {exc}"
            return _storage_error(400, "EntityTooLarge", words)
        except BodyMalformed as exc:
            return _storage_error(400, "RequestTimeout", str(exc))
        blob = await self._store.put_blob(content)
        scope, name, now = told.body["parent"], told.body["object"], now_ms()
        await self._store.put(
            Document(kind="upload", scope=scope, name=name, updated_ms=now, body={}, blob=blob)
        )
        await self._store.remove("upload-url", "", told.name)
        return web.Response(headers={"x-goog-generation": str(now * 1000)})

    async def _get(self, request: web.Request) -> web.Response:
        told = await self._store.get("download-url", "", request.match_info["token"])
        if told is None:
            return _storage_error(403, "SignatureDoesNotMatch", "Access denied.")
        if told.body["expires_ms"] < now_ms():
            return _storage_error(400, "ExpiredToken", "The provided token has expired.")
        return web.Response(body=await self._store.blob(told.blob), content_type="application/zip")


def _storage_error(status: int, code: str, words: str) -> web.Response:
    """As Cloud Storage answers: XML."""
    text = (
        "<?xml version='1.0' encoding='UTF-8'?>"
        f"<Error><Code>{code}</Code><Message>{html.escape(words)}</Message></Error>"
    )
    return web.Response(status=status, text=text, content_type="application/xml")
