"""Every call of the official client has its answer: none is "Method not found"."""

from __future__ import annotations

import asyncio
import json
from importlib import resources

import pytest
from google.api_core import exceptions as api_errors
from google.api_core.retry import Retry

from tests.fabric.api.conftest import zipped
from tests.fabric.api.google import ECHO, PARENT

NAME = f"{PARENT}/functions/whole"
SOON = Retry(initial=0.02, maximum=0.05, timeout=20)
# The calls that the client has from google.longrunning, google.cloud.location and google.iam.
OF_OTHERS = {
    "get_operation", "list_operations", "list_locations",
    "get_iam_policy", "set_iam_policy", "test_iam_permissions",
}  # fmt: skip


def calls_of_the_client():
    """Names of the methods that send something, as the package itself lists them; and those of others."""
    listed = json.loads(
        resources.files("google.cloud.functions_v2").joinpath("gapic_metadata.json").read_text()
    )
    rpcs = listed["services"]["FunctionService"]["clients"]["rest"]["rpcs"]
    return {method for rpc in rpcs.values() for method in rpc["methods"]} | OF_OTHERS


def a_life(caller):
    """Calls them all on one function, as a user would; which were called."""
    client, called = caller.client, set()

    def call(method, **request):
        called.add(method)
        return getattr(client, method)(request, timeout=10)

    made = caller.create("whole", zipped(main__py=ECHO))
    called |= {"generate_upload_url", "create_function"}
    made.description = "changed"
    mask = {"paths": ["description"]}
    operation = call("update_function", function=made, update_mask=mask)
    assert call("get_operation", name=operation.operation.name).name == operation.operation.name
    assert operation.result(timeout=20, retry=SOON).description == "changed"
    assert call("get_function", name=NAME).description == "changed"
    assert [one.name for one in call("list_functions", parent=PARENT)] == [NAME]
    assert call("generate_download_url", name=NAME).download_url
    assert list(call("list_runtimes", parent=PARENT).runtimes)
    assert call("list_operations", name=PARENT).operations
    assert [one.location_id for one in call("list_locations", name="projects/demo").locations] == ["here"]
    policy = {"bindings": [{"role": "roles/run.invoker", "members": ["allUsers"]}]}
    assert call("set_iam_policy", resource=NAME, policy=policy).etag
    assert call("get_iam_policy", resource=NAME).bindings[0].role == "roles/run.invoker"
    asked = ["run.routes.invoke"]
    assert list(call("test_iam_permissions", resource=NAME, permissions=asked).permissions) == asked
    call("delete_function", name=NAME).result(timeout=20, retry=SOON)
    with pytest.raises(api_errors.NotFound, match="functions/whole' was not found"):
        client.get_function({"name": NAME}, timeout=10)
    return called


async def test_every_call_of_the_client_is_answered(fabric, caller):
    """A newer client with another call fails here first."""
    assert await asyncio.to_thread(a_life, caller) == calls_of_the_client()
