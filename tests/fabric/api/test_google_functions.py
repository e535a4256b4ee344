"""The Cloud Functions v2 API, by the official client with real service-account credentials."""

import asyncio
import time

import pytest
from google.api_core import exceptions as api_errors
from google.auth import crypt, jwt
from google.cloud import functions_v2

from fedkeeper.fabric.tokens import new_private_key
from tests.fabric.api.conftest import zipped
from tests.fabric.api.google import ECHO, PARENT, SOON, Caller


async def test_a_function_is_deployed_called_updated_and_deleted(fabric, caller):
    """The whole life of a function, by the official client, unchanged but for its endpoint."""

    def life():
        made = caller.create("hello-1", zipped(main__py=ECHO), environment_variables={"A": "1"})
        assert made.state == functions_v2.Function.State.ACTIVE
        assert made.url == f"{fabric.url}/fn/demo/here/hello-1" == made.service_config.uri
        assert made.environment == functions_v2.Environment.GEN_2
        answer = caller.invoke(made.url, {"x": 1})
        assert answer.status_code == 200
        assert answer.json() == {"got": {"x": 1}, "path": "/", "method": "POST"}

        made.service_config.available_memory = "1Gi"
        made.service_config.environment_variables = {}
        mask = {"paths": ["service_config.available_memory", "service_config.environment_variables"]}
        operation = caller.client.update_function({"function": made, "update_mask": mask}, timeout=10)
        updated = operation.result(timeout=20, retry=SOON)
        assert updated.service_config.available_memory == "1Gi"
        assert updated.service_config.timeout_seconds == 30
        assert not updated.service_config.environment_variables
        assert updated.service_config.revision != made.service_config.revision
        assert caller.invoke(made.url, {}).status_code == 200

        found = caller.client.get_function({"name": made.name}, timeout=10)
        assert found == updated
        caller.client.delete_function({"name": made.name}, timeout=10).result(timeout=20, retry=SOON)
        with pytest.raises(api_errors.NotFound):
            caller.client.get_function({"name": made.name}, timeout=10)
        assert caller.invoke(made.url, {}).status_code == 404

    await asyncio.to_thread(life)
    revision = fabric.workers.revisions[0]
    assert revision.flavour == "google"
    assert revision.limits.memory_mb == 512
    assert revision.limits.timeout_ms == 30_000
    assert revision.environment["A"] == "1"
    assert revision.environment["FUNCTION_TARGET"] == "hello"
    assert fabric.workers.revisions[-1].limits.memory_mb == 1024
    assert len(set(fabric.workers.retired)) == 2


async def test_an_update_that_fails_leaves_what_served(fabric, caller):
    """The function stays ACTIVE on its revision, with the problem among its state messages."""

    def fail():
        good = caller.create("good", zipped(main__py=ECHO))
        good.build_config.source.storage_source = caller.upload(zipped(main__py="raise ValueError('no way')"))
        with pytest.raises(api_errors.InvalidArgument, match="no way"):
            caller.client.update_function({"function": good}, timeout=10).result(timeout=20, retry=SOON)
        after = caller.client.get_function({"name": good.name}, timeout=10)
        assert after.state == functions_v2.Function.State.ACTIVE
        assert "no way" in after.state_messages[0].message
        assert after.service_config.revision == good.service_config.revision
        assert caller.invoke(good.url, {}).status_code == 200

    await asyncio.to_thread(fail)


async def test_what_breaks_a_rule_is_refused_with_the_clients_own_errors(fabric, caller):
    """400 BadRequest, 409 Conflict, 404 NotFound, each naming the field or the resource."""

    def break_rules():
        source = caller.upload(zipped(main__py=ECHO))

        def create(name, **service):
            function = caller.function(name, source, **service)
            return caller.client.create_function(
                {"parent": PARENT, "function": function, "function_id": name}, timeout=10
            )

        with pytest.raises(api_errors.BadRequest, match="function ID"):
            create("Not_Valid")
        with pytest.raises(api_errors.BadRequest, match="available_memory"):
            create("f", available_memory="lots")
        with pytest.raises(api_errors.BadRequest, match="timeoutSeconds"):
            create("f", timeout_seconds=4000)
        with pytest.raises(api_errors.BadRequest, match="available_cpu"):
            create("f", max_instance_request_concurrency=8)
        with pytest.raises(api_errors.BadRequest, match="K_SERVICE"):
            create("f", environment_variables={"K_SERVICE": "x"})
        create("f").result(timeout=20, retry=SOON)
        with pytest.raises(api_errors.Conflict):
            create("f")
        function = caller.function("g", {"bucket": "no", "object_": "where"})
        with pytest.raises(api_errors.BadRequest, match="upload it first"):
            caller.client.create_function({"parent": PARENT, "function": function, "function_id": "g"})
        with pytest.raises(api_errors.NotFound):
            caller.client.delete_function({"name": f"{PARENT}/functions/none"}, timeout=10)

    await asyncio.to_thread(break_rules)


async def test_only_the_projects_own_account_may_use_the_api(fabric):
    """Another project's account is 403; a key that is not the account's, and no token, are 401."""

    def trespass():
        for project, key, status in (("elsewhere", None, 403), ("demo", new_private_key(), 401)):
            stranger = Caller(fabric, project, key)
            with pytest.raises(Exception, match=r"Permission denied|invalid authentication") as refused:
                stranger.client.list_functions({"parent": PARENT}, timeout=10)
            if status == 403:
                assert isinstance(refused.value, api_errors.Forbidden)
            stranger.close()

    await asyncio.to_thread(trespass)
    none = await fabric.call("GET", f"/v2/{PARENT}/functions", auth=None)
    assert none.status == 401
    assert none.body["error"]["status"] == "UNAUTHENTICATED"
    missing = await fabric.call("GET", f"/v2/{PARENT}/nothing", auth=None)
    assert missing.status == 404
    assert missing.body["error"]["status"] == "NOT_FOUND"


async def test_forged_tokens_are_refused(fabric):
    """alg none, expired, too long a life, garbage: 401 every time, and the fabric serves on."""
    account = fabric.credentials.accounts["demo"]
    signer = crypt.RSASigner.from_service_account_info(account)
    now = int(time.time())
    good = {"iss": account["client_email"], "sub": account["client_email"], "iat": now, "exp": now + 600}
    good["aud"] = "https://cloudfunctions.googleapis.com/"
    token = jwt.encode(signer, good).decode()
    head, claims, signature = token.split(".")
    none = "eyJhbGciOiJub25lIn0"  # {"alg":"none"}
    forged = [
        f"{none}.{claims}.", f"{none}.{claims}.{signature}", f"{head}.{claims}.", f"{head}.{claims}",
        "x", "a.b.c", "..",
        jwt.encode(signer, {**good, "exp": now - 60, "iat": now - 600}).decode(),
        jwt.encode(signer, {**good, "exp": now + 86400}).decode(),
        jwt.encode(signer, {**good, "aud": "https://other.example/"}).decode(),
        jwt.encode(signer, {**good, "exp": "never"}).decode(),
        jwt.encode(signer, {**good, "iss": "somebody@else"}).decode(),
        "A" * 100_000,
    ]  # fmt: skip

    async def status(token):
        url = f"{fabric.url}/v2/{PARENT}/functions"
        async with fabric.http.get(url, headers={"Authorization": f"Bearer {token[:8000]}"}) as answer:
            return answer.status

    for bad in forged:
        assert await status(bad) == 401, bad[:40]
    assert await status(token) == 200


async def test_functions_survive_a_restart_and_half_done_deployments_fail(open_fabric):
    """What was DEPLOYING is FAILED with the reason; its operation has ended."""
    async with open_fabric() as fabric:
        caller = Caller(fabric)
        made = await asyncio.to_thread(caller.create, "f", zipped(main__py=ECHO))
        fabric.workers.gate.clear()

        def begin():
            function = caller.function("half", caller.upload(zipped(main__py=ECHO)))
            request = {"parent": PARENT, "function": function, "function_id": "half"}
            return caller.client.create_function(request, timeout=10).operation.name

        operation = await asyncio.to_thread(begin)
        caller.close()
    async with open_fabric() as fabric:
        caller = Caller(fabric)

        def look():
            half = caller.client.get_function({"name": f"{PARENT}/functions/half"}, timeout=10)
            assert half.state == functions_v2.Function.State.FAILED
            assert "stopped" in half.state_messages[0].message
            again = caller.client.get_function({"name": made.name}, timeout=10)
            assert caller.invoke(again.url, {}).status_code == 200
            told = caller.client.get_operation({"name": operation}, timeout=10)
            assert told.done
            assert told.error.code == 10

        await asyncio.to_thread(look)
        caller.close()
