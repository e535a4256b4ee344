"""What every provider must do, on the embedded fabric with real workers and real packages."""

from __future__ import annotations

import asyncio
import time
import zlib
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import pytest_asyncio
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from pydantic import SecretStr

from fedkeeper import packaging
from fedkeeper.errors import AuthenticationRefused, DeploymentFailed, FunctionMissing, RequestRefused
from fedkeeper.fabric.launch import FabricAddress, open_fabric
from fedkeeper.providers.base import Activation, Package, Provider
from fedkeeper.providers.google.provider import Google
from fedkeeper.providers.openfaas.provider import OpenFaas
from fedkeeper.providers.openwhisk.provider import OpenWhisk

HANDLER = """
import os, pathlib, time

def handle(args):
    print("started", args.get("n"))
    if args.get("fail"):
        raise ValueError("boom")
    gate = args.get("gate")
    until = time.monotonic() + 30
    while gate and not pathlib.Path(gate).exists() and time.monotonic() < until:
        time.sleep(0.01)
    return {"n": args.get("n"), "secret_length": len(os.environ.get("A_SECRET", "")), "edition": EDITION}

EDITION = 1
"""
WHISK = "from handler import handle\n\ndef main(args):\n    return handle(args)\n"
GOOGLE = "from handler import handle\n\ndef main(request):\n    return handle(request.get_json())\n"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fabric(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[FabricAddress]:
    """One fabric for all tests of this file."""
    folder = tmp_path_factory.mktemp("fabric")
    running = await open_fabric(folder, namespaces=["guest"], projects=["proj"], linger_s=5)
    yield running.address
    await running.close()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A function with an adapter for every platform."""
    folder = tmp_path / "echo"
    for name, text in {
        "handler.py": HANDLER,
        "openwhisk/__main__.py": WHISK,
        "google/main.py": GOOGLE,
        "openfaas/main.py": GOOGLE,
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def make(source: Path, platform: str, function: str) -> Package:
    """The package as the deployment makes it."""
    environment = {"A_SECRET": SecretStr("geheim")}
    archive = packaging.build(source, platform)
    return Package(
        function=function,
        source=source.name,
        archive=archive,
        digest=packaging.digest(archive, environment=environment, memory_mb=256),
        owner="experiment-0123456789abcdef",
        environment=environment,
        timeout_s=40,
    )


class ProviderContract:
    """Subclass it once per provider and supply `provider` and `stranger` (wrong credentials)."""

    @pytest.fixture
    async def deployed(self, provider: Provider, source: Path, request: Any) -> AsyncIterator[str]:
        """A function of its own for each test."""
        function = f"echo_{zlib.crc32(request.node.name.encode())}"
        await provider.deploy(make(source, provider.platform, function))
        yield function
        await provider.remove(function)

    async def run(self, provider: Provider, function: str, key: str, **payload: Any) -> Activation:
        """Invoke and follow up to the end."""
        since_ms = time.time_ns() // 1_000_000 - 1000
        one = await provider.invoke(function, payload, key=key, timeout_s=40)
        return (await self.follow(provider, {one}, since_ms))[one]

    async def follow(self, provider: Provider, ids: set[str], since_ms: int) -> dict[str, Activation]:
        """All of `ids`, when all have ended."""
        found: dict[str, Activation] = {}
        async with asyncio.timeout(60):
            while ids - found.keys():
                found |= await provider.ended(ids - found.keys(), since_ms=since_ms)
                await asyncio.sleep(0.02)
        return found

    async def test_right_credentials_pass_the_check(self, provider: Provider) -> None:
        """Nothing is changed by it."""
        await provider.check()

    async def test_wrong_credentials_are_refused(self, stranger: Provider, source: Path) -> None:
        """At every door: check, list, deploy, remove, invoke."""
        package = make(source, stranger.platform, "echo_stranger")
        for attempt in (
            stranger.check(),
            stranger.list(),
            stranger.deploy(package),
            stranger.remove("echo_x"),
            stranger.invoke("echo_x", {}, key="k", timeout_s=5),
        ):
            with pytest.raises(AuthenticationRefused):
                await attempt

    async def test_a_deployed_function_is_listed_with_its_digest(
        self, provider: Provider, source: Path
    ) -> None:
        """Under the name it was given; then removed, once."""
        package = make(source, provider.platform, "echo_listed")
        made = await provider.deploy(package)
        assert made.owner == package.owner
        assert (made.function, made.state, made.digest) == ("echo_listed", "active", package.digest)
        (listed,) = [one for one in await provider.list() if one.function == "echo_listed"]
        assert listed.owner == package.owner
        assert (listed.digest, listed.state, listed.url) == (package.digest, "active", made.url)
        assert made.url.startswith("http://127.0.0.1:")
        assert listed.updated_ms > 0
        assert "geheim" not in repr((made, listed))
        assert await provider.remove("echo_listed") is True
        assert await provider.remove("echo_listed") is False
        assert "echo_listed" not in {one.function for one in await provider.list()}
        with pytest.raises(FunctionMissing):
            await provider.invoke("echo_listed", {}, key="k", timeout_s=5)

    async def test_an_activation_is_followed_to_its_end(self, provider: Provider, deployed: str) -> None:
        """Its result, its function's name, its times; the environment reached it."""
        before_ms = time.time_ns() // 1_000_000
        ended = await self.run(provider, deployed, "k/ok", n=7)
        assert (ended.ok, ended.reason) == (True, "")
        assert ended.result == {"n": 7, "secret_length": 6, "edition": 1}
        assert ended.function == deployed
        assert ended.memory_mb == 256
        assert before_ms - 1000 <= ended.start_ms <= ended.end_ms <= time.time_ns() // 1_000_000 + 1000
        assert ended.billed_ms >= 0
        whole = await provider.activation(ended.activation_id)
        assert whole is not None
        assert replace(whole, logs=()) == ended

    async def test_what_runs_has_not_ended(self, provider: Provider, deployed: str, tmp_path: Path) -> None:
        """`invoke` returns before the function does; until then it is absent, not failed."""
        gate = tmp_path / "gate"
        since_ms = time.time_ns() // 1_000_000 - 1000
        one = await provider.invoke(deployed, {"gate": str(gate)}, key="k/gate", timeout_s=40)
        assert await provider.ended([one], since_ms=since_ms) == {}
        assert await provider.activation(one) is None
        gate.touch()
        assert (await self.follow(provider, {one}, since_ms))[one].ok

    async def test_a_function_that_raises_has_failed(self, provider: Provider, deployed: str) -> None:
        """With a reason, and no result that could be taken for one."""
        ended = await self.run(provider, deployed, "k/fail", fail=True)
        assert not ended.ok
        assert ended.reason
        assert ended.status

    async def test_many_at_once_come_back_each_under_its_own_id(
        self, provider: Provider, deployed: str
    ) -> None:
        """Ten invocations at once, followed up together."""
        since_ms = time.time_ns() // 1_000_000 - 1000
        ids = await asyncio.gather(
            *(provider.invoke(deployed, {"n": n}, key=f"k/many/{n}", timeout_s=40) for n in range(10))
        )
        assert len(set(ids)) == 10
        ended = await self.follow(provider, set(ids), since_ms)
        assert [ended[one].result["n"] for one in ids] == list(range(10))

    async def test_an_unknown_activation_is_absent(self, provider: Provider) -> None:
        """Never failed: it may be somebody else's, or not known yet."""
        assert await provider.ended(["0123456789abcdef" * 2], since_ms=0) == {}
        assert await provider.activation("0123456789abcdef" * 2) is None

    async def test_a_second_deployment_replaces_the_first(
        self, provider: Provider, deployed: str, source: Path
    ) -> None:
        """The next activation runs the new code; version and digest have changed, the URL has not."""
        (old,) = [one for one in await provider.list() if one.function == deployed]
        assert (await self.run(provider, deployed, "k/old")).result["edition"] == 1
        (source / "handler.py").write_text(HANDLER.replace("EDITION = 1", "EDITION = 2"))
        new = await provider.deploy(make(source, provider.platform, deployed))
        assert new.version != old.version
        assert new.digest != old.digest
        assert new.url == old.url
        assert (await self.run(provider, deployed, "k/new")).result["edition"] == 2

    async def test_an_unknown_function_is_missing(self, provider: Provider) -> None:
        """Definite: nothing ran."""
        with pytest.raises(FunctionMissing):
            await provider.invoke("echo_never", {}, key="k", timeout_s=5)


class TestOpenWhisk(ProviderContract):
    @pytest.fixture
    async def provider(self, fabric: FabricAddress) -> AsyncIterator[OpenWhisk]:
        """The guest namespace."""
        auth = fabric.openwhisk_auth["guest"]
        async with OpenWhisk.open("ow", api_host=fabric.url, auth=auth) as provider:
            yield provider

    @pytest.fixture
    async def stranger(self, fabric: FabricAddress) -> AsyncIterator[OpenWhisk]:
        """The right user, a wrong key."""
        login = fabric.openwhisk_auth["guest"].get_secret_value().split(":", maxsplit=1)[0]
        auth = SecretStr(f"{login}:{'x' * 64}")
        async with OpenWhisk.open("ow", api_host=fabric.url, auth=auth) as provider:
            yield provider

    async def test_failures_and_logs_are_in_the_functions_own_words(
        self, provider: Provider, deployed: str
    ) -> None:
        """The exception's text as reason; what it printed as log."""
        ended = await self.run(provider, deployed, "k", fail=True, n=5)
        assert "boom" in ended.reason
        whole = await provider.activation(ended.activation_id)
        assert whole is not None
        assert any("started 5" in line for line in whole.logs)

    async def test_a_package_that_does_not_load_fails_when_it_is_invoked(
        self, provider: Provider, source: Path
    ) -> None:
        """OpenWhisk builds nothing: only the first activation shows it."""
        (source / "handler.py").write_text("import no_such_module\n")
        await provider.deploy(make(source, "openwhisk", "echo_broken"))
        ended = await self.run(provider, "echo_broken", "k")
        assert (ended.ok, ended.status) == (False, "action developer error")
        await provider.remove("echo_broken")


class TestGoogle(ProviderContract):
    @pytest.fixture
    async def provider(self, fabric: FabricAddress) -> AsyncIterator[Google]:
        """One project, one region."""
        async with self.open_as(fabric, fabric.service_accounts["proj"]) as provider:
            yield provider

    @pytest.fixture
    async def stranger(self, fabric: FabricAddress) -> AsyncIterator[Google]:
        """The right account, another private key."""
        key = rsa.generate_private_key(public_exponent=65537, key_size=2048).private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        account = {**fabric.service_accounts["proj"], "private_key": key.decode()}
        async with self.open_as(fabric, account) as provider:
            yield provider

    def open_as(self, fabric: FabricAddress, account: Any) -> Any:
        """A provider with this service account."""
        return Google.open(
            "gcf", project="proj", region="europe-west3", service_account=account, api_endpoint=fabric.url
        )

    async def test_a_package_that_does_not_load_fails_to_deploy(
        self, provider: Provider, source: Path
    ) -> None:
        """The build's message names the cause."""
        (source / "handler.py").write_text("import no_such_module\n")
        with pytest.raises(DeploymentFailed) as caught:
            await provider.deploy(make(source, "google", "echo_broken"))
        assert caught.value.problem
        await provider.remove("echo_broken")


class TestOpenFaas(ProviderContract):
    """Calls are queued, and their ends called back."""

    how: ClassVar[dict[str, Any]] = {"callback_port": 0}

    @pytest.fixture
    async def provider(self, fabric: FabricAddress) -> AsyncIterator[OpenFaas]:
        """One namespace."""
        async with self.open_as(fabric, fabric.openfaas_password) as provider:
            yield provider

    @pytest.fixture
    async def stranger(self, fabric: FabricAddress) -> AsyncIterator[OpenFaas]:
        """The right user, a wrong password."""
        async with self.open_as(fabric, SecretStr("x" * 32)) as provider:
            yield provider

    def open_as(self, fabric: FabricAddress, password: SecretStr) -> Any:
        """A provider with this password."""
        return OpenFaas.open(
            "edge",
            gateway=fabric.url,
            password=password,
            namespace="edge",
            store_images=True,
            **self.how,
        )

    async def test_what_it_printed_is_its_log(self, provider: Provider, deployed: str) -> None:
        """Also of a call that failed."""
        ended = await self.run(provider, deployed, "k", fail=True, n=5)
        whole = await provider.activation(ended.activation_id)
        assert whole is not None
        assert any("started 5" in line for line in whole.logs)
        assert any("boom" in line for line in whole.logs)

    async def test_a_package_that_does_not_load_fails_to_deploy(
        self, provider: Provider, source: Path
    ) -> None:
        """With the last lines of what it printed; what served before goes on serving."""
        await provider.deploy(make(source, "openfaas", "echo_broken"))
        (source / "handler.py").write_text("import no_such_module\n")
        with pytest.raises(RequestRefused, match="no_such_module"):
            await provider.deploy(make(source, "openfaas", "echo_broken"))
        assert (await self.run(provider, "echo_broken", "k/still")).ok
        await provider.remove("echo_broken")


class TestOpenFaasSynchronous(TestOpenFaas):
    """Each call holds its connection."""

    how: ClassVar[dict[str, Any]] = {"asynchronous": False}
