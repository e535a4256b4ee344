"""What an OpenWhisk action runs: its kind, code, image or components. Pure.

Source: apache/openwhisk, common/scala/.../core/entity/Exec.scala and ansible/files/runtimes.json.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from typing import Any, Final

from fedkeeper.fabric.archives import is_binary
from fedkeeper.fabric.bodies import MEGABYTE
from fedkeeper.fabric.openwhisk_entities import Refused, malformed, parse_full_name

SEQUENCE: Final = "sequence"
BLACKBOX: Final = "blackbox"
CODE_MAX_BYTES: Final = 48 * MEGABYTE  # of the string that is sent: 36 MB of zip
PYTHON_DEFAULT: Final = f"python:3.{sys.version_info.minor}"
NODE_DEFAULT: Final = "nodejs:20"
# What `default` stands for, and all that can be named. Every Python is this one, every Node the one found.
DEFAULTS: Final = {"python:default": PYTHON_DEFAULT, "nodejs:default": NODE_DEFAULT}
KINDS: Final = (
    *("python:3", *(f"python:3.{minor}" for minor in range(9, 15))),
    *(f"nodejs:{major}" for major in (18, 20, 22, 24)),
)
_IMAGE: Final = re.compile(
    r"(?:[a-z0-9.-]+(?::[0-9]+)?/)?(?:[a-z0-9]+(?:[._-]+[a-z0-9]+)*/)*[a-z0-9]+(?:[._-]+[a-z0-9]+)*"
    r"(?::[\w][\w.-]{0,127})?(?:@[\w+.:-]{1,160})?\Z"
)


def read_exec(sent: object, own: str) -> dict[str, Any]:
    """The `exec` of a body, as it is stored and shown. `own`: what the namespace `_` is. Refused 400, 413."""
    if not isinstance(sent, dict) or not isinstance(sent.get("kind"), str):
        raise malformed("'kind' must be a string defined in 'exec'")
    kind = sent["kind"].strip().lower()
    main = sent.get("main")
    if main is not None and not isinstance(main, str):
        raise malformed(f"if defined, 'main' be a string in 'exec' for '{kind:.100}' actions")
    if kind == SEQUENCE:
        return {"kind": SEQUENCE, "components": [f"/{name}" for name in _components(sent, own)]}
    named = {"main": main} if main is not None else {}
    code = sent.get("code")
    if kind == BLACKBOX:
        image = sent.get("image")
        if not isinstance(image, str):
            raise malformed(f"'image' must be a string defined in 'exec' for '{BLACKBOX}' actions")
        if not is_image(image):
            raise malformed(f"could not parse image name: {image:.200}")
        inner = (
            {} if code is None or (isinstance(code, str) and not code.strip()) else _code(sent, kind, main)
        )
        return {"kind": BLACKBOX, "image": image, "binary": False} | inner | named
    kind = DEFAULTS.get(kind, kind)
    if kind not in KINDS:
        valid = ", ".join(f"'{known}'" for known in (*KINDS, SEQUENCE, BLACKBOX))
        words = f"The specified runtime '{kind:.100}' is not supported by this platform."
        raise malformed(f"{words} Valid values are: {valid}.")
    return {"kind": kind} | _code(sent, kind, main) | named


def is_image(name: str) -> bool:
    """Whether it can be the name of an image."""
    return _IMAGE.match(name) is not None


def runtime_of(execution: Mapping[str, Any], images: Mapping[str, str]) -> str:
    """The kind that runs it; "" for an image for which no kind stands in (`images`: image -> kind)."""
    if execution["kind"] != BLACKBOX:
        return str(execution["kind"])
    kind = images.get(execution["image"], "")
    return DEFAULTS.get(kind, kind)


def shown_exec(execution: Mapping[str, Any]) -> dict[str, Any]:
    """The exec without code, as `code=false` gives it."""
    return {key: value for key, value in execution.items() if key != "code"}


def _code(sent: Mapping[str, Any], kind: str, main: str | None) -> dict[str, Any]:
    code = sent.get("code")
    if not isinstance(code, str):
        words = f"'code' must be a string or attachment object defined in 'exec' for '{kind}' actions"
        raise malformed(words)
    nbytes = len(code.encode()) + len((main or "").encode())
    if nbytes > CODE_MAX_BYTES:
        raise Refused(413, f"exec larger than allowed: {nbytes} > {CODE_MAX_BYTES} bytes.")
    return {"code": code, "binary": is_binary(code.strip())}


def _components(sent: Mapping[str, Any], own: str) -> list[str]:
    components = sent.get("components")
    if components is None:
        raise malformed("'components' must be defined for sequence kind")
    if not isinstance(components, list):
        raise malformed("'components' must be an array")
    return [str(parse_full_name(item, own)) for item in components]
