"""What the OpenWhisk API tells of itself: the documents at / and /api/v1, namespaces and limits.

Source: apache/openwhisk, core/controller/.../{Controller,RestAPIs,Namespaces,Limits}.scala.
"""

from __future__ import annotations

from typing import Any

from aiohttp import web

import fedkeeper
from fedkeeper.fabric.bodies import json_response
from fedkeeper.fabric.openwhisk_exec import DEFAULTS, KINDS
from fedkeeper.fabric.openwhisk_parameters import PARAMETERS_MAX_BYTES
from fedkeeper.fabric.openwhisk_platform import Platform


class About:
    """Handlers of /, /api/v1, /api/v1/namespaces and …/limits."""

    def __init__(self, platform: Platform) -> None:
        self._platform = platform

    def routes(self, base: str) -> list[web.RouteDef]:
        """All routes, some of them under `base`."""
        routes = [web.get("/", self._describe, allow_head=False)]
        for path, handler in (
            ("/api/v1", self._describe_api),
            ("/api/v1/namespaces", self._namespaces),
            (f"{base}/limits", self._limits),
        ):
            routes += [web.get(f"{path}{end}", handler, allow_head=False) for end in ("", "/")]
        return routes

    async def _describe(self, request: web.Request) -> web.Response:
        del request
        bounds = self._platform.bounds
        ranges = {
            "duration": bounds.timeout_ms,
            "memory": tuple(mb << 20 for mb in bounds.memory_mb),
            "logs": tuple(mb << 20 for mb in bounds.logs_mb),
        }
        limits = {
            f"{level}{edge}_action_{what}": values[at]
            for level in ("default_", "")
            for what, values in ranges.items()
            for at, edge in enumerate(("min", "max"))
        }
        runtimes: dict[str, list[dict[str, Any]]] = {}
        for kind in KINDS:
            runtimes.setdefault(kind.partition(":")[0], []).append(
                {
                    "kind": kind,
                    "default": kind in DEFAULTS.values(),
                    "deprecated": False,
                    "image": "",
                    "attached": True,
                    "requireMain": False,
                }
            )
        return json_response(
            {
                "description": "OpenWhisk",
                "support": {"github": "", "slack": ""},
                "api_paths": ["/api/v1"],
                "limits": {
                    "actions_per_minute": bounds.invocations_per_minute,
                    "triggers_per_minute": bounds.fires_per_minute,
                    "concurrent_actions": bounds.concurrent_invocations,
                    "sequence_length": bounds.sequence_length,
                    **limits,
                },
                "runtimes": runtimes,
            }
        )

    async def _describe_api(self, request: web.Request) -> web.Response:
        del request
        return json_response(
            {
                "description": "OpenWhisk API",
                "api_version": "1.0.0",
                "api_version_path": "v1",
                "build": f"fedkeeper {fedkeeper.__version__}",
                "buildno": fedkeeper.__version__,
                "swagger_paths": {"ui": "/docs", "api-docs": "/api-docs"},
            }
        )

    async def _namespaces(self, request: web.Request) -> web.Response:
        return json_response([self._platform.keys.caller(request).namespace])

    async def _limits(self, request: web.Request) -> web.Response:
        self._platform.owned(request)
        bounds = self._platform.bounds
        named = {
            "Memory": bounds.memory_mb,
            "Timeout": bounds.timeout_ms,
            "Logs": bounds.logs_mb,
            "Concurrency": bounds.concurrency,
        }
        edges = {
            f"{edge}Action{what}": bound[at]
            for what, bound in named.items()
            for at, edge in enumerate(("min", "max"))
        }
        return json_response(
            {
                "invocationsPerMinute": bounds.invocations_per_minute,
                "concurrentInvocations": bounds.concurrent_invocations,
                "firesPerMinute": bounds.fires_per_minute,
                **edges,
                "maxParameterSize": f"{PARAMETERS_MAX_BYTES >> 20} MB",
                "maxActionInstances": bounds.concurrent_invocations,
            }
        )
