"""What the Cloud Functions API takes and refuses, one row per case; field masks; the codes of errors."""

from __future__ import annotations

import io
import json
import time

import pytest
from google.auth import crypt, jwt
from google.rpc import code_pb2

from fedkeeper.fabric import google_functions as rules
from fedkeeper.fabric.google_rpc import CODES, Refused
from tests.fabric.api.google import PARENT

NAME = f"{PARENT}/functions/f"
FULL = {
    "name": NAME,
    "environment": "GEN_2",
    "createTime": "2026-11-22T00:00:00Z",
    "description": "old",
    "labels": {"team": "blue", "kind": "old"},
    "buildConfig": {
        "runtime": "python311",
        "entryPoint": "main",
        "source": {"storageSource": {"bucket": "b", "object": "o"}},
        "environmentVariables": {"B": "1"},
    },
    "serviceConfig": {
        "availableMemory": "512Mi",
        "timeoutSeconds": 30,
        "environmentVariables": {"A": "1", "B": "2"},
    },
}


def body(build=None, service=None, **top):
    """A Function that would be taken, with changes; a value of None takes the field out."""

    def changed(whole, changes):
        return {key: value for key, value in {**whole, **(changes or {})}.items() if value is not None}

    return {
        "buildConfig": changed(FULL["buildConfig"], build),
        "serviceConfig": changed(FULL["serviceConfig"], service),
        **top,
    }


@pytest.mark.parametrize(
    ("function_id", "given", "words"),
    [
        ("", {}, "function ID"),
        ("Upper", {}, "function ID"),
        ("under_score", {}, "function ID"),
        ("1digit", {}, "function ID"),
        ("ends-", {}, "function ID"),
        ("a" * 64, {}, "function ID"),
        ("f", {"build": {"runtime": "python27"}}, "build_config.runtime 'python27'"),
        ("f", {"build": {"runtime": "nodejs20"}}, "is not supported"),
        ("f", {"build": {"runtime": None}}, "build_config.runtime"),
        ("f", {"build": {"entryPoint": None}}, "entry_point"),
        ("f", {"build": {"entryPoint": "a.b"}}, "entry_point"),
        ("f", {"build": {"entryPoint": "1st"}}, "entry_point"),
        ("f", {"build": {"source": {}}}, "storage_source"),
        ("f", {"build": {"source": {"storageSource": {"bucket": "b"}}}}, "storage_source"),
        ("f", {"build": {"environmentVariables": {"a b": "x"}}}, "build_config.environment_variables"),
        ("f", {"service": {"availableMemory": "lots"}}, "available_memory 'lots'"),
        ("f", {"service": {"availableMemory": "64Mi"}}, "between 128M and 32Gi"),
        ("f", {"service": {"availableMemory": "33Gi"}}, "between 128M and 32Gi"),
        ("f", {"service": {"availableMemory": 512}}, "available_memory"),
        ("f", {"service": {"availableCpu": "many"}}, "available_cpu 'many'"),
        ("f", {"service": {"timeoutSeconds": 3601}}, "timeoutSeconds"),
        ("f", {"service": {"timeoutSeconds": -1}}, "timeoutSeconds"),
        ("f", {"service": {"timeoutSeconds": "60"}}, "timeoutSeconds"),
        ("f", {"service": {"timeoutSeconds": True}}, "timeoutSeconds"),
        ("f", {"service": {"maxInstanceRequestConcurrency": 1001}}, "maxInstanceRequestConcurrency"),
        ("f", {"service": {"maxInstanceRequestConcurrency": 2}}, "available_cpu of 1 or more"),
        ("f", {"service": {"maxInstanceCount": 1001}}, "maxInstanceCount"),
        ("f", {"service": {"minInstanceCount": 3, "maxInstanceCount": 2}}, "must not exceed"),
        ("f", {"service": {"environmentVariables": {"K_SERVICE": "x"}}}, "'K_SERVICE' is reserved"),
        ("f", {"service": {"environmentVariables": {"X_GOOGLE_A": "x"}}}, "X_GOOGLE_ is reserved"),
        ("f", {"service": {"environmentVariables": {"A": 1}}}, "'A' is reserved or not valid"),
        ("f", {"service": {"environmentVariables": {"A": "x" * 32_768}}}, "exceed 32768 bytes"),
        ("f", {"service": {"environmentVariables": "A=1"}}, "an object is expected"),
        ("f", {"service": {"secretVolumes": [{"mountPath": "/x"}]}}, "secretVolumes is not supported"),
        ("f", {"service": {"secretVolumes": "x"}}, "a list is expected"),
        ("f", {"service": {"ingressSettings": 9}}, "function.serviceConfig.ingressSettings' \\(TYPE_ENUM\\)"),
        ("f", {"service": {"memory": "1Gi"}}, "Unknown name \"memory\" at 'function.serviceConfig'"),
        ("f", {"eventTrigger": {"eventType": "x"}}, "event_trigger"),
        ("f", {"environment": "GEN_1"}, "GEN_1"),
        ("f", {"environment": 1}, "GEN_1"),
        ("f", {"labels": {"Team": "x"}}, "labels: 'Team'"),
        ("f", {"labels": {"team": "X"}}, "labels: 'team'"),
        ("f", {"colour": "red"}, "Unknown name \"colour\" at 'function'"),
    ],
)
def test_what_could_not_be_deployed_is_refused_by_its_field(function_id, given, words):
    """INVALID_ARGUMENT, with the field in the words."""
    with pytest.raises(Refused, match=words) as refused:
        rules.new_function(function_id, NAME, body(**given), "now")
    assert (refused.value.name, refused.value.status) == ("INVALID_ARGUMENT", 400)


@pytest.mark.parametrize(
    ("service", "limits"),
    [
        ({"availableMemory": None, "timeoutSeconds": None}, (245, 60_000, 1, 100)),
        ({"availableMemory": "128Mi"}, (128, 30_000, 1, 100)),
        ({"availableMemory": "1Gi", "timeoutSeconds": 3600}, (1024, 3_600_000, 1, 100)),
        ({"availableMemory": "1.5G"}, (1431, 30_000, 1, 100)),
        ({"availableMemory": "268435456"}, (256, 30_000, 1, 100)),
        ({"availableMemory": "2Gi", "maxInstanceRequestConcurrency": 80}, (2048, 30_000, 80, 100)),
        ({"availableCpu": "1000m", "maxInstanceRequestConcurrency": 2}, (512, 30_000, 2, 100)),
        ({"maxInstanceCount": 3, "minInstanceCount": 1}, (512, 30_000, 1, 3)),
    ],
)
def test_limits_are_read_in_every_unit(service, limits):
    """Absent ones are the platform's defaults: 256M, 60 s, one request at once, 100 instances."""
    found = rules.limits(rules.new_function("f", NAME, body(service=service), "now"))
    assert (found.memory_mb, found.timeout_ms, found.concurrency, found.instances) == limits


def test_what_only_the_platform_sets_is_passed_over_and_enums_get_their_names():
    """A client may send back what it was given; the official one sends enums as numbers."""
    given = body(
        service={"uri": "http://x", "revision": "r", "ingressSettings": 1},
        build={"build": "b"},
        state=1,
        url="http://x",
        environment=2,
    )
    made = rules.new_function("f", NAME, given, "now")
    assert made["serviceConfig"]["ingressSettings"] == "ALLOW_ALL"
    assert not {"uri", "revision"} & set(made["serviceConfig"])
    assert "build" not in made["buildConfig"]
    assert not {"state", "url"} & set(made)
    source = FULL["buildConfig"]["source"]
    snake = {"build_config": {"entry_point": "other", "runtime": "python312", "source": source}}
    assert rules.new_function("f", NAME, snake, "now")["buildConfig"]["entryPoint"] == "other"


@pytest.mark.parametrize(
    ("mask", "given", "changes"),
    [
        ("description", {"description": "new", "labels": {}}, {"description": "new"}),
        ("description", {}, {"description": None}),
        ("labels", {"labels": {"only": "this"}}, {"labels": {"only": "this"}}),
        ("labels.team", {"labels": {"team": "red", "x": "y"}}, {"labels": {"team": "red", "kind": "old"}}),
        ("labels.team", {}, {"labels": {"kind": "old"}}),
        (
            "serviceConfig.availableMemory",
            {"serviceConfig": {"availableMemory": "1Gi", "timeoutSeconds": 9}},
            {"serviceConfig.availableMemory": "1Gi"},
        ),
        (
            "service_config.timeout_seconds",
            {"serviceConfig": {"timeoutSeconds": 9}},
            {"serviceConfig.timeoutSeconds": 9},
        ),
        ("serviceConfig.timeoutSeconds", {"serviceConfig": {}}, {"serviceConfig.timeoutSeconds": None}),
        (
            "serviceConfig.environmentVariables.A,description",
            {"serviceConfig": {"environmentVariables": {"A": "9", "C": "9"}}, "description": "new"},
            {"serviceConfig.environmentVariables": {"A": "9", "B": "2"}, "description": "new"},
        ),
        (
            "serviceConfig.environmentVariables",
            {"serviceConfig": {"environmentVariables": {}}},
            {"serviceConfig.environmentVariables": {}},
        ),
        ("serviceConfig", {"serviceConfig": {"timeoutSeconds": 9}}, {"serviceConfig": {"timeoutSeconds": 9}}),
        ("", {"serviceConfig": {"timeoutSeconds": 9}}, {"serviceConfig.timeoutSeconds": 9}),
        ("", {"environment": 2, "description": "new"}, {"description": "new"}),
        (
            "*",
            {"buildConfig": FULL["buildConfig"], "description": "new"},
            {"description": "new", "labels": None, "serviceConfig": None},
        ),
    ],
)
def test_a_mask_is_honoured_exactly(mask, given, changes):
    """Its fields are as the caller has them, absent ones cleared; no other field moves."""
    expected = json.loads(json.dumps(FULL))
    for path, value in changes.items():
        *steps, last = path.split(".")
        inner = expected
        for step in steps:
            inner = inner[step]
        if value is None:
            inner.pop(last)
        else:
            inner[last] = value
    assert rules.updated_function(FULL, given, mask) == expected


@pytest.mark.parametrize(
    "mask",
    ["nothing", "name", "state", "environment", "serviceConfig.uri", "serviceConfig.nothing", "labels,url",
     "description.x"],
)  # fmt: skip
def test_a_mask_that_leads_nowhere_is_refused(mask):
    """So is one that names what only the platform sets: nothing is changed in silence."""
    with pytest.raises(Refused, match="field mask"):
        rules.updated_function(FULL, FULL, mask)


def test_every_code_is_the_one_of_google_rpc():
    """Names and numbers are google.rpc.Code's."""
    assert {name: code for name, (code, _) in CODES.items()} == {
        name: number for name, number in code_pb2.Code.items() if name != "OK"
    }


def token(account, **changes):
    """What the official client signs for the API."""
    now = int(time.time())
    claims = {"iss": account["client_email"], "sub": account["client_email"], "iat": now, "exp": now + 600}
    claims["aud"] = "https://cloudfunctions.googleapis.com/"
    return jwt.encode(crypt.RSASigner.from_service_account_info(account), {**claims, **changes}).decode()


@pytest.mark.parametrize(
    ("method", "path", "content", "status", "name", "words"),
    [
        ("POST", "functions?functionId=f", b"{", 400, "INVALID_ARGUMENT", "Invalid JSON payload received"),
        ("POST", "functions?functionId=f", b'{"a":NaN}', 400, "INVALID_ARGUMENT", "NaN"),
        ("POST", "functions?functionId=f", b'{"name":1,"name":2}', 400, "INVALID_ARGUMENT", "twice"),
        ("POST", "functions?functionId=f", b"[]", 400, "INVALID_ARGUMENT", "Object expected"),
        ("POST", "functions?functionId=f", b'{"function":{}}', 400, "INVALID_ARGUMENT", "Unknown name"),
        ("POST", "functions?functionId=f", b"{}", 400, "INVALID_ARGUMENT", "runtime"),
        ("POST", "functions?functionId=f", b"x" * (10 << 20) + b"x", 400, "INVALID_ARGUMENT", "10485760"),
        ("GET", "functions/none", b"", 404, "NOT_FOUND", "/functions/none' was not found"),
        ("PATCH", "functions/none", b"{}", 404, "NOT_FOUND", "was not found"),
        ("DELETE", "functions/none", b"", 404, "NOT_FOUND", "was not found"),
        ("POST", "functions/none:generateDownloadUrl", b"{}", 404, "NOT_FOUND", "was not found"),
        ("GET", "functions/none:getIamPolicy", b"", 404, "NOT_FOUND", "was not found"),
        ("POST", "functions/none:setIamPolicy", b"{}", 404, "NOT_FOUND", "was not found"),
        ("GET", "operations/none", b"", 404, "NOT_FOUND", "operation was not found"),
        ("GET", "functions?pageSize=-1", b"", 400, "INVALID_ARGUMENT", "page_size"),
        ("GET", "functions?pageToken=x", b"", 400, "INVALID_ARGUMENT", "page token"),
        ("GET", "functions?filter=((", b"", 400, "INVALID_ARGUMENT", "Invalid filter"),
        ("GET", "runtimes?filter=((", b"", 400, "INVALID_ARGUMENT", "Invalid filter"),
        ("GET", "nothing", b"", 404, "NOT_FOUND", "Method not found"),
        ("PUT", "functions", b"{}", 404, "NOT_FOUND", "Method not found"),
        ("POST", "functions/f:explode", b"{}", 404, "NOT_FOUND", "Method not found"),
    ],
)  # fmt: skip
async def test_errors_have_googles_form(fabric, method, path, content, status, name, words):
    """HTTP status, code, name and words agree; no answer is HTML."""
    headers = {"Authorization": f"Bearer {token(fabric.credentials.accounts['demo'])}"}
    url = f"{fabric.url}/v2/{PARENT}/{path}"
    async with fabric.http.request(method, url, data=io.BytesIO(content), headers=headers) as answer:
        told = await answer.json()
    assert answer.status == status
    assert set(told) == {"error"}
    assert (told["error"]["code"], told["error"]["status"]) == (status, name)
    assert words in told["error"]["message"]


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"exp": 1, "iat": 0}, "expired"),
        ({"iat": 2**33, "exp": 2**33 + 60}, "not valid yet"),
        ({"aud": "https://elsewhere/"}, "another audience"),
        ({"iss": "nobody@x.iam"}, "issuer is not known"),
        ({"sub": "other@x.iam"}, "another subject"),
        ({"exp": int(time.time()) + 9 * 3600}, "lives too long"),
    ],
)
async def test_a_token_that_is_not_good_is_unauthenticated(fabric, changes, why):
    """401 with the reason, and with nothing of the token."""
    bad = token(fabric.credentials.accounts["demo"], **changes)
    headers = {"Authorization": f"Bearer {bad}"}
    async with fabric.http.get(f"{fabric.url}/v2/{PARENT}/functions", headers=headers) as answer:
        told = (await answer.json())["error"]
    assert (answer.status, told["status"]) == (401, "UNAUTHENTICATED")
    assert answer.headers["WWW-Authenticate"].startswith("Bearer")
    assert why in told["message"]
    assert bad not in str(told)
