"""Google's own client and a plain HTTP client against the embedded fabric as it runs: real processes.

What is proven is that neither needs anything of ours: google-cloud-functions over REST with a service
account's key file, google-auth for ID tokens, requests for the calls.
"""

from __future__ import annotations

import asyncio
import io
import json
import time
import urllib.request
import zipfile
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import requests
from google.api_core import exceptions as api_errors
from google.api_core.retry import Retry
from google.auth import exceptions as auth_errors
from google.auth.credentials import AnonymousCredentials
from google.auth.credentials import CredentialsWithRegionalAccessBoundary as Boundary
from google.auth.transport.requests import AuthorizedSession, Request
from google.cloud import functions_v2
from google.oauth2 import service_account

from fedkeeper.fabric.launch import FabricAddress, open_fabric
from fedkeeper.providers.base import Package
from fedkeeper.providers.google.provider import Google
from tests.providers.canned_google import ending

PROJECT = "third-party"
SOON = Retry(initial=0.05, maximum=0.5, timeout=120)
SOURCE = """
import os, time

def handle(request):
    asked = request.get_json(silent=True) or {}
    if asked.get("arrived"):
        open(asked["arrived"], "x").close()
    until = time.monotonic() + 60
    while asked.get("gate") and not os.path.exists(asked["gate"]) and time.monotonic() < until:
        time.sleep(0.01)
    names = ("K_SERVICE", "K_REVISION", "K_CONFIGURATION", "PORT", "FUNCTION_TARGET", "MINE")
    return {"pid": os.getpid(), "asked": asked, "environment": {name: os.environ.get(name) for name in names}}
"""


@pytest.fixture(autouse=True)
def _stay_on_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """google-auth asks iamcredentials.googleapis.com about every service account, in the background."""
    monkeypatch.setattr(
        Boundary, "_is_regional_access_boundary_lookup_required", lambda _: False, raising=False
    )


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fabric(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[FabricAddress]:
    """The fabric's process, as `fedkeeper fabric` runs it."""
    folder = tmp_path_factory.mktemp("fabric")
    running = await open_fabric(folder, namespaces=[], projects=[PROJECT], linger_s=5)
    yield running.address
    await running.close()


class User:
    """Somebody with the key file and Google's libraries. Everything blocks."""

    def __init__(self, fabric: FabricAddress, key_file: Path, region: str = "europe-west3") -> None:
        key_file.write_text(json.dumps(dict(fabric.service_accounts[PROJECT])))
        self.key_file = key_file
        self.parent = f"projects/{PROJECT}/locations/{region}"
        self.client = functions_v2.FunctionServiceClient.from_service_account_file(
            str(key_file), transport="rest", client_options={"api_endpoint": fabric.url}
        )

    def deploy(self, name: str, source: str = SOURCE, requirements: str = "", **service: Any) -> Any:
        """Upload and create; waits."""
        archive = io.BytesIO()
        with zipfile.ZipFile(archive, "w") as bundle:
            bundle.writestr("main.py", source)
            bundle.writestr("requirements.txt", requirements)
        told = self.client.generate_upload_url({"parent": self.parent, "environment": 2}, timeout=30)
        put = urllib.request.Request(
            told.upload_url, archive.getvalue(), {"content-type": "application/zip"}, method="PUT"
        )
        with urllib.request.urlopen(put, timeout=30) as answer:
            assert answer.status == 200
        function = functions_v2.Function(
            build_config={
                "runtime": "python311",
                "entry_point": "handle",
                "source": {"storage_source": told.storage_source},
            },
            service_config={"available_memory": "256Mi", "timeout_seconds": 60, **service},
        )
        request = {"parent": self.parent, "function": function, "function_id": name}
        return self.client.create_function(request, timeout=30).result(timeout=120, retry=SOON)

    def session(self, url: str) -> AuthorizedSession:
        """HTTP with ID tokens for that function, as Google's documentation shows it."""
        return AuthorizedSession(
            service_account.IDTokenCredentials.from_service_account_file(
                str(self.key_file), target_audience=url
            )
        )

    def token(self, url: str) -> str:
        """One ID token."""
        credentials = service_account.IDTokenCredentials.from_service_account_file(
            str(self.key_file), target_audience=url
        )
        credentials.refresh(Request())
        return str(credentials.token)


@pytest.fixture
async def user(fabric: FabricAddress, tmp_path: Path) -> AsyncIterator[User]:
    """One; the connections are given back."""
    user = await asyncio.to_thread(User, fabric, tmp_path / "key.json")
    yield user
    user.client.transport.operations_client.transport._session.close()
    user.client.transport.close()


def arrives(path: Path) -> None:
    """Wait until a function has made this file."""
    until = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < until, "the function did not start"
        time.sleep(0.02)


async def test_the_whole_life_of_a_function(user: User) -> None:
    """Deployed, listed, read, updated by mask, invoked with ID tokens, downloaded, deleted."""

    def live() -> None:
        made = user.deploy("life", environment_variables={"MINE": "1"}, requirements="requests>=2\n")
        assert made.state == functions_v2.Function.State.ACTIVE
        listed = user.client.list_functions({"parent": user.parent}, timeout=30)
        assert made.name in {one.name for one in listed}
        with user.session(made.url) as session:
            told = session.post(made.url, json={"x": 1}, timeout=60).json()
            assert told["asked"] == {"x": 1}
            assert told["environment"] == {
                "K_SERVICE": "life",
                "K_REVISION": made.service_config.revision,
                "K_CONFIGURATION": "life",
                "PORT": "8080",
                "FUNCTION_TARGET": "handle",
                "MINE": "1",
            }
            made.service_config.environment_variables = {"MINE": "2"}
            mask = {"paths": ["service_config.environment_variables"]}
            updated = user.client.update_function({"function": made, "update_mask": mask}, timeout=30).result(
                timeout=120, retry=SOON
            )
            assert updated.service_config.revision != made.service_config.revision
            again = session.post(made.url, json={}, timeout=60).json()
            assert again["environment"]["MINE"] == "2"
            assert again["pid"] != told["pid"]
        link = user.client.generate_download_url({"name": made.name}, timeout=30).download_url
        source = zipfile.ZipFile(io.BytesIO(requests.get(link, timeout=30).content))
        assert source.read("main.py").decode() == SOURCE
        user.client.delete_function({"name": made.name}, timeout=30).result(timeout=60, retry=SOON)
        with pytest.raises(api_errors.NotFound):
            user.client.get_function({"name": made.name}, timeout=30)
        token = {"Authorization": f"Bearer {user.token(made.url)}"}
        assert requests.post(made.url, headers=token, timeout=30).status_code == 404

    await asyncio.to_thread(live)


@pytest.mark.parametrize(
    ("source", "requirements", "words"),
    [
        ("def handle(:", "", "SyntaxError"),
        (SOURCE, "no-such-distribution-at-all", "No matching distribution found"),
        ("import no_such_module", "", "No module named 'no_such_module'"),
        ("def other(request): ...", "", "MissingTargetException"),
    ],
)
async def test_a_build_that_fails(user: User, source: str, requirements: str, words: str) -> None:
    """InvalidArgument for whoever waits, FAILED with the message for whoever looks."""

    def fail() -> None:
        with pytest.raises(api_errors.InvalidArgument, match=words):
            user.deploy("broken", source, requirements)
        name = f"{user.parent}/functions/broken"
        broken = user.client.get_function({"name": name}, timeout=30)
        assert broken.state == functions_v2.Function.State.FAILED
        assert words in broken.state_messages[0].message
        user.client.delete_function({"name": name}, timeout=30).result(timeout=60, retry=SOON)

    await asyncio.to_thread(fail)


async def test_who_may_call_and_who_may_not(fabric: FabricAddress, user: User) -> None:
    """Plain HTTP: 403, 401, 200; everybody once the policy says so; 413 above 32 MiB."""

    def knock() -> None:
        made = user.deploy("door")
        good = {"Authorization": f"Bearer {user.token(made.url)}"}
        other = {"Authorization": f"Bearer {user.token(fabric.url)}"}
        assert requests.post(made.url, timeout=30).status_code == 403
        assert requests.post(made.url, headers=other, timeout=30).status_code == 401
        assert requests.post(made.url, headers=good, timeout=60).status_code == 200
        policy = {"bindings": [{"role": "roles/run.invoker", "members": ["allUsers"]}]}
        user.client.set_iam_policy({"resource": made.name, "policy": policy}, timeout=30)
        assert requests.post(made.url, timeout=60).status_code == 200
        large = b"x" * ((32 << 20) + 1)
        assert requests.post(made.url, data=large, headers=good, timeout=60).status_code == 413
        nobody = functions_v2.FunctionServiceClient(
            credentials=AnonymousCredentials(),
            transport="rest",
            client_options={"api_endpoint": fabric.url},
        )
        with pytest.raises(auth_errors.InvalidOperation):
            nobody.get_function({"name": made.name}, timeout=30)
        nobody.transport.close()

    await asyncio.to_thread(knock)


async def test_several_requests_share_an_instance_and_no_more_than_it_takes(
    user: User, tmp_path: Path
) -> None:
    """Three at once in one process; a fourth finds no place and, after a while, 429; then there is room."""

    def crowd() -> None:
        made = user.deploy(
            "crowd",
            max_instance_count=1,
            max_instance_request_concurrency=3,
            available_cpu="1",
        )
        headers = {"Authorization": f"Bearer {user.token(made.url)}"}
        gate = tmp_path / "gate"

        def call(name: str) -> requests.Response:
            asked = {"arrived": str(tmp_path / name), "gate": str(gate)}
            return requests.post(made.url, json=asked, headers=headers, timeout=90)

        with ThreadPoolExecutor(3) as threads:
            calls = [threads.submit(call, name) for name in "abc"]
            for name in "abc":
                arrives(tmp_path / name)
            turned_away = call("d")
            assert (turned_away.status_code, turned_away.text) == (429, "Rate exceeded.")
            assert not (tmp_path / "d").exists()
            gate.touch()
            assert len({one.result().json()["pid"] for one in calls}) == 1
        assert call("e").status_code == 200

    await asyncio.to_thread(crowd)


async def test_the_time_limit(user: User, tmp_path: Path) -> None:
    """504 in the platform's words; the next request is served."""

    def wait() -> None:
        made = user.deploy("slow", timeout_seconds=1)
        headers = {"Authorization": f"Bearer {user.token(made.url)}"}
        late = requests.post(made.url, json={"gate": str(tmp_path / "never")}, headers=headers, timeout=60)
        assert (late.status_code, late.text) == (504, "upstream request timeout")
        assert requests.post(made.url, json={}, headers=headers, timeout=60).status_code == 200

    await asyncio.to_thread(wait)


async def test_two_regions_at_once(fabric: FabricAddress, user: User) -> None:
    """One project, a provider per region: a name in both is two functions, as Google's client sees too."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as bundle:
        bundle.writestr("main.py", SOURCE)
    package = Package(
        function="twin", source="twin", archive=archive.getvalue(), digest="d", entry="handle", timeout_s=30
    )

    async def there(region: str) -> tuple[str, int]:
        account = fabric.service_accounts[PROJECT]
        async with Google.open(
            region, project=PROJECT, region=region, service_account=account, api_endpoint=fabric.url
        ) as provider:
            made = await provider.deploy(package)
            one = await provider.invoke("twin", {"n": 1}, key=region, timeout_s=60)
            return made.url, (await ending(provider, one)).result["pid"]

    regions = ("europe-west1", "us-central1")
    found = await asyncio.gather(*(there(region) for region in regions))
    assert len({url for url, _ in found}) == len({pid for _, pid in found}) == 2

    def seen() -> set[str]:
        everywhere = {"parent": f"projects/{PROJECT}/locations/-", "filter": "name:functions/twin"}
        return {one.name for one in user.client.list_functions(everywhere, timeout=30)}

    assert await asyncio.to_thread(seen) == {
        f"projects/{PROJECT}/locations/{region}/functions/twin" for region in regions
    }
