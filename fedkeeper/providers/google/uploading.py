"""Putting a function's archive where the API says, which is Cloud Storage."""

from __future__ import annotations

import re
from typing import Final

import aiohttp
from yarl import URL

from fedkeeper.errors import ProviderError, ProviderUnavailable, RequestRefused, Throttled, TooLarge
from fedkeeper.providers import http
from fedkeeper.providers.base import Package

PAUSE_S: Final = 1.0  # before another upload, where Cloud Storage says "too many" and not for how long
_CODE: Final = re.compile(rb"<Code>([A-Za-z]{1,64})</Code>")


async def upload(
    cluster: str,
    package: Package,
    url: str,
    session: aiohttp.ClientSession,
    timeout: aiohttp.ClientTimeout,  # noqa: ASYNC109 -- connection and silence are timed apart
) -> None:
    """PUT the archive of `package`. Its URL is a credential: it must not appear in an error.

    Raises ProviderUnavailable, or RequestRefused and its kinds; the function is as it was.
    """
    function = package.function
    try:
        answer = await http.exchange(
            session,
            "PUT",
            URL(url, encoded=True),  # signed: byte for byte
            sending=http.Sending(),
            timeout=timeout,
            bytes_max=2**20,
            body=package.archive,
            headers={"Content-Type": "application/zip"},
        )
    except (aiohttp.ClientError, TimeoutError, OSError, http.AnswerTooLarge) as exc:
        problem = f"the archive could not be uploaded: {type(exc).__name__}"
        raise ProviderUnavailable(cluster, function, problem) from None
    if not 200 <= answer.status < 300:
        raise _refusal(cluster, function, answer)


def _refusal(cluster: str, function: str, answer: http.Answer) -> ProviderError:
    """Cloud Storage's XML quotes the signed URL: of its text only the code is told."""
    found = _CODE.search(answer.body[:4096])
    word = f" {found[1].decode()}" if found else ""
    problem = f"HTTP {answer.status}{word} to the archive's upload"
    status = answer.status
    if status == 429:
        wait_s = http.retry_after_s(answer.headers)
        return Throttled(cluster, function, problem, retry_after_s=PAUSE_S if wait_s is None else wait_s)
    kind: type[ProviderError] = RequestRefused
    if status == 413 or word == " EntityTooLarge":
        kind = TooLarge
    elif status >= 500 or status == 408 or word == " RequestTimeout":
        kind = ProviderUnavailable
    return kind(cluster, function, problem, status=status)
