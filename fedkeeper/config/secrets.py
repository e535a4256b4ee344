"""Secrets: `${NAME}` from the environment, `<key>_file` from a file, and out of addresses."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from fedkeeper.config.faults import UNFILLED, Fault, Unfilled
from fedkeeper.config.redaction import Scrubber
from fedkeeper.platforms import PLATFORMS, describe, part

SECRET_KEYS = (
    "password",
    "secret",
    "reader_token",
    "operator_token",
    *(key for platform in PLATFORMS for key in describe(platform).secret_keys),
)
_FILE_BYTES_MAX = 64 * 1024
_DEPTH_MAX = 20
_VALUES_MAX = 100_000
_VARIABLE = re.compile(r"\$\$\{|\$\{([A-Za-z_]\w*)\}|\$\{")
_PLACEHOLDER = re.compile(r"<\s*[A-Za-z][\w .-]*>")


class TooMuch(Exception):
    """The file nests, or repeats itself by aliases, beyond any sense."""


class Secrets:
    """Fills in one file's secrets, collecting faults, warnings and what must not be shown."""

    def __init__(self, environment: Mapping[str, str], folder: Path) -> None:
        self.faults: list[Fault] = []
        self.warnings: list[str] = []
        self.scrub = Scrubber()
        self._environment = environment
        self._folder = folder
        self._values = 0

    def fill(self, raw: Any) -> Any:
        """A copy of `raw` with every variable, file and address resolved. Raises TooMuch."""
        return self._fill(raw, "", "", 0)

    def _fill(self, raw: Any, at: str, key: str, depth: int) -> Any:
        self._values += 1
        if depth > _DEPTH_MAX or self._values > _VALUES_MAX:
            raise TooMuch
        if isinstance(raw, dict):
            filled = {
                name: self._fill(value, f"{at}.{name}" if at else str(name), str(name), depth + 1)
                for name, value in raw.items()
            }
            return self._section(filled, at)
        if isinstance(raw, list):
            return [self._fill(value, f"{at}.{number}", key, depth + 1) for number, value in enumerate(raw)]
        if key in SECRET_KEYS:
            return self._secret(raw, at)
        return self._text(raw, at) if isinstance(raw, str) else raw

    def _secret(self, raw: Any, at: str) -> Any:
        if raw is None or raw == "":
            return None  # as if the key were not there: the ancestor's sample has empty ones
        if not isinstance(raw, str):
            self.faults.append(
                Fault(at, "is not a text to YAML, which may have changed it; put it in quotes")
            )
            return UNFILLED
        value = self._text(raw, at, secret=True)
        if isinstance(value, str):
            self.scrub.hide(value)
        return value

    def _text(self, raw: str, at: str, *, secret: bool = False) -> str | Unfilled:
        """`raw` with its variables filled in; UNFILLED, and a fault, if that cannot be."""
        # A password may well have < and > in it: there only what looks like ours is a placeholder.
        found = _PLACEHOLDER.fullmatch(raw.strip()) if secret else _PLACEHOLDER.search(raw)
        if found:
            shown = "a placeholder" if secret else f"the placeholder {found[0]}"
            self.faults.append(Fault(at, f"still has {shown}; write the value in its place"))
            return UNFILLED
        missing = False

        def replaced(match: re.Match[str]) -> str:
            nonlocal missing
            if match[0] == "$${":
                return "${"
            name = match[1]
            if name is None:
                problem = (
                    "has a ${ without a name and a }; write ${NAME}, or $${ for the characters themselves"
                )
            elif self._environment.get(name, "") == "":
                problem = f"environment variable {name} is not set; export {name}=… before you start"
            else:
                self.scrub.hide(self._environment[name], match[0])
                return self._environment[name]
            self.faults.append(Fault(at, problem))
            missing = True
            return ""

        value = _VARIABLE.sub(replaced, raw)
        return UNFILLED if missing else value

    def _section(self, section: dict[Any, Any], at: str) -> dict[Any, Any]:
        """What can only be done with the whole section at hand."""
        for key in SECRET_KEYS:
            if isinstance(section.get(f"{key}_file"), str):
                section = self._from_file(section, at, key)
        if isinstance(section.get("service_account_file"), str):
            section = self._account(section, at)
        return section

    def _from_file(self, section: dict[Any, Any], at: str, key: str) -> dict[Any, Any]:
        path = f"{at}.{key}_file"
        if section.get(key) is not None:
            self.faults.append(Fault(path, f"is given, and {key} as well; keep one of the two"))
            return section
        text = self._read(section[f"{key}_file"], path)
        if text is None:
            return {**section, key: UNFILLED}
        self.scrub.hide(text)
        return {**section, key: text}

    def _account(self, section: dict[Any, Any], at: str) -> dict[Any, Any]:
        path = f"{at}.service_account_file"
        unknown = {**section, "private_key": UNFILLED}
        text = self._read(section["service_account_file"], path)
        if text is None:
            return unknown
        try:
            account = part("google", "config").read_service_account(text)
        except ValueError as exc:
            self.faults.append(Fault(path, str(exc)))
            return unknown
        self.scrub.hide(account["private_key"])
        return {
            **account,
            **{key: value for key, value in section.items() if value is not None and value != ""},
        }

    def _read(self, name: str, at: str) -> str | None:
        path = self._folder / Path(name).expanduser()
        try:
            if path.stat().st_size > _FILE_BYTES_MAX:
                raise ValueError(f"is larger than {_FILE_BYTES_MAX // 1024} KB, so it is no secret")
            text = path.read_text(encoding="utf-8").strip()
            if not text:
                raise ValueError("is empty")
        except UnicodeDecodeError:
            self.faults.append(Fault(at, f"{path} is not a text file; write the secret alone into it"))
        except OSError as exc:
            self.faults.append(
                Fault(at, f"cannot read {path}: {exc.strerror}; write the path of a file you may read")
            )
        except ValueError as exc:
            self.faults.append(Fault(at, f"{path} {exc}; write the secret alone into it"))
        else:
            return text
        return None


def take_credentials(url: str) -> tuple[str, str, str]:
    """An address without its credentials, the user, and the password (both decoded, empty if absent)."""
    scheme, mark, rest = url.partition("://")
    if not mark:
        scheme, rest = "", url
    end = min((rest.find(sign) for sign in "/?#" if sign in rest), default=len(rest))
    credentials, at, host = rest[:end].rpartition("@")
    if not at:
        return url, "", ""
    user, _, password = credentials.partition(":")
    return scheme + mark + host + rest[end:], unquote(user), unquote(password)


def address_parts(url: str) -> tuple[str, str]:
    """Scheme, host and port of an address, and its path."""
    parts = urlsplit(url if "://" in url else f"https://{url}")
    return f"{parts.scheme}://{parts.netloc}", parts.path
