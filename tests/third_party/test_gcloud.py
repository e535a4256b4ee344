"""`gcloud functions` against the fabric as it runs; only where gcloud is installed: no registry has it."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from fedkeeper.fabric.launch import open_fabric

PROJECT = "third-party"
REGION = "europe-west3"
GCLOUD = shutil.which("gcloud") or ""
OTHERS = ("SERVICEUSAGE", "CLOUDBUILD", "CLOUDRESOURCEMANAGER", "RUN", "LOGGING", "IAM")
SOURCE = """
def handle(request):
    return {"got": request.get_json()}
"""
DEPLOY = (
    "deploy", "life", "--gen2", "--trigger-http", "--no-allow-unauthenticated", "--runtime=python311",
    "--entry-point=handle",
)  # fmt: skip
Gcloud = Callable[..., Awaitable[subprocess.CompletedProcess[str]]]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not GCLOUD, reason="gcloud is not installed, and no package registry has it"),
]


async def other_api(request: web.Request) -> web.Response:
    """What gcloud asks other services of Google for; Cloud Functions is not among them."""
    if request.path.endswith("/defaultServiceAccount"):
        email = f"projects/{PROJECT}/serviceAccounts/builder@{PROJECT}.iam.gserviceaccount.com"
        return web.json_response({"serviceAccountEmail": email})
    if request.path.endswith(f"/projects/{PROJECT}"):
        return web.json_response({"projectId": PROJECT, "projectNumber": "12", "lifecycleState": "ACTIVE"})
    if request.path.endswith("IamPolicy"):  # of the Cloud Run service, which is the function's own here
        return web.json_response({"version": 1, "etag": "ACAB"})
    error = {"code": 403, "status": "PERMISSION_DENIED", "message": "not asked for here"}
    return web.json_response({"error": error}, status=403)


@pytest.fixture
async def gcloud(tmp_path: Path) -> AsyncIterator[Gcloud]:
    """Runs `gcloud functions …` with a service account of the fabric; everything is on loopback."""
    running = await open_fabric(tmp_path / "fabric", namespaces=[], projects=[PROJECT], linger_s=5)
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", other_api)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    others = f"http://127.0.0.1:{runner.addresses[0][1]}/"
    key = tmp_path / "key.json"
    key.write_text(json.dumps(dict(running.address.service_accounts[PROJECT])))
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "main.py").write_text(SOURCE)
    (tmp_path / "source" / "requirements.txt").touch()
    settings = {
        "CONFIG": str(tmp_path / "config"),
        "CORE_PROJECT": PROJECT,
        "CORE_DISABLE_PROMPTS": "1",
        "CORE_DISABLE_USAGE_REPORTING": "1",
        "CORE_CHECK_GCE_METADATA": "0",
        "COMPONENT_MANAGER_DISABLE_UPDATE_CHECK": "1",
        "SURVEY_DISABLE_PROMPTS": "1",
        "FUNCTIONS_REGION": REGION,
        "AUTH_CREDENTIAL_FILE_OVERRIDE": str(key),
        "AUTH_TOKEN_HOST": f"{running.address.url}/token",
        "API_ENDPOINT_OVERRIDES_CLOUDFUNCTIONS": f"{running.address.url}/",
        **{f"API_ENDPOINT_OVERRIDES_{name}": others for name in OTHERS},
    }
    plain = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    environment = {
        **plain,
        "HOME": str(tmp_path),
        **{f"CLOUDSDK_{key}": one for key, one in settings.items()},
    }

    async def run(*words: str, fails: bool = False) -> subprocess.CompletedProcess[str]:
        done = await asyncio.to_thread(
            subprocess.run, [GCLOUD, "functions", *words], cwd=tmp_path / "source", env=environment,
            check=False, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert bool(done.returncode) is fails, done.stdout + done.stderr
        return done

    yield run
    await runner.cleanup()
    await running.close()


async def told(gcloud: Gcloud, *words: str) -> Any:
    """What a command prints, as JSON."""
    return json.loads((await gcloud(*words, "--format=json")).stdout)


async def test_the_whole_life_of_a_function(gcloud: Gcloud) -> None:
    """Deployed, described, called with gcloud's own ID token, listed, updated, deleted."""
    made = await told(gcloud, *DEPLOY)
    assert (made["state"], made["serviceConfig"]["availableMemory"]) == ("ACTIVE", "256M")
    assert made["labels"]["deployment-tool"] == "cli-gcloud"
    called = await gcloud("call", "life", "--gen2", '--data={"x": 1}')
    assert '{"got":{"x":1}}' in called.stdout
    updated = await told(gcloud, *DEPLOY, "--memory=512Mi", "--update-labels=a=b", "--timeout=90s")
    assert updated["serviceConfig"]["availableMemory"] == "512Mi"
    assert updated["serviceConfig"]["timeoutSeconds"] == 90
    assert updated["labels"]["a"] == "b"
    assert updated["serviceConfig"]["revision"] != made["serviceConfig"]["revision"]
    assert await told(gcloud, "describe", "life", "--gen2") == updated
    (listed,) = await told(gcloud, "list", "--v2")
    assert listed["name"] == made["name"] == f"projects/{PROJECT}/locations/{REGION}/functions/life"
    await gcloud("delete", "life", "--gen2")
    gone = await gcloud("describe", "life", "--gen2", fails=True)
    assert re.search(r"functions/life' was not found", gone.stderr)


async def test_a_deployment_that_fails_and_what_else_is_asked(gcloud: Gcloud) -> None:
    """The platform's message is shown; the function is FAILED; runtimes and regions are told."""
    failed = await gcloud(*DEPLOY[:-1], "--entry-point=nobody", fails=True)
    assert "MissingTargetException" in failed.stderr
    shown = await told(gcloud, "describe", "life", "--gen2")
    assert shown["state"] == "FAILED"
    assert "MissingTargetException" in shown["stateMessages"][0]["message"]
    assert "python312" in {one["name"] for one in await told(gcloud, "runtimes", "list")}
    assert [one["name"].rpartition("/")[2] for one in await told(gcloud, "regions", "list", "--gen2")] == [
        REGION
    ]
