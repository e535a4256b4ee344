"""Google's error bodies (google.rpc.Status over HTTP): which code has which HTTP status and name.

Source: googleapis, google/rpc/code.proto (the HTTP mapping of every code) and google/rpc/status.proto.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

from aiohttp import web

from fedkeeper.fabric.bodies import BodyMalformed, BodyTooLarge, json_response
from fedkeeper.fabric.payloads import PayloadsFull

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

CODES: Final = {  # name -> (google.rpc.Code, HTTP status)
    "CANCELLED": (1, 499),
    "UNKNOWN": (2, 500),
    "INVALID_ARGUMENT": (3, 400),
    "DEADLINE_EXCEEDED": (4, 504),
    "NOT_FOUND": (5, 404),
    "ALREADY_EXISTS": (6, 409),
    "PERMISSION_DENIED": (7, 403),
    "RESOURCE_EXHAUSTED": (8, 429),
    "FAILED_PRECONDITION": (9, 400),
    "ABORTED": (10, 409),
    "OUT_OF_RANGE": (11, 400),
    "UNIMPLEMENTED": (12, 501),
    "INTERNAL": (13, 500),
    "UNAVAILABLE": (14, 503),
    "DATA_LOSS": (15, 500),
    "UNAUTHENTICATED": (16, 401),
}
_LOGIN: Final = (
    "Request had invalid authentication credentials. Expected OAuth 2 access token, login cookie or other"
    " valid authentication credential. See https://developers.google.com/identity/sign-in/web/devconsole-project."
)


class Refused(Exception):
    """The request breaks a rule. `name` is the code's, which implies the HTTP status."""

    def __init__(self, name: str, words: str) -> None:
        super().__init__(words)
        self.name = name
        self.words = words

    @property
    def code(self) -> int:
        """google.rpc.Code."""
        return CODES[self.name][0]

    @property
    def status(self) -> int:
        """HTTP status."""
        return CODES[self.name][1]


def invalid(words: str) -> Refused:
    """INVALID_ARGUMENT: by far the most common refusal."""
    return Refused("INVALID_ARGUMENT", words)


def unauthenticated(why: str) -> Refused:
    """UNAUTHENTICATED, with the platform's words and ours."""
    return Refused("UNAUTHENTICATED", f"{_LOGIN} ({why})")


async def answer_google(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer with the platform's error bodies, whatever the handler raises."""
    try:
        return await handler(request)
    except Refused as exc:
        refused = exc
    except BodyTooLarge as exc:
        refused = invalid(f"Request payload size exceeds the limit: {exc.allowed} bytes.")
    except PayloadsFull as exc:
        refused = Refused("RESOURCE_EXHAUSTED", f"Resource has been exhausted: {exc}.")
    except BodyMalformed as exc:
        refused = invalid(f"Invalid JSON payload received. {exc}")
    except (web.HTTPNotFound, web.HTTPMethodNotAllowed):
        refused = Refused("NOT_FOUND", "Method not found.")
    return error_response(refused)


def error_response(refused: Refused) -> web.Response:
    """The body that every Google API gives an error."""
    error = {"code": refused.status, "message": refused.words, "status": refused.name}
    headers = {"WWW-Authenticate": 'Bearer realm="https://accounts.google.com/"'}
    return json_response(
        {"error": error}, status=refused.status, headers=headers if refused.status == 401 else None
    )
