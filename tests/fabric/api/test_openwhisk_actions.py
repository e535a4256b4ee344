# ruff: noqa: E501 - rows of tables of the platform's words
"""Actions over the OpenWhisk API: the platform's bodies, words and status codes."""

import asyncio

import pytest

from tests.fabric.api.conftest import HELLO, zipped


async def test_the_base_needs_no_credentials_and_everything_else_does(fabric):
    """GET /api/v1 describes the API; without a valid key all else is 401 in the platform's words."""
    base = await fabric.call("GET", "/api/v1", auth=None)
    assert base.status == 200
    assert base.body["description"] == "OpenWhisk API"
    for auth in (None, "nobody:x", fabric.credentials.openwhisk["guest"][:-1], "é:é"):
        refused = await fabric.call("GET", "actions", auth=auth)
        assert refused.status == 401
        missing = "The resource requires authentication, which was not supplied with the request"
        assert refused.body["error"] == (
            missing if auth is None else "The supplied authentication is invalid"
        )
        assert refused.body["code"] == refused.headers["X-Request-ID"]
        assert refused.headers["WWW-Authenticate"].startswith("Basic")


async def test_a_namespace_is_its_owners_alone(fabric):
    """`_` is the caller's own; another's is 403."""
    assert (await fabric.call("GET", "/api/v1/namespaces")).body == ["guest"]
    await fabric.put("a")
    other = fabric.credentials.openwhisk["other"]
    assert (await fabric.call("GET", "actions", auth=other)).body == []
    refused = await fabric.call("GET", "/api/v1/namespaces/guest/actions/a", auth=other)
    assert refused.status == 403
    assert "not authorized to access 'guest/a'" in refused.body["error"]


async def test_unknown_paths_and_methods_have_the_platforms_answers(fabric):
    """Nothing under /api/v1 answers with anything but {error, code}; OPTIONS is always 200 with CORS."""
    missing = await fabric.call("GET", "/api/v1/namespaces/_/things")
    assert (missing.status, missing.body["error"]) == (404, "The requested resource could not be found.")
    wrong = await fabric.call("PATCH", "actions/a")
    assert wrong.status == 405
    assert set(wrong.body) == {"error", "code"}
    options = await fabric.call("OPTIONS", "actions", auth=None)
    assert options.status == 200
    assert options.headers["Access-Control-Allow-Origin"] == "*"


async def test_an_action_is_created_read_updated_and_deleted(fabric):
    """An update keeps what it does not mention, merges annotations, replaces parameters, counts on."""
    made = await fabric.put(
        "hello",
        parameters=[{"key": "a", "value": 1}],
        annotations=[{"key": "x", "value": 1}],
        limits={"memory": 512},
    )
    assert made.status == 200
    assert made.body["namespace"] == "guest"
    assert made.body["version"] == "0.0.1"
    assert made.body["exec"] == {"kind": "python:3", "code": HELLO, "binary": False}
    assert made.body["limits"] == {"timeout": 60000, "memory": 512, "logs": 10, "concurrency": 1}
    assert {"key": "provide-api-key", "value": False} in made.body["annotations"]
    assert {"key": "exec", "value": "python:3"} in made.body["annotations"]

    assert (await fabric.put("hello")).body["error"] == "resource already exists"
    assert (await fabric.put("hello")).status == 409
    change = {"annotations": [{"key": "y", "value": 2}], "parameters": [], "limits": {"timeout": 1000}}
    updated = await fabric.call("PUT", "actions/hello?overwrite=True", change)
    assert updated.body["version"] == "0.0.2"
    assert updated.body["exec"]["code"] == HELLO
    assert updated.body["parameters"] == []
    assert updated.body["limits"] == {"timeout": 1000, "memory": 512, "logs": 10, "concurrency": 1}
    assert {"x", "y", "exec", "provide-api-key"} == {item["key"] for item in updated.body["annotations"]}

    assert (await fabric.call("GET", "actions/hello")).body == updated.body
    assert "code" not in (await fabric.call("GET", "actions/hello?code=false")).body["exec"]
    listed = (await fabric.call("GET", "actions")).body
    assert [item["name"] for item in listed] == ["hello"]
    assert listed[0]["exec"] == {"binary": False}
    assert (await fabric.call("GET", "actions?count=true")).body == {"actions": 1}
    assert (await fabric.call("DELETE", "actions/hello")).body == updated.body
    assert (await fabric.call("GET", "actions/hello")).status == 404
    assert (await fabric.call("DELETE", "actions/hello")).status == 404


async def test_lists_are_newest_first_and_paged(fabric):
    """limit 0 is 200, limits out of range are refused."""
    for name in ("a", "b", "c"):
        await fabric.put(name)
        await asyncio.sleep(0.002)  # `updated` has milliseconds
    names = [item["name"] for item in (await fabric.call("GET", "actions?limit=2&skip=1")).body]
    assert names == ["b", "a"]
    assert len((await fabric.call("GET", "actions?limit=0")).body) == 3
    refused = await fabric.call("GET", "actions?limit=201")
    assert (refused.status, refused.body["error"]) == (
        400,
        "The query parameter 'limit' was malformed:\n"
        "The value '201' is not in the range of 0 to 200 for actions.",
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"exec": {"kind": "cobol:1", "code": "x"}}, "The specified runtime 'cobol:1' is not supported by this platform. Valid values are: "),
        ({"exec": {"kind": "python:3"}}, "'code' must be a string"),
        ({"exec": None}, "exec undefined"),
        ({"limits": {"memory": 64}}, "memory size 64 MB below allowed threshold of 128 MB"),
        ({"limits": {"memory": 99999}}, "memory size 99999 MB exceeds allowed threshold of 2048 MB"),
        ({"limits": {"timeout": 99}}, "duration 99 milliseconds below allowed threshold of 100 milliseconds"),
        ({"limits": {"concurrency": 2}}, "concurrency 2 exceeds allowed threshold of 1"),
        ({"limits": {"logs": 11}}, "log size 11 MB exceeds allowed threshold of 10 MB"),
        ({"limits": {"memory": "much"}}, "memory limit malformed"),
        ({"parameters": {"a": 1}}, "parameters malformed"),
        ({"version": "one"}, "semantic version malformed"),
    ],
)  # fmt: skip
async def test_a_put_that_breaks_a_rule_is_refused_in_the_platforms_words(fabric, change, words):
    """400, and the next request is served."""
    body = {"exec": {"kind": "python:3", "code": HELLO}, **change}
    refused = await fabric.call("PUT", "actions/bad", body)
    assert refused.status == 400
    assert words in refused.body["error"]
    assert (await fabric.put("good")).status == 200


async def test_kinds_and_names(fabric):
    """python:default becomes a real kind; a name has the platform's alphabet and length."""
    body = {"exec": {"kind": "python:default", "code": HELLO}}
    assert (await fabric.call("PUT", "actions/d", body)).body["exec"]["kind"].startswith("python:3.")
    assert (await fabric.put("a b")).status == 200
    long = await fabric.put("a" * 257)
    assert (long.status, long.body["error"]) == (400, "Name segement longer than allowed: 257 > 256.")
    assert (await fabric.put("%2Fetc")).body["error"] == "The name of the entity contains illegal characters."
    assert (await fabric.put("..%2Fx")).status == 400


async def test_bodies_that_are_no_strict_json_are_refused(fabric):
    """NaN, a depth bomb, a doubled key, an array, another media type: refused, and nothing is started."""
    await fabric.put("a")
    deep = b'{"a":' + b"[" * 5000 + b"]" * 5000 + b"}"
    less_deep = b'{"a":' + b"[" * 300 + b"]" * 300 + b"}"
    for data in (
        b'{"a": NaN}',
        b'{"a": 1e999}',
        deep,
        less_deep,
        b'{"error":1,"error":2}',
        b"[1]",
        b"{",
        b"\xff",
    ):
        refused = await fabric.call("POST", "actions/a", data=data)
        assert refused.status == 400, data[:20]
        assert refused.body["error"].startswith("The request content was malformed:")
    assert (await fabric.call("POST", "actions/a", data=b"a=1", Content_Type="text/plain")).status == 415
    assert fabric.workers.contexts == []
    assert (await fabric.call("POST", "actions/a?blocking=true", {})).status == 200


async def test_too_large_bodies_are_refused_before_they_are_read(fabric):
    """Payload 1 MB, code 48 MB: 413 with both numbers."""
    await fabric.put("a")
    large = await fabric.call("POST", "actions/a", {"x": "y" * 1024 * 1024})
    assert large.status == 413
    assert large.body["error"] == f"Request larger than allowed: {1024 * 1024 + 9} > 1048576 bytes."
    parameters = await fabric.put("b", parameters=[{"key": "x", "value": "y" * 1024 * 1024}])
    assert parameters.status == 413
    assert parameters.body["error"].startswith("parameters larger than allowed: ")


async def test_an_unsafe_zip_is_refused_and_leaves_nothing(fabric):
    """A path that leads out of the package never reaches the disk."""
    refused = await fabric.put("evil", zipped(**{"../evil.py": "x", "__main__.py": HELLO}))
    assert refused.status == 400
    assert "leads out of the package" in refused.body["error"]
    assert (await fabric.call("GET", "actions/evil")).status == 404
    assert not list((fabric.folder / "revisions").glob("**/*.py"))


async def test_limits_tell_what_is_enforced(fabric):
    """Clients pace themselves by them."""
    limits = (await fabric.call("GET", "limits")).body
    assert limits["minActionMemory"] == 128
    assert limits["maxActionTimeout"] == 3_600_000
    assert limits["concurrentInvocations"] == 256
