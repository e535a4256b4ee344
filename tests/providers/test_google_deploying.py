"""Deployments on Cloud Functions: progress, limits, builds that fail, quotas; against canned answers."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import structlog
from google.cloud import functions_v2

from fedkeeper.clock import FakeClock
from fedkeeper.errors import AuthenticationRefused, DeploymentFailed, InvocationUnknown, Throttled
from fedkeeper.providers.google import resources, waiting
from fedkeeper.providers.google.provider import Google
from fedkeeper.providers.google.quotas import Pace
from tests.providers.canned import Canned
from tests.providers.canned_google import OPERATION, act, open_to, operation, package, paths, refused

METADATA = "type.googleapis.com/google.cloud.functions.v2.OperationMetadata"
CONSOLE = "https://console.cloud.google.com/cloud-build/builds;region=l/1234?project=5678"


def stages(build: str, service: str, **more: Any) -> dict[str, Any]:
    """An operation's metadata, as the platform gives it while it builds."""
    return {
        "metadata": {
            "@type": METADATA,
            "verb": "create",
            "stages": [
                {
                    "name": "BUILD",
                    "state": build,
                    "message": "Build in progress",
                    "resourceUri": CONSOLE,
                    **more,
                },
                {"name": "SERVICE", "state": service, "message": "Updating Cloud Run service"},
            ],
        }
    }


def running(build: str, service: str) -> tuple[int, Any, dict[str, str]]:
    """An answer: it goes on."""
    return 200, {"name": OPERATION, "done": False, **stages(build, service)}, {}


def in_turn(*answers: Any) -> Any:
    """A canned answer that is another one each time; the last again and again."""
    left = list(answers)

    def answer(seen: Any) -> Any:
        del seen
        return left.pop(0) if len(left) > 1 else left[0]

    return answer


def polled(cloud: Canned, *answers: Any) -> None:
    """Have a creation go on, and its operation answer like this."""
    cloud.when("GET", "/functions/client-3", 404, refused(404, "NOT_FOUND"))
    cloud.when("POST", "/functions", 200, operation(cloud.url, done=False))
    cloud.rules.insert(0, ("GET", f"/v2/{OPERATION}", in_turn(*answers)))


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Progress is told at once."""
    monkeypatch.setattr(waiting, "TOLD_AFTER_S", 0.0)


async def test_progress_is_told_stage_by_stage(google_cloud: Google, cloud: Canned, impatient: None) -> None:
    """In the platform's words, to people and in the log."""
    polled(
        cloud,
        running("IN_PROGRESS", "NOT_STARTED"),
        running("COMPLETE", "IN_PROGRESS"),
        (200, operation(cloud.url), {}),
    )
    told: list[str] = []
    with structlog.testing.capture_logs() as logs:
        assert (await google_cloud.deploy(package(), told.append)).state == "active"
    assert [text.partition(",")[0] for text in told] == [
        "build: Build in progress",
        "service: Updating Cloud Run service",
    ]
    assert [one["stage"] for one in logs if one["event"] == "deploying"] == [
        text.partition(",")[0] for text in told
    ]


async def test_a_short_deployment_tells_nothing(google_cloud: Google, cloud: Canned) -> None:
    """On the embedded fabric there would be a line a second."""
    polled(cloud, running("IN_PROGRESS", "NOT_STARTED"), (200, operation(cloud.url), {}))
    told: list[str] = []
    await google_cloud.deploy(package(), told.append)
    assert told == []


@pytest.mark.parametrize(
    "hiccup",
    [
        (503, refused(503, "UNAVAILABLE"), {}),
        (500, refused(500, "INTERNAL"), {}),
        (502, b"<html>bad gateway</html>", {"Content-Type": "text/html"}),
        (429, refused(429, "RESOURCE_EXHAUSTED"), {"Retry-After": "0"}),
        None,
    ],
    ids=["unavailable", "internal", "html", "quota", "connection"],
)
async def test_a_look_that_fails_is_not_the_deployments_end(
    google_cloud: Google, cloud: Canned, hiccup: Any
) -> None:
    """The operation goes on; nothing is uploaded or created a second time."""
    polled(cloud, hiccup, (200, operation(cloud.url), {}))
    assert (await google_cloud.deploy(package())).state == "active"
    assert [method for method, _ in paths(cloud)].count("PUT") == 1


async def test_a_login_that_ends_while_it_builds_ends_the_wait(google_cloud: Google, cloud: Canned) -> None:
    """Nobody will tell how it goes: that is not waited for."""
    polled(cloud, (403, refused(403, "PERMISSION_DENIED"), {}))
    with pytest.raises(AuthenticationRefused):
        await google_cloud.deploy(package())


async def test_a_deployment_has_a_limit(cloud: Canned) -> None:
    """It may be done later: not definite; the last problem of looking is told."""
    polled(cloud, (500, refused(500, "INTERNAL", "try later"), {}))
    async with open_to(cloud.url, deploy_timeout_s=3) as provider:
        with pytest.raises(InvocationUnknown, match=r"not finished after 3 s.*try later") as caught:
            await provider.deploy(package())
    assert not caught.value.definite
    assert "deploy_timeout_s" in caught.value.hint


DETAILS = "For more details see the logs at"
FAILED_BUILDS = [
    (
        f"Build failed with status: FAILURE and message: no main.py. {DETAILS} {CONSOLE}.",
        "Build failed with status: FAILURE and message: no main.py.",
        CONSOLE,
    ),
    (
        f"Build failed with status: EXPIRED and message: slow. Refer to build logs: {CONSOLE}. {DETAILS}"
        f" {CONSOLE}",
        "Build failed with status: EXPIRED and message: slow.",
        CONSOLE,
    ),
    ("Build failed: no link", "Build failed: no link", CONSOLE),
    ("", "the platform does not say why", CONSOLE),
    ("x " * 4000 + "ImportError: at the end", "ImportError: at the end", CONSOLE),
]


@pytest.mark.parametrize(("message", "problem", "link"), FAILED_BUILDS)
async def test_a_failed_build_is_shown_with_its_log(
    google_cloud: Google, cloud: Canned, message: str, problem: str, link: str
) -> None:
    """The link is the message's, or the failed stage's; however long the message, its end is there."""
    messages = [{"severity": "ERROR", "message": message}]
    ended = {
        **operation(cloud.url, error={"code": 3, "message": message}),
        **stages("COMPLETE", "NOT_STARTED", stateMessages=messages),
    }
    polled(cloud, (200, ended, {}))
    with pytest.raises(DeploymentFailed) as caught:
        await google_cloud.deploy(package())
    assert problem in caught.value.problem
    assert link not in caught.value.problem
    assert len(caught.value.problem) < 700
    assert caught.value.hint == f"the build's log: {link}"


@pytest.mark.parametrize(
    ("details", "headers", "wait_s"),
    [
        ([{"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "37s"}], {}, 37.0),
        ([{"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "1.5s"}], {}, 1.5),
        (
            [
                {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "RATE_LIMIT_EXCEEDED"},
                {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "2s"},
            ],
            {"Retry-After": "9"},
            2.0,
        ),
        ([{"@type": "type.googleapis.com/google.rpc.QuotaFailure"}], {"Retry-After": "9"}, 9.0),
        (
            [{"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "soon"}],
            {},
            resources.QUOTA_S,
        ),
        ([], {}, resources.QUOTA_S),
    ],
)
async def test_a_quota_says_when_to_come_back(
    google_cloud: Google, cloud: Canned, details: Any, headers: dict[str, str], wait_s: float
) -> None:
    """google.rpc.RetryInfo before Retry-After before our own guess; whoever deploys waits that long."""
    body = refused(429, "RESOURCE_EXHAUSTED")
    body["error"]["details"] = details
    cloud.rules.insert(0, ("GET", "/functions", (429, body, headers)))
    with pytest.raises(Throttled) as caught:
        await act(google_cloud, "list")
    assert caught.value.retry_after_s == wait_s
    assert caught.value.definite


async def test_requests_keep_the_pace_of_the_quota() -> None:
    """Of three in a minute the fourth waits until the first is a minute old; others come after it."""
    clock = FakeClock()
    pace = Pace(clock, per_minute=3)
    for _ in range(3):
        assert await pace.turn() == 0.0
        await clock.advance(10_000)
    waiting_ones = [asyncio.create_task(pace.turn()) for _ in range(2)]
    await clock.advance(29_000)
    assert not any(one.done() for one in waiting_ones)
    await clock.advance(1_000)
    assert [one.done() for one in waiting_ones] == [True, False]
    await clock.advance(10_000)
    assert await waiting_ones[0] == 30.0
    assert await waiting_ones[1] == 10.0


async def test_a_platform_without_quotas_is_not_paced() -> None:
    """The embedded fabric takes a hundred deployments in a row."""
    pace = Pace(FakeClock(), per_minute=0)
    assert [await pace.turn() for _ in range(100)] == [0.0] * 100


async def test_reads_and_writes_are_paced_apart(cloud: Canned) -> None:
    """A removal waits for its minute while the list goes on being asked for."""
    clock = FakeClock()
    async with open_to(cloud.url, clock=clock, writes_per_minute=1, reads_per_minute=100) as provider:
        assert await provider.remove("client_3") is True
        second = asyncio.create_task(provider.remove("client_3"))
        for _ in range(5):
            await provider.list()
        assert [method for method, _ in paths(cloud)].count("DELETE") == 1
        await clock.advance(60_000)
        async with asyncio.timeout(10):
            assert await second is True


def test_the_stage_is_told_in_the_platforms_words() -> None:
    """Of the stages, the one that is under way."""
    metadata = functions_v2.OperationMetadata(
        stages=[{"name": "BUILD", "state": "COMPLETE"}, {"name": "SERVICE", "state": "IN_PROGRESS"}]
    )
    assert resources.stage_of(metadata) == "service"
    assert resources.stage_of(functions_v2.OperationMetadata()) == ""
    assert resources.stage_of(None) == ""


@pytest.mark.parametrize(
    ("memory_mb", "timeout_s", "concurrency", "sent"),
    [
        (
            256,
            60.0,
            1,
            {"availableMemory": "256Mi", "timeoutSeconds": 60, "maxInstanceRequestConcurrency": 1},
        ),
        (2048, 1.2, 1, {"availableMemory": "2048Mi", "timeoutSeconds": 2}),
        (512, 3600.0, 8, {"availableCpu": "1", "timeoutSeconds": 3600, "maxInstanceRequestConcurrency": 8}),
    ],
)
async def test_units_are_the_platforms(
    google_cloud: Google, cloud: Canned, memory_mb: int, timeout_s: float, concurrency: int, sent: Any
) -> None:
    """MB as Mi, seconds rounded up; more than one request at once needs a whole CPU."""
    await google_cloud.deploy(package(memory_mb=memory_mb, timeout_s=timeout_s, concurrency=concurrency))
    (update,) = [seen for seen in cloud.seen if seen.method == "PATCH"]
    assert update.json["serviceConfig"].items() >= sent.items()
