"""Putting a function's archive where the API says, which is Cloud Storage."""

from __future__ import annotations

import aiohttp
from yarl import URL

from fedkeeper.errors import ProviderUnavailable, RequestRefused
from fedkeeper.providers import http
from fedkeeper.providers.base import Package


async def upload(
    cluster: str, package: Package, url: str, session: aiohttp.ClientSession, *, timeout_s: float
) -> None:
    """PUT the archive of `package`. Its URL is a credential: it must not appear in an error.

    Raises ProviderUnavailable or RequestRefused; the function is as it was.
    """
    function = package.function
    try:
        answer = await http.exchange(
            session,
            "PUT",
            URL(url, encoded=True),  # signed: byte for byte
            sending=http.Sending(),
            timeout=aiohttp.ClientTimeout(total=timeout_s),
            bytes_max=2**20,
            body=package.archive,
            headers={"Content-Type": "application/zip"},
        )
    except (aiohttp.ClientError, TimeoutError, OSError, http.AnswerTooLarge) as exc:
        problem = f"the archive could not be uploaded: {type(exc).__name__}"
        raise ProviderUnavailable(cluster, function, problem) from None
    if not 200 <= answer.status < 300:
        kind = ProviderUnavailable if answer.status >= 500 else RequestRefused
        raise kind(cluster, function, f"HTTP {answer.status} to the archive's upload", status=answer.status)
