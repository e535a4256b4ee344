"""What stands before a function says in its own words: the pages of Google's front end and of Cloud Run."""

from __future__ import annotations

import html
from typing import Final

from aiohttp import web

_PAGES: Final = {  # status -> (heading, text)
    400: ("Bad Request", "Your client has issued a malformed or illegal request."),
    401: ("Unauthorized", "Your client does not have permission to the requested URL <code>{path}</code>."),
    403: ("Forbidden",
          "Your client does not have permission to get URL <code>{path}</code> from this server."),
    404: ("Page not found", "The requested URL was not found on this server."),
    413: ("Request Entity Too Large", "Your client issued a request that was too large."),
    500: ("Server Error", "The server encountered an error and could not complete your request."
          "<p>Please try again in 30 seconds."),
}  # fmt: skip
_INVALID: Final = 'Bearer error="invalid_token" error_description="The access token could not be verified"'


def page(status: int, path: str) -> web.Response:
    """The HTML page of a status; `path` is what was asked for."""
    heading, words = _PAGES[status]
    text = (
        '\n<html><head>\n<meta http-equiv="content-type" content="text/html;charset=utf-8">\n'
        f"<title>{status} {heading}</title>\n</head>\n<body text=#000000 bgcolor=#ffffff>\n"
        f"<h1>Error: {heading}</h1>\n<h2>{words.format(path=html.escape(path))}</h2>\n<h2></h2>\n"
        "</body></html>\n"
    )
    headers = {"WWW-Authenticate": _INVALID} if status == 401 else {}
    return web.Response(status=status, text=text, content_type="text/html", headers=headers)


def rate_exceeded() -> web.Response:
    """429: no instance had room for the request."""
    return web.Response(status=429, text="Rate exceeded.", content_type="text/html")
