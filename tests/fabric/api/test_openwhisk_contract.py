# ruff: noqa: E501 - rows of tables of the platform's words
"""The OpenWhisk API row by row: what is asked, and the platform's status and words for it.

The rows follow the platform's own documents and sources (see the modules' docstrings). None of them changes
anything that another one reads.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import pytest
import pytest_asyncio

from fedkeeper.fabric.front import FrontSettings
from fedkeeper.fabric.openwhisk_entities import Bounds
from tests.fabric.api.conftest import HELLO

pytestmark = pytest.mark.asyncio(loop_scope="module")

GONE = "The requested resource does not exist."
ELSEWHERE = "Resource by this name exists but is not in this collection."
EXISTS = "resource already exists"
MALFORMED = "The request content was malformed:\n"
CODE = {"exec": {"kind": "python:3", "code": HELLO}}
OTHER = "/api/v1/namespaces/other"


@dataclass(frozen=True)
class Row:
    """A request, and what the platform answers."""

    method: str
    path: str
    status: int
    expected: Any = None  # a string: the whole `error`; an object: these members; a list: the body
    body: Any = None
    data: bytes | None = None
    auth: str | None = ""
    sent: dict[str, str] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        told = self.body if self.data is None else self.data
        return f"{self.method} {self.path} {told if told is not None else ''}"[:90].strip()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fabric(open_fabric_of_module):
    """Two namespaces with one of everything, on a platform with the real one's limits."""
    bounds = Bounds(timeout_ms=(100, 300_000), memory_mb=(128, 512), sequence_length=3)
    async with open_fabric_of_module(FrontSettings(bounds=bounds)) as fabric:
        await populate(fabric)
        yield fabric


async def populate(fabric):
    """What the rows read."""
    other = fabric.credentials.openwhisk["other"]
    for path, body, auth in (
        ("actions/hello", CODE, ""),
        ("actions/fails", {"exec": {"kind": "python:3", "code": "def main(args):\n    return {'error': 'no'}\n"}}, ""),
        ("actions/list", {"exec": {"kind": "python:3", "code": "def main(args):\n    return [1, 2]\n"}}, ""),
        ("actions/final", {**CODE, "parameters": [{"key": "a", "value": 1}, {"key": "b", "value": None}], "annotations": [{"key": "final", "value": True}]}, ""),
        ("actions/box", {"exec": {"kind": "blackbox", "image": "me/box:1"}}, ""),
        ("packages/tools", {"publish": True, "parameters": [{"key": "name", "value": "tools"}]}, ""),
        ("actions/tools/hello", CODE, ""),
        ("actions/tools/feed", {**CODE, "annotations": [{"key": "feed", "value": True}]}, ""),
        ("packages/empty", {}, ""),
        ("packages/shared", {"publish": True, "parameters": [{"key": "name", "value": "shared"}]}, other),
        ("actions/shared/echo", CODE, other),
        ("packages/hidden", {}, other),
        ("actions/hidden/echo", CODE, other),
        ("actions/private", CODE, other),
        ("packages/bound", {"binding": {"namespace": "other", "name": "shared"}, "parameters": [{"key": "x", "value": 2}]}, ""),
        ("actions/chain", {"exec": {"kind": "sequence", "components": ["/_/hello", "/guest/tools/hello"]}}, ""),
        ("triggers/news", {"parameters": [{"key": "p", "value": 1}]}, ""),
        ("triggers/silent", {}, ""),
        ("rules/reader", {"trigger": "/_/news", "action": "/_/hello"}, ""),
    ):  # fmt: skip
        made = await fabric.call("PUT", path, body, auth=auth)
        assert made.status == 200, made


ABOUT = [
    Row("GET", "/", 200, {"description": "OpenWhisk", "api_paths": ["/api/v1"]}, auth=None),
    Row(
        "GET",
        "/api/v1",
        200,
        {
            "description": "OpenWhisk API",
            "api_version": "1.0.0",
            "api_version_path": "v1",
            "swagger_paths": {"ui": "/docs", "api-docs": "/api-docs"},
        },
        auth=None,
        headers={"Access-Control-Allow-Origin": "*"},
    ),
    Row("GET", "/api/v1/", 200, {"description": "OpenWhisk API"}, auth=None),
    Row("GET", "/api/v1/namespaces", 200, ["guest"]),
    Row("GET", "/api/v1/namespaces/", 200, ["guest"]),
    Row(
        "GET",
        "limits",
        200,
        {
            "invocationsPerMinute": 1_000_000,
            "concurrentInvocations": 256,
            "firesPerMinute": 1_000_000,
            "minActionMemory": 128,
            "maxActionMemory": 512,
            "minActionTimeout": 100,
            "maxActionTimeout": 300_000,
            "minActionLogs": 0,
            "maxActionLogs": 10,
            "minActionConcurrency": 1,
            "maxActionConcurrency": 1,
            "maxParameterSize": "1 MB",
            "maxActionInstances": 256,
        },
    ),
    Row("GET", f"{OTHER}/limits", 403, "The supplied authentication is not authorized to access 'other'."),
    Row(
        "OPTIONS",
        "actions/hello",
        200,
        auth=None,
        headers={
            "Access-Control-Allow-Methods": "GET, DELETE, POST, PUT, HEAD",
            "Access-Control-Allow-Headers": "Authorization, Origin, X-Requested-With, Content-Type, Accept, User-Agent",
        },
    ),
    Row(
        "GET",
        "actions",
        401,
        "The resource requires authentication, which was not supplied with the request",
        auth=None,
        headers={"WWW-Authenticate": 'Basic realm="OpenWhisk secure realm",charset=UTF-8'},
    ),
    Row("GET", "actions", 401, "The supplied authentication is invalid", auth="no:body"),
    Row("GET", "/api/v1/nothing", 404, "The requested resource could not be found."),
    Row("GET", "things", 404, "The requested resource could not be found."),
    Row("GET", "/api/v1/namespaces/a+b/actions", 400, "The namespace contains illegal characters."),
    Row("GET", f"/api/v1/namespaces/{'n' * 257}/actions", 400, "Namespace longer than allowed: 257 > 256."),
    Row(
        "PATCH",
        "actions/hello",
        405,
        "HTTP method not allowed, supported methods: PUT, GET, DELETE, POST, OPTIONS",
    ),
    Row("POST", "actions", 405, "HTTP method not allowed, supported methods: GET, OPTIONS", body={}),
    Row(
        "POST",
        "packages/tools",
        405,
        "HTTP method not allowed, supported methods: PUT, GET, DELETE, OPTIONS",
        body={},
        headers={"Allow": "PUT, GET, DELETE, OPTIONS"},
    ),
    Row(
        "PUT",
        "activations/" + "0" * 32,
        405,
        "HTTP method not allowed, supported methods: GET, OPTIONS",
        body={},
    ),
    Row(
        "GET",
        "actions/none",
        404,
        GONE,
        sent={"X-Request-ID": "tid_1/2=3"},
        headers={"X-Request-ID": "tid_1/2=3"},
    ),
]

ACTIONS = [
    Row("GET", "actions/hello", 200, {"namespace": "guest", "name": "hello", "version": "0.0.1", "publish": False, "parameters": [], "limits": {"timeout": 60000, "memory": 256, "logs": 10, "concurrency": 1}, "annotations": [{"key": "provide-api-key", "value": False}, {"key": "exec", "value": "python:3"}], "exec": {"kind": "python:3", "code": HELLO, "binary": False}}),
    Row("GET", "actions/hello?code=false", 200, {"exec": {"kind": "python:3", "binary": False}}),
    Row("GET", "actions/hello?code=perhaps", 400, "The query parameter 'code' was malformed:\n'perhaps' is not a valid Boolean value"),
    Row("GET", "actions/none", 404, GONE),
    Row("DELETE", "actions/none", 404, GONE),
    Row("POST", "actions/none", 404, GONE, body={}),
    Row("GET", f"{OTHER}/actions", 403, "The supplied authentication is not authorized to access 'other'."),
    Row("GET", f"{OTHER}/actions/private", 403, "The supplied authentication is not authorized to access 'other/private'."),
    Row("PUT", f"{OTHER}/actions/mine", 403, "The supplied authentication is not authorized to access 'other/mine'.", body=CODE),
    Row("POST", f"{OTHER}/actions/private", 403, "The supplied authentication is not authorized to access 'other/private'.", body={}),
    Row("DELETE", f"{OTHER}/actions/shared/echo", 403, "The supplied authentication is not authorized to access 'other/shared/echo'."),
    Row("GET", "actions/news", 409, ELSEWHERE),
    Row("PUT", "actions/tools", 409, ELSEWHERE, body=CODE),
    Row("POST", "actions/reader", 409, ELSEWHERE, body={}),
    Row("PUT", "actions/hello", 409, EXISTS, body=CODE),
    Row("PUT", "actions/hello?overwrite=no", 409, EXISTS, body=CODE),
    Row("PUT", "actions/" + "a" * 257, 400, "Name segement longer than allowed: 257 > 256.", body=CODE),
    Row("PUT", "actions/a%2Fb", 400, "The name of the entity contains illegal characters.", body=CODE),
    Row("PUT", "actions/%20a", 400, "The name of the entity contains illegal characters.", body=CODE),
    Row("PUT", "actions/a%7Bb%7D", 400, "The name of the entity contains illegal characters.", body=CODE),
    Row("PUT", "actions/new", 400, "exec undefined", body={}),
    Row("PUT", "actions/new", 415, "The request's Content-Type [text/plain] is not supported. Expected:\napplication/json", data=b"{}", sent={"Content-Type": "text/plain"}),
    Row("PUT", "actions/new", 400, MALFORMED + "Object expected", data=b"[]"),
    Row("PUT", "actions/new", 400, MALFORMED + "'kind' must be a string defined in 'exec'", body={"exec": {"code": HELLO}}),
    Row("PUT", "actions/new", 400, MALFORMED + "'code' must be a string or attachment object defined in 'exec' for 'python:3' actions", body={"exec": {"kind": " Python:3 "}}),
    Row("PUT", "actions/new", 400, MALFORMED + "if defined, 'main' be a string in 'exec' for 'python:3' actions", body={"exec": {"kind": "python:3", "code": "x", "main": 1}}),
    Row("PUT", "actions/new", 400, MALFORMED + "The specified runtime 'cobol:1' is not supported by this platform. Valid values are: 'python:3', 'python:3.9', 'python:3.10', 'python:3.11', 'python:3.12', 'python:3.13', 'python:3.14', 'nodejs:18', 'nodejs:20', 'nodejs:22', 'nodejs:24', 'sequence', 'blackbox'.", body={"exec": {"kind": "cobol:1", "code": "x"}}),
    Row("PUT", "actions/new", 400, MALFORMED + "'image' must be a string defined in 'exec' for 'blackbox' actions", body={"exec": {"kind": "blackbox"}}),
    Row("PUT", "actions/new", 400, MALFORMED + "could not parse image name: A B", body={"exec": {"kind": "blackbox", "image": "A B"}}),
    Row("PUT", "actions/new", 413, f"exec larger than allowed: {48 * 2**20 + 1} > {48 * 2**20} bytes.", body={"exec": {"kind": "python:3", "code": "x" * (48 * 2**20 + 1)}}),
    Row("PUT", "actions/new", 413, f"parameters larger than allowed: {2**20 + 1} > {2**20} bytes.", body={**CODE, "parameters": [{"key": "k", "value": "v" * (2**20 - 2)}]}),
    Row("PUT", "actions/new", 413, f"annotations larger than allowed: {2**20 + 1} > {2**20} bytes.", body={**CODE, "annotations": [{"key": "k", "value": "v" * (2**20 - 2)}]}),
    Row("PUT", "actions/new", 400, MALFORMED + "parameters malformed!", body={**CODE, "parameters": {"a": 1}}),
    Row("PUT", "actions/new", 400, MALFORMED + "parameters malformed!", body={**CODE, "annotations": [{"key": "a"}]}),
    Row("PUT", "actions/new", 400, MALFORMED + "semantic version malformed", body={**CODE, "version": "1.0"}),
    Row("PUT", "actions/new", 400, "memory size 513 MB exceeds allowed threshold of 512 MB", body={**CODE, "limits": {"memory": 513}}),
    Row("PUT", "actions/new", 400, "memory size 127 MB below allowed threshold of 128 MB", body={**CODE, "limits": {"memory": 127}}),
    Row("PUT", "actions/new", 400, "duration 99 milliseconds below allowed threshold of 100 milliseconds", body={**CODE, "limits": {"timeout": 99}}),
    Row("PUT", "actions/new", 400, "duration 300001 milliseconds exceeds allowed threshold of 300000 milliseconds", body={**CODE, "limits": {"timeout": 300001}}),
    Row("PUT", "actions/new", 400, "log size 11 MB exceeds allowed threshold of 10 MB", body={**CODE, "limits": {"logs": 11}}),
    Row("PUT", "actions/new", 400, "concurrency 2 exceeds allowed threshold of 1", body={**CODE, "limits": {"concurrency": 2}}),
    Row("PUT", "actions/new", 400, "Max action instance concurrency must not exceed your namespace concurrency of 256.", body={**CODE, "limits": {"instances": 257}}),
    Row("PUT", "actions/new", 400, MALFORMED + "time limit malformed", body={**CODE, "limits": {"timeout": "1 s"}}),
    Row("PUT", "actions/new", 400, MALFORMED + "requirement failed: memory limit must be whole number", body={**CODE, "limits": {"memory": 128.5}}),
    Row("GET", "actions?limit=201", 400, "The query parameter 'limit' was malformed:\nThe value '201' is not in the range of 0 to 200 for actions."),
    Row("GET", "actions?limit=ten", 400, "The query parameter 'limit' was malformed:\nThe value 'ten' is not an integer for actions."),
    Row("GET", "actions?skip=-1", 400, "The query parameter 'skip' was malformed:\nThe value '-1' is not greater than or equal to 0 for actions."),
    Row("GET", "actions?count=true&skip=3", 200, {"actions": 5}),
]  # fmt: skip

SEQUENCES = [
    Row("GET", "actions/chain", 200, {"exec": {"kind": "sequence", "components": ["/guest/hello", "/guest/tools/hello"]}, "parameters": [{"key": "_actions", "value": ["/guest/hello", "/guest/tools/hello"]}], "annotations": [{"key": "provide-api-key", "value": False}, {"key": "exec", "value": "sequence"}]}),
    Row("PUT", "actions/new", 400, "No component specified for the sequence.", body={"exec": {"kind": "sequence", "components": []}}),
    Row("PUT", "actions/new", 400, "Sequence component does not exist.", body={"exec": {"kind": "sequence", "components": ["/_/none"]}}),
    Row("PUT", "actions/new", 400, "Sequence component does not exist.", body={"exec": {"kind": "sequence", "components": ["/_/tools/none"]}}),
    Row("PUT", "actions/new", 404, GONE, body={"exec": {"kind": "sequence", "components": ["/_/none/hello"]}}),
    Row("PUT", "actions/new", 403, "The supplied authentication is not authorized to access 'other/private'.", body={"exec": {"kind": "sequence", "components": ["/other/private"]}}),
    Row("PUT", "actions/new", 403, "The supplied authentication is not authorized to access 'other/hidden'.", body={"exec": {"kind": "sequence", "components": ["/other/hidden/echo"]}}),
    Row("PUT", "actions/new", 400, "Too many actions in the sequence.", body={"exec": {"kind": "sequence", "components": ["/_/hello"] * 4}}),
    Row("PUT", "actions/new", 400, "Too many actions in the sequence.", body={"exec": {"kind": "sequence", "components": ["/_/chain", "/_/chain"]}}),
    Row("PUT", "actions/new", 400, "Sequence may not refer to itself.", body={"exec": {"kind": "sequence", "components": ["/_/hello", "/_/new"]}}),
    Row("PUT", "actions/hello?overwrite=true", 400, "Sequence may not refer to itself.", body={"exec": {"kind": "sequence", "components": ["/_/chain"]}}),
    Row("PUT", "actions/chain", 409, EXISTS, body={"exec": {"kind": "sequence", "components": []}}),
    Row("PUT", "actions/new", 400, MALFORMED + "'components' must be defined for sequence kind", body={"exec": {"kind": "sequence"}}),
    Row("PUT", "actions/new", 400, MALFORMED + "'components' must be an array", body={"exec": {"kind": "sequence", "components": "/_/hello"}}),
    Row("PUT", "actions/new", 400, MALFORMED + "requirement failed: The fully qualified name of the entity must contain at least the namespace and the name of the entity.", body={"exec": {"kind": "sequence", "components": ["hello"]}}),
    Row("PUT", "actions/new", 400, MALFORMED + "fully qualified name malformed", body={"exec": {"kind": "sequence", "components": [7]}}),
]  # fmt: skip

INVOCATIONS = [
    Row("POST", "actions/hello?blocking=true", 200, {"name": "hello", "namespace": "guest", "subject": "guest", "version": "0.0.1", "publish": False, "logs": []}, body={}),
    Row("POST", "actions/hello?blocking=true&result=true", 200, {"hello": "you", "args": {"name": "you"}}, body={"name": "you"}),
    Row("POST", "actions/hello?blocking=TRUE&result=On", 200, {"hello": "nobody"}),
    Row("POST", "actions/hello?blocking=true&result=true", 200, {"hello": "nobody"}, data=b"", sent={"Content-Type": "application/json"}),
    Row("POST", "actions/list?blocking=true", 200, [1, 2]),
    Row("POST", "actions/fails?blocking=true", 502, {"name": "fails"}, body={}),
    Row("POST", "actions/fails?blocking=true&result=true", 502, {"error": "no"}, body={}),
    Row("POST", "actions/box?blocking=true&result=true", 502, {"error": "Failed to pull container image 'me/box:1'."}, body={}),
    Row("POST", "actions/final?blocking=true&result=true", 200, {"args": {"a": 1, "b": 2}}, body={"b": 2}),
    Row("POST", "actions/final", 400, "Request defines parameters that are not allowed (e.g., reserved properties).", body={"a": 2}),
    Row("POST", "actions/hello?blocking=true&timeout=0", 400, "The query parameter 'timeout' was malformed:\nTimeout must be number of milliseconds up to 60000.", body={}),
    Row("POST", "actions/hello?blocking=true&timeout=60001", 400, "The query parameter 'timeout' was malformed:\nTimeout must be number of milliseconds up to 60000.", body={}),
    Row("POST", "actions/hello?timeout=soon", 400, "The query parameter 'timeout' was malformed:\nTimeout must be number of milliseconds up to 60000.", body={}),
    Row("POST", "actions/hello", 413, f"Request larger than allowed: {2**20 + 1} > {2**20} bytes.", data=b" " * (2**20 + 1)),
    Row("POST", "actions/hello", 415, "The request's Content-Type [text/xml] is not supported. Expected:\napplication/json", data=b"<a/>", sent={"Content-Type": "text/xml"}),
    Row("POST", "actions/hello", 400, MALFORMED + "Object expected", data=b"[1]"),
    Row("POST", "actions/tools/hello?blocking=true&result=true", 200, {"hello": "tools"}, body={}),
    Row("POST", "actions/bound/echo?blocking=true&result=true", 200, {"args": {"name": "shared", "x": 2}}, body={}),
    Row("POST", f"{OTHER}/actions/shared/echo?blocking=true&result=true", 200, {"args": {"name": "shared"}}, body={}),
    Row("POST", f"{OTHER}/actions/hidden/echo", 403, "The supplied authentication is not authorized to access 'other/hidden'.", body={}),
    Row("POST", f"{OTHER}/actions/none/echo", 403, "The supplied authentication is not authorized to access 'other/none'.", body={}),
    Row("POST", "actions/none/hello", 404, GONE, body={}),
    Row("POST", "actions/tools/none", 404, GONE, body={}),
    Row("POST", "actions/hello/echo", 409, ELSEWHERE, body={}),
    Row("POST", "actions/chain?blocking=true&result=true", 200, {"hello": "tools"}, body={"name": "me"}),
]  # fmt: skip

ACTIVATIONS = [
    Row("GET", "activations/abc", 400, "Activation id length is 3 but must be 32."),
    Row("GET", "activations/" + "G" * 32, 400, "The activation id is not valid."),
    Row("GET", "activations/" + "0" * 32, 404, GONE),
    Row("GET", "activations/" + "0" * 32 + "/logs", 404, GONE),
    Row("GET", "activations/" + "0" * 32 + "/result", 404, GONE),
    Row("GET", f"{OTHER}/activations", 403, "The supplied authentication is not authorized to access 'other'."),
    Row("GET", f"{OTHER}/activations/" + "0" * 32, 403, f"The supplied authentication is not authorized to access 'other/{'0' * 32}'."),
    Row("GET", "activations?docs=true&count=true", 400, "The parameter 'docs' is not permitted with 'count'."),
    Row("GET", "activations?since=now", 400, "The query parameter 'since' was malformed:\nParameter is not a valid value for epoch seconds: now"),
    Row("GET", "activations?upto=x", 400, "The query parameter 'upto' was malformed:\nParameter is not a valid value for epoch seconds: x"),
    Row("GET", "activations?name=a/b/c", 400, "The query parameter 'name' was malformed:\nParameter may be a 'simple' name or 'package-name/simple' name: a/b/c"),
    Row("GET", "activations?limit=500", 400, "The query parameter 'limit' was malformed:\nThe value '500' is not in the range of 0 to 200 for activations."),
    Row("GET", "activations?name=never", 200, []),
    Row("GET", "activations?name=never&count=true", 200, {"activations": 0}),
]  # fmt: skip

PACKAGES = [
    Row("GET", "packages/empty", 200, {"namespace": "guest", "name": "empty", "binding": {}, "version": "0.0.1", "publish": False, "parameters": [], "annotations": [], "actions": [], "feeds": []}),
    Row("GET", "packages/tools", 200, {"actions": [{"name": "hello", "version": "0.0.1", "annotations": [{"key": "provide-api-key", "value": False}, {"key": "exec", "value": "python:3"}]}], "feeds": [{"name": "feed", "version": "0.0.1", "annotations": [{"key": "provide-api-key", "value": False}, {"key": "feed", "value": True}, {"key": "exec", "value": "python:3"}]}]}),
    Row("GET", "packages/bound", 200, {"namespace": "guest", "name": "bound", "binding": {"namespace": "other", "name": "shared"}, "parameters": [{"key": "name", "value": "shared"}, {"key": "x", "value": 2}], "annotations": [{"key": "binding", "value": {"namespace": "other", "name": "shared"}}]}),
    Row("GET", f"{OTHER}/packages/shared", 200, {"name": "shared", "publish": True}),
    Row("GET", f"{OTHER}/packages/hidden", 403, "The supplied authentication is not authorized to access 'other/hidden'."),
    Row("GET", "packages/none", 404, "The requested resource 'guest/none' does not exist."),
    Row("GET", "packages/hello", 409, ELSEWHERE),
    Row("DELETE", "packages/none", 404, GONE),
    Row("DELETE", "packages/tools", 409, "Package not empty (contains 2 entities). Set force param or delete package contents."),
    Row("PUT", "packages/tools", 409, EXISTS, body={}),
    Row("PUT", "packages/default", 400, "Package name 'default' is reserved.", body={}),
    Row("PUT", "packages/new", 400, "Binding references a package that does not exist.", body={"binding": {"namespace": "_", "name": "none"}}),
    Row("PUT", "packages/new", 409, "Cannot bind to a resource that is not a package.", body={"binding": {"namespace": "_", "name": "hello"}}),
    Row("PUT", "packages/new", 400, "Cannot bind to another package binding.", body={"binding": {"namespace": "_", "name": "bound"}}),
    Row("PUT", "packages/new", 403, "The supplied authentication is not authorized to access 'other/hidden'.", body={"binding": {"namespace": "other", "name": "hidden"}}),
    Row("PUT", "packages/new", 400, MALFORMED + "Object is missing required member 'name'", body={"binding": {"namespace": "_"}}),
    Row("PUT", "packages/tools?overwrite=true", 409, "Resource is a package and cannot be converted into a binding.", body={"binding": {"namespace": "other", "name": "shared"}}),
    Row("GET", "packages?count=true", 200, {"packages": 3}),
    Row("GET", f"{OTHER}/packages?count=true", 200, {"packages": 1}),
    Row("GET", "actions/tools/?count=true", 200, {"actions": 2}),
    Row("GET", "actions/bound/?count=true", 200, {"actions": 1}),
    Row("GET", "actions/none/", 404, GONE),
    Row("GET", f"{OTHER}/actions/hidden/", 403, "The supplied authentication is not authorized to access 'other/hidden'."),
    Row("GET", "actions/tools/hello", 200, {"namespace": "guest/tools", "name": "hello", "parameters": [{"key": "name", "value": "tools"}]}),
    Row("GET", "actions/bound/echo?code=false", 200, {"namespace": "other/shared", "name": "echo", "parameters": [{"key": "name", "value": "shared"}, {"key": "x", "value": 2}]}),
    Row("PUT", "actions/bound/mine", 400, "Operation not permitted on package binding.", body=CODE),
    Row("DELETE", "actions/bound/echo", 400, "Operation not permitted on package binding."),
    Row("PUT", "actions/none/mine", 404, GONE, body=CODE),
    Row("PUT", "actions/hello/mine", 409, ELSEWHERE, body=CODE),
]  # fmt: skip

EVENTS = [
    Row("GET", "triggers/news", 200, {"namespace": "guest", "name": "news", "version": "0.0.1", "publish": False, "limits": {}, "annotations": [], "parameters": [{"key": "p", "value": 1}], "rules": {"guest/reader": {"action": {"name": "hello", "path": "guest"}, "status": "active"}}}),
    Row("GET", "triggers/none", 404, GONE),
    Row("GET", "triggers/hello", 409, ELSEWHERE),
    Row("GET", "triggers?count=true", 200, {"triggers": 2}),
    Row("GET", f"{OTHER}/triggers", 403, "The supplied authentication is not authorized to access 'other'."),
    Row("PUT", "triggers/news", 409, EXISTS, body={}),
    Row("PUT", "triggers/new", 400, "Feed name is not valid", body={"annotations": [{"key": "feed", "value": "no?"}]}),
    Row("POST", "triggers/none", 404, GONE, body={}),
    Row("POST", "triggers/silent", 204, body={}),
    Row("POST", "triggers/news", 413, f"Request larger than allowed: {2**20 + 1} > {2**20} bytes.", data=b" " * (2**20 + 1)),
    Row("DELETE", "triggers/none", 404, GONE),
    Row("GET", "rules/reader", 200, {"namespace": "guest", "name": "reader", "status": "active", "trigger": {"name": "news", "path": "guest"}, "action": {"name": "hello", "path": "guest"}, "version": "0.0.1", "publish": False, "annotations": []}),
    Row("GET", "rules/none", 404, GONE),
    Row("GET", "rules?count=true", 200, {"rules": 1}),
    Row("PUT", "rules/reader", 409, EXISTS, body={}),
    Row("PUT", "rules/new", 400, "rule requires a valid trigger and a valid action", body={"trigger": "/_/news"}),
    Row("PUT", "rules/new", 400, "trigger /guest/none does not exist", body={"trigger": "/_/none", "action": "/_/hello"}),
    Row("PUT", "rules/new", 400, "action /guest/none does not exist", body={"trigger": "/_/news", "action": {"path": "_", "name": "none"}}),
    Row("PUT", "rules/new", 403, "The supplied authentication is not authorized to access 'other/private'.", body={"trigger": "/_/news", "action": "/other/private"}),
    Row("PUT", "rules/new", 403, "The supplied authentication is not authorized to access 'other/t'.", body={"trigger": "/other/t", "action": "/_/hello"}),
    Row("PUT", "rules/new", 400, MALFORMED + "fully qualified name malformed", body={"trigger": 1, "action": "/_/hello"}),
    Row("POST", "rules/reader", 400, MALFORMED + "requirement failed: on is not a recognized rule state", body={"status": "on"}),
    Row("POST", "rules/none", 404, GONE, body={"status": "active"}),
    Row("POST", "rules/reader", 200, body={"status": "active"}),
    Row("DELETE", "rules/none", 404, GONE),
]  # fmt: skip


@pytest.mark.parametrize(
    "row", [*ABOUT, *ACTIONS, *SEQUENCES, *INVOCATIONS, *ACTIVATIONS, *PACKAGES, *EVENTS], ids=str
)
async def test_the_platforms_answer(fabric, row):
    """Status, words or members, and headers are the platform's; an error names its transaction."""
    sent = {key.replace("-", "_"): value for key, value in row.sent.items()}
    answer = await fabric.call(row.method, row.path, row.body, data=row.data, auth=row.auth, **sent)
    assert (answer.status, answer.body) == (row.status, answer.body)
    if isinstance(row.expected, str):
        assert answer.body == {"error": row.expected, "code": answer.headers["X-Request-ID"]}
    elif isinstance(row.expected, dict):
        assert {key: answer.body.get(key) for key in row.expected} == row.expected
    elif row.expected is not None:
        assert answer.body == row.expected
    assert {key: answer.headers.get(key) for key in row.headers} == row.headers
    if row.status in {200, 202} and "/web/" not in row.path:
        assert answer.headers["Access-Control-Allow-Origin"] == "*"


async def test_no_row_left_anything_behind(fabric):
    """Refused requests create nothing."""
    for kind in ("actions", "packages", "triggers", "rules"):
        listed = (await fabric.call("GET", f"{kind}?limit=0")).body
        assert "new" not in {item["name"] for item in listed}, json.dumps(listed)
