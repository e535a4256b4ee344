"""OpenWhisk's answers, one by one: what each means to the keeper (contracts of apache/openwhisk @1fae641)."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from pydantic import SecretStr

from fedkeeper.errors import (
    ConfigError,
    InvocationUnknown,
    ProviderUnavailable,
    RequestRefused,
)
from fedkeeper.providers.openwhisk import provider as module
from fedkeeper.providers.openwhisk.provider import OpenWhisk
from tests.providers.canned import Canned
from tests.providers.canned_openwhisk import KEY, error, open_to, package


async def act(whisk: OpenWhisk, what: str) -> Any:
    """One read or write by name."""
    match what:
        case "invoke":
            return await whisk.invoke("f", {"a": 1}, key="k", timeout_s=1)
        case "deploy":
            return await whisk.deploy(package())
        case "remove":
            return await whisk.remove("f")
        case "list":
            return await whisk.list()
        case _:
            return await whisk.check()


@pytest.mark.parametrize(
    ("what", "kind"),
    [("invoke", InvocationUnknown), ("deploy", InvocationUnknown), ("list", ProviderUnavailable)],
)
async def test_a_connection_that_breaks_after_sending_leaves_writes_open(
    whisk: OpenWhisk, canned: Canned, what: str, kind: type
) -> None:
    """A POST is sent once: it may be running. A read can simply be asked again."""
    canned.drop()
    with pytest.raises(kind):
        await act(whisk, what)
    posts = [seen for seen in canned.seen if seen.method == "POST"]
    assert len(posts) == (what == "invoke")


async def test_no_answer_in_time_leaves_an_invocation_open(canned: Canned) -> None:
    """The read timeout after sending is not a failure of the function."""
    import asyncio

    canned.hold = asyncio.Event()
    canned.reply(202, {"activationId": "x"})
    async with open_to(canned.url, read_timeout_s=0.2) as whisk:
        with pytest.raises(InvocationUnknown, match="Timeout"):
            await act(whisk, "invoke")


async def test_nothing_is_sent_to_a_port_where_nobody_listens(unused_tcp_port: int) -> None:
    """Definite: the same key can be sent again."""
    async with open_to(f"http://127.0.0.1:{unused_tcp_port}") as whisk:
        with pytest.raises(ProviderUnavailable, match="not sent") as caught:
            await act(whisk, "invoke")
    assert caught.value.definite


async def test_an_answer_beyond_all_bounds_is_not_held_in_memory(
    whisk: OpenWhisk, canned: Canned, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of an invocation it leaves open what happened."""
    monkeypatch.setattr(module, "RECORD_BYTES_MAX", 1000)
    canned.reply(202, b"x" * 5000)
    with pytest.raises(InvocationUnknown, match="longer than 1000 bytes"):
        await act(whisk, "invoke")


async def test_a_deployment_is_one_put_of_all_that_the_action_needs(whisk: OpenWhisk, canned: Canned) -> None:
    """init parameters for the environment, no API key for the function, the digest as annotation."""
    canned.reply(200, {"namespace": "guest", "name": "client_3", "version": "0.0.2", "updated": 7})
    deployed = await whisk.deploy(package())
    (seen,) = canned.seen
    assert (seen.method, seen.path, seen.query) == (
        "PUT",
        "/api/v1/namespaces/_/actions/client_3",
        {"overwrite": "true"},
    )
    assert seen.headers["Authorization"] == "Basic " + base64.b64encode(KEY.encode()).decode()
    assert seen.json == {
        "exec": {"kind": "python:default", "code": base64.b64encode(b"zip").decode(), "main": "main"},
        "limits": {"timeout": 1500, "memory": 512, "concurrency": 1},
        "parameters": [{"key": "STORE", "value": "geheim", "init": True}],
        "annotations": [
            {"key": "provide-api-key", "value": False},
            {"key": "fedkeeper-digest", "value": "d" * 40},
        ],
    }
    assert (deployed.function, deployed.version, deployed.updated_ms) == ("client_3", "0.0.2", 7)
    assert deployed.url == f"{canned.url}/api/v1/namespaces/guest/actions/client_3"


async def test_what_each_round_calls_asks_for_a_worker_before_it_is_called(
    whisk: OpenWhisk, canned: Canned
) -> None:
    """By an annotation, which a real cluster keeps and does not read."""
    canned.reply(200, {})
    await whisk.deploy(package(ahead=True))
    (seen,) = canned.seen
    assert {"key": "fedkeeper-ahead", "value": True} in seen.json["annotations"]


async def test_a_large_package_is_one_put_as_well(whisk: OpenWhisk, canned: Canned) -> None:
    """It goes out piece by piece, with its length said before."""
    canned.reply(200, {})
    await whisk.deploy(package(archive=bytes(3 * 2**20)))
    (seen,) = canned.seen
    assert seen.json["exec"]["code"] == base64.b64encode(bytes(3 * 2**20)).decode()
    assert seen.headers["Content-Length"] == str(len(seen.body))


async def test_an_image_makes_it_a_blackbox(whisk: OpenWhisk, canned: Canned) -> None:
    """TensorFlow never fits in the zip: on a real OpenWhisk the runtime is an image."""
    canned.reply(200, {})
    await whisk.deploy(package(image="me/tf:1", runtime="ignored"))
    executable = canned.seen[0].json["exec"]
    assert (executable["kind"], executable["image"]) == ("blackbox", "me/tf:1")
    assert executable["code"]


async def test_details_hold_no_secrets(whisk: OpenWhisk, canned: Canned) -> None:
    """Neither parameters nor code, nor annotations that can be passwords."""
    canned.reply(
        200,
        [
            {
                "namespace": "guest/pkg",
                "name": "f",
                "version": "0.0.1",
                "parameters": [{"key": "p", "value": "geheim"}],
                "exec": {"kind": "python:3.11", "code": "geheim", "binary": True},
                "limits": {"memory": 256},
                "annotations": [
                    {"key": "require-whisk-auth", "value": "geheim"},
                    {"key": "fedkeeper-digest", "value": "abc"},
                ],
            }
        ],
    )
    (deployed,) = await whisk.list()
    assert "geheim" not in repr(deployed)
    assert (deployed.function, deployed.digest, deployed.state) == ("pkg/f", "abc", "active")
    assert deployed.url.endswith("/namespaces/guest/actions/pkg/f")
    assert deployed.details["exec"] == {"kind": "python:3.11", "binary": True}


async def test_the_list_goes_through_all_pages(whisk: OpenWhisk, canned: Canned) -> None:
    """200 at a time, until a page is not full; a row that shifted onto the next page counts once."""
    full = [{"namespace": "g", "name": f"f{n}"} for n in range(200)]
    canned.reply(200, full).reply(200, [full[-1], {"namespace": "g", "name": "last"}])
    assert len(await whisk.list()) == 201
    assert [seen.query["skip"] for seen in canned.seen] == ["0", "200"]


async def test_remove_tells_whether_there_was_one(whisk: OpenWhisk, canned: Canned) -> None:
    """A second removal is no error."""
    canned.reply(200, {"name": "f"}).reply(404, error("The requested resource does not exist."))
    assert await whisk.remove("f") is True
    assert await whisk.remove("f") is False


async def test_names_are_quoted_in_urls(whisk: OpenWhisk, canned: Canned) -> None:
    """OpenWhisk's names may have blanks and @; "package/name" stays two segments."""
    canned.reply(202, {"activationId": "a" * 32})
    assert await whisk.invoke("pkg/my f@1", {}, key="k", timeout_s=1) == "a" * 32
    assert canned.seen[0].path == "/api/v1/namespaces/_/actions/pkg/my f@1"
    assert canned.seen[0].query == {"blocking": "false"}


async def test_a_payload_that_is_no_json_is_not_sent(whisk: OpenWhisk, canned: Canned) -> None:
    """NaN has no place in JSON; OpenWhisk would answer in riddles."""
    with pytest.raises(RequestRefused, match="payload of k"):
        await whisk.invoke("f", {"loss": float("nan")}, key="k", timeout_s=1)
    assert canned.seen == []


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"auth": SecretStr("nocolon")}, "uuid:key"),
        ({"api_host": "ftp://x"}, "api_host"),
        ({"api_host": "https://user:pw@x"}, "api_host"),
        ({"api_host": "https://x/api/v1"}, "api_host"),
        ({"ca_file": "/nowhere.pem"}, "ca_file"),
    ],
)
async def test_settings_that_cannot_be_right_are_refused(options: dict[str, Any], says: str) -> None:
    """Before anything is opened, and without the secret in the text."""
    with pytest.raises(ConfigError, match=says) as caught:
        async with OpenWhisk.open("ow", **{"api_host": "https://x", "auth": SecretStr(KEY), **options}):
            raise AssertionError
    assert "nocolon" not in str(caught.value)
    assert "pw" not in str(caught.value)


async def test_a_host_without_scheme_gets_tls() -> None:
    """As `wsk` takes it: APIHOST=openwhisk.example.org."""
    async with OpenWhisk.open("ow", api_host="ow.example", auth=SecretStr(KEY)) as whisk:
        assert str(whisk.connection.api) == "https://ow.example/api/v1/namespaces/_"
        assert KEY not in repr(whisk)
