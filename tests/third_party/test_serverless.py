"""The Serverless Framework with its OpenWhisk plugin deploys to the fabric, invokes there and clears up."""

from __future__ import annotations

import asyncio
import base64
import json
import subprocess

import aiohttp
import pytest

from tests.third_party.conftest import BIN, environment

HANDLER = """
def main(args):
    print("greeting", args.get("name"))
    return {"name": args.get("name"), "greeting": "Hello " + args.get("name", "stranger")}
"""
QUIET = {
    "SLS_TELEMETRY_DISABLED": "1",
    "SLS_TRACKING_DISABLED": "1",
    "SLS_INTERACTIVE_SETUP_ENABLE": "0",
    "SLS_NOTIFICATIONS_MODE": "off",
    "SLS_DEPRECATION_DISABLE": "*",
}


@pytest.fixture
def serverless(installed, fabric, tmp_path):
    """Runs a command of the framework in a service's folder and returns what it printed."""
    packages = installed("serverless")
    service = tmp_path / "service"
    service.mkdir()
    (service / "serverless.yml").write_bytes((packages / "service.yml").read_bytes())
    (service / "handler.py").write_text(HANDLER)
    (service / "node_modules").symlink_to(packages / "node_modules")
    (tmp_path / "home").mkdir()
    key = fabric.openwhisk_auth["guest"].get_secret_value()
    env = environment(OW_APIHOST=fabric.url, OW_AUTH=key, HOME=str(tmp_path / "home"), **QUIET)

    async def run(*words):
        program = [BIN / "node", packages / "node_modules" / "serverless" / "bin" / "serverless.js", *words]
        done = await asyncio.to_thread(
            subprocess.run, program, cwd=service, env=env, check=False,
            capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


@pytest.mark.slow
@pytest.mark.timeout(1200)
async def test_a_service_is_deployed_invoked_and_removed(serverless, fabric):
    """Functions, one of them in a package, a sequence, a trigger and its rule; then nothing is left."""
    key = fabric.openwhisk_auth["guest"].get_secret_value()
    headers = {"Authorization": f"Basic {base64.b64encode(key.encode()).decode()}"}
    base = f"{fabric.url}/api/v1/namespaces/_"

    async def names(collection):
        async with http.get(f"{base}/{collection}") as answer:
            return {item["name"] for item in await answer.json()}

    async with aiohttp.ClientSession(headers=headers) as http:
        await serverless("deploy")
        assert await names("actions") == {"greetings-dev-greet", "greet", "greetings-dev-twice"}
        assert await names("packages") == {"tools"}
        assert await names("triggers") == {"news"}
        assert await names("rules") == {"greetings_news_to_greet"}
        told = json.loads(await serverless("invoke", "-f", "greet", "-d", '{"name": "you"}'))
        assert told == {"name": "you", "greeting": "Hello you"}
        assert json.loads(await serverless("invoke", "-f", "packaged"))["greeting"] == "Hello tools"
        twice = json.loads(await serverless("invoke", "-f", "twice", "-d", '{"name": "two"}'))
        assert twice == {"name": "two", "greeting": "Hello two"}
        accepted = json.loads(await serverless("invoke", "-f", "greet", "-t", "nonblocking"))
        assert list(accepted) == ["activationId"]
        await serverless("deploy")  # an update
        async with http.get(f"{base}/actions/greetings-dev-greet?code=false") as answer:
            assert (await answer.json())["version"] == "0.0.2"
        assert "greeting you" in await serverless("logs", "-f", "greet")
        await serverless("remove")
        for collection in ("actions", "packages", "triggers", "rules"):
            assert await names(collection) == set()
