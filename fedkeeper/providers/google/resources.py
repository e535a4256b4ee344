"""Cloud Functions' resources in our terms: names, functions, refusals. No I/O."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping
from typing import Any, Final

import requests
import urllib3.exceptions
from google.api_core import exceptions as api
from google.auth import exceptions as auth
from google.cloud import functions_v2 as functions

from fedkeeper.errors import (
    AuthenticationRefused,
    Changing,
    DeploymentFailed,
    FunctionMissing,
    InvocationUnknown,
    ProviderError,
    ProviderUnavailable,
    RequestRefused,
    Throttled,
    TooLarge,
)
from fedkeeper.providers import http
from fedkeeper.providers.base import Deployed, Package
from fedkeeper.providers.google.quotas import retry_info_s

DEFAULT_RUNTIME: Final = "python312"
NAME_LABEL: Final = "fedkeeper-function"
DIGEST_LABEL: Final = "fedkeeper-digest"
OWNER_LABEL: Final = "fedkeeper-experiment"
QUOTA_S: Final = 10.0  # the API's quotas are per minute; asked again at this pace without a Retry-After
# What `deploy` sets; an update leaves everything else (ingress, scaling, secrets …) as the user has it.
UPDATED_FIELDS: Final = (
    "build_config.runtime",
    "build_config.entry_point",
    "build_config.source",
    "service_config.available_memory",
    "service_config.available_cpu",
    "service_config.timeout_seconds",
    "service_config.max_instance_request_concurrency",
    "service_config.environment_variables",
    "labels",
)
PROBLEM_MAX: Final = 600  # characters of a build's message
_LINK: Final = re.compile(r"(?:https?|file)://\S+")
_LOG_TAIL: Final = re.compile(
    r"\s*(?:For more details see the logs at|Refer to build logs:?|Logs URL:)\s*\S+"
)
_ASKED: Final = re.compile(r"\A[A-Z]+ https?://\S+: ")  # the SDK puts its request before the platform's words
_NAME: Final = re.compile(r"[a-z](?:[a-z0-9_-]{0,61}[a-z0-9])?")
_STATES: Final = {"ACTIVE": "active", "DEPLOYING": "deploying", "DELETING": "deploying", "FAILED": "failed"}


def platform_name(cluster: str, function: str) -> str:
    """ "client_3" -> "client-3": lower-case letters, digits and hyphens, at most 63."""
    if not _NAME.fullmatch(function):
        raise RequestRefused(
            cluster,
            function,
            "Cloud Functions does not take this name",
            hint="at most 63 of a-z, 0-9, _ and -, beginning with a letter, not ending with _ or -",
        )
    return function.replace("_", "-")


def activation_id(key: str) -> str:
    """32 hex digits of SHA-256 of `key`: the same attempt has the same execution ID, whoever sends it."""
    return hashlib.sha256(f"fedkeeper activation {key}".encode()).hexdigest()[:32]


def function_resource(package: Package, name: str, source: Any, labels: Mapping[str, str]) -> Any:
    """The Function to create or update. `name` is its full resource name, `source` the uploaded archive's."""
    return functions.Function(
        name=name,
        environment=functions.Environment.GEN_2,
        labels={
            **labels,
            NAME_LABEL: package.function,
            DIGEST_LABEL: package.digest[:63].lower(),
            **({OWNER_LABEL: package.owner} if package.owner else {}),
        },
        build_config=functions.BuildConfig(
            runtime=package.runtime or DEFAULT_RUNTIME,
            entry_point=package.entry,
            source=functions.Source(storage_source=source),
        ),
        service_config=functions.ServiceConfig(
            available_memory=f"{package.memory_mb}Mi",
            available_cpu="1" if package.concurrency > 1 else "",  # more than one at once needs a whole CPU
            timeout_seconds=math.ceil(package.timeout_s),
            max_instance_request_concurrency=package.concurrency,
            # Readable by whoever may see the function, as OpenWhisk's parameters are. Secret Manager
            # (secret_environment_variables) would need a second API and its rights: a later option.
            environment_variables={
                key: value.get_secret_value() for key, value in package.environment.items()
            },
        ),
    )


def deployed(function: Any) -> Deployed:
    """A Function as the API gives it; its environment is left out."""
    short_name = function.name.rpartition("/")[2]
    said = function.labels.get(NAME_LABEL, "")
    service, build = function.service_config, function.build_config
    return Deployed(
        function=said if said.replace("_", "-") == short_name else short_name,
        state=_STATES.get(function.state.name, "failed"),
        version=service.revision or (function.update_time.isoformat() if function.update_time else ""),
        digest=function.labels.get(DIGEST_LABEL, ""),
        owner=function.labels.get(OWNER_LABEL, ""),
        url=address(function),
        updated_ms=round(function.update_time.timestamp() * 1000) if function.update_time else 0,
        message=http.short("; ".join(message.message for message in function.state_messages)),
        details={
            "name": function.name,
            "state": function.state.name,
            "environment": function.environment.name,
            "labels": dict(function.labels),
            "runtime": build.runtime,
            "entry_point": build.entry_point,
            "available_memory": service.available_memory,
            "available_cpu": service.available_cpu,
            "timeout_seconds": service.timeout_seconds,
            "max_instance_count": service.max_instance_count,
            "min_instance_count": service.min_instance_count,
            "max_instance_request_concurrency": service.max_instance_request_concurrency,
            "revision": service.revision,
            "service_account_email": service.service_account_email,
        },
    )


def address(function: Any) -> str:
    """Where it is invoked; also the audience of the ID token."""
    return str(function.url or function.service_config.uri)


def memory_mb(text: str) -> int:
    """ "512Mi" -> 512; 0 if the platform says something else."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)(k|M|G|Mi|Gi)?", text)
    if not found:
        return 0
    unit = {"k": 1e3, "M": 1e6, "G": 1e9, "Mi": 2**20, "Gi": 2**30, None: 1}[found[2]]
    return round(float(found[1]) * unit / 2**20)


def build_failed(cluster: str, function: str, exc: api.GoogleAPICallError, metadata: Any) -> DeploymentFailed:
    """Why a build failed, on one line, with where its log is as the hint (none if the platform does not say).

    The link comes from the message, or from the stage that failed; the end of a long message is kept, which
    is where a traceback says what went wrong.
    """
    message = str(exc.message)
    failed = (one for one in getattr(metadata, "stages", ()) if one.state_messages)
    found = _LINK.search(message)
    link = found[0].rstrip(".,;)") if found else next((one.resource_uri for one in failed), "")
    told = _LOG_TAIL.sub("", message).strip() or "the platform does not say why"
    line = " ".join(told.split())
    if len(line) > PROBLEM_MAX:
        line = f"{line[: PROBLEM_MAX // 3]} … {line[-PROBLEM_MAX * 2 // 3 :]}"
    return DeploymentFailed(cluster, function, line, hint=f"the build's log: {link}" if link else "")


def stage_of(metadata: Any) -> str:
    """What an operation is at, in the platform's words: "build: Build in progress"; empty before it began."""
    for stage in getattr(metadata, "stages", ()):
        if stage.state.name == "IN_PROGRESS":
            return f"{stage.name.name.lower()}: {stage.message}".rstrip(": ")
    return ""


def removal_failed(cluster: str, function: str, exc: api.GoogleAPICallError, metadata: Any) -> ProviderError:
    """Why a deletion that was begun did not come to its end: as if the API had refused it so."""
    del metadata
    return failure(cluster, function, exc, wrote=True)


def failure(
    cluster: str, function: str, exc: Exception, *, wrote: bool, of_function: bool = True
) -> ProviderError:
    """The error that an exception of the SDK, its login or its transport stands for.

    `wrote`: the call could change something. `of_function`: a 404 means that the function is missing, not
    that the project or region is.
    """
    if isinstance(exc, api.GoogleAPICallError):
        return _refusal(cluster, function, exc, wrote=wrote, of_function=of_function)
    if isinstance(exc, auth.TransportError) or (
        isinstance(exc, auth.GoogleAuthError) and getattr(exc, "retryable", False)
    ):
        return ProviderUnavailable(cluster, function, f"not sent: no login: {http.describe(exc)}")
    if isinstance(exc, auth.InvalidOperation):  # the client answers a 401 by renewing them
        problem = f"HTTP 401, and these credentials cannot be renewed: {exc}"
        return AuthenticationRefused(cluster, function, problem, status=401, hint=_ANONYMOUS_HINT)
    if isinstance(exc, auth.DefaultCredentialsError):
        return AuthenticationRefused(cluster, function, str(exc), hint=_NO_TOKENS_HINT)
    if isinstance(exc, auth.GoogleAuthError):  # a 401 surfaces as an attempt to renew the credentials
        return AuthenticationRefused(
            cluster, function, f"login refused: {type(exc).__name__}", hint=_LOGIN_HINT
        )
    if isinstance(exc, requests.TooManyRedirects):
        problem = "redirected, and credentials are not taken elsewhere"
        hint = "api_endpoint must be the platform itself; https instead of http?"
        return RequestRefused(cluster, function, problem, hint=hint)
    if isinstance(exc, requests.RequestException):
        if not wrote or _never_connected(exc):
            return ProviderUnavailable(cluster, function, f"no answer: {type(exc).__name__}")
        return InvocationUnknown(cluster, function, f"sent, no answer: {type(exc).__name__}")
    unknown = InvocationUnknown if wrote else ProviderError
    return unknown(cluster, function, f"the answer is not the API's: {type(exc).__name__}")


_NO_TOKENS_HINT: Final = (
    "functions are called with ID tokens, which a service account gives and a user's login does not: write"
    " the cluster's auth, or gcloud auth application-default login --impersonate-service-account=ACCOUNT"
)
_ANONYMOUS_HINT: Final = "this API asks for credentials; with auth.anonymous none are sent"
_LOGIN_HINT: Final = "check the cluster's service account, and that its clock and this machine's agree"


def _refusal(
    cluster: str, function: str, exc: api.GoogleAPICallError, *, wrote: bool, of_function: bool
) -> ProviderError:
    status = int(exc.code or 0)
    problem = f"HTTP {status}: {http.short(_ASKED.sub('', str(exc.message or '')))}"
    if status == 429:
        headers = getattr(exc.response, "headers", None) or {}
        wait_s = retry_info_s(exc.details or ())
        wait_s = http.retry_after_s(headers) if wait_s is None else wait_s
        return Throttled(cluster, function, problem, retry_after_s=QUOTA_S if wait_s is None else wait_s)
    hint = ""
    if status in (401, 403):
        hint = _LOGIN_HINT
    elif status == 404 and not of_function:
        hint = "check project and region, and that the API is enabled"
    kind = _kind(status, wrote=wrote, of_function=of_function)
    return kind(cluster, function, problem, status=status or None, hint=hint)


def _kind(status: int, *, wrote: bool, of_function: bool) -> type[ProviderError]:
    """What an HTTP status of the API is; 0: none came. The statuses are those of google/rpc/code.proto."""
    match status:
        case 401 | 403:
            return AuthenticationRefused
        case 404 if of_function:
            return FunctionMissing
        case 408:  # the request did not arrive as a whole
            return ProviderUnavailable
        case (
            409
        ):  # ABORTED: an operation works on the function; ALREADY_EXISTS: it was not there a moment ago
            return Changing
        case 413:
            return TooLarge
        case 501:
            return RequestRefused
        case 0 | 499:  # CANCELLED: it may have been at work already
            return InvocationUnknown if wrote else ProviderUnavailable
    if status >= 500:
        return InvocationUnknown if wrote else ProviderUnavailable
    return RequestRefused


def _never_connected(exc: requests.RequestException) -> bool:
    if isinstance(
        exc, requests.ConnectTimeout | requests.exceptions.SSLError | requests.exceptions.ProxyError
    ):
        return True
    reason = getattr(exc.args[0], "reason", None) if exc.args else None
    return isinstance(reason, urllib3.exceptions.NewConnectionError | urllib3.exceptions.ConnectTimeoutError)
