"""The build of a Python function, as far as one is needed here: nothing is installed, everything is checked.

The real platform installs requirements.txt into an image. Here functions run in the fabric's own interpreter:
a requirement that this one does not meet fails the build, as one that no registry has would.
"""

from __future__ import annotations

import importlib.metadata
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from packaging.requirements import InvalidRequirement, Requirement

LINES_MAX: Final = 1000  # of requirements.txt
# A distribution that brings the same modules under another name.
_STAND_INS: Final = {"tensorflow": ("tensorflow-cpu",), "tensorflow-cpu": ("tensorflow",)}
_COMMENT: Final = re.compile(r"(^|\s)#.*")


class BuildFailed(Exception):
    """The source does not make a function; says why, in the builder's words."""


@dataclass(slots=True)
class Build:
    """A build and its log."""

    lines: list[str] = field(default_factory=list)

    def run(self, folder: Path) -> None:
        """Build what is in `folder`. Blocking. BuildFailed."""
        for name, step in (("source", self._source), ("requirements", self._requirements)):
            self.lines.append(f"step {name}")
            try:
                step(folder)
            except BuildFailed as exc:
                self.lines.append(f"ERROR: {exc}")
                raise

    def _source(self, folder: Path) -> None:
        main = folder / "main.py"
        if not main.is_file():
            raise BuildFailed(
                "missing main.py and GOOGLE_FUNCTION_SOURCE not specified. Either create the function in"
                " main.py or specify GOOGLE_FUNCTION_SOURCE to point to the file that contains the function"
            )
        for source in sorted(folder.glob("*.py")):
            self.lines.append(f"compiling {source.name}")
            try:
                compile(source.read_bytes(), source.name, "exec", dont_inherit=True)
            except SyntaxError as exc:
                where = f'File "{source.name}", line {exc.lineno}'
                raise BuildFailed(f"*** Error compiling: {where}: {type(exc).__name__}: {exc.msg}") from exc
            except ValueError as exc:  # a null byte
                raise BuildFailed(f"*** Error compiling {source.name}: {exc}") from exc

    def _requirements(self, folder: Path) -> None:
        path = folder / "requirements.txt"
        if not path.is_file():
            return
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        if len(lines) > LINES_MAX:
            raise BuildFailed(f"requirements.txt has {len(lines)} lines, at most {LINES_MAX} are read")
        for number, line in enumerate(lines, 1):
            text = _COMMENT.sub("", line).strip().rstrip("\\").strip()
            if text.startswith("-") or "://" in text:
                self.lines.append(f"line {number} is not looked at: nothing is installed here")
            elif text:
                self.lines.append(_met(text, number))


def _met(text: str, number: int) -> str:
    """Which installed distribution meets a requirement. BuildFailed if none does."""
    try:
        wanted = Requirement(text.partition(" --")[0])
    except InvalidRequirement as exc:
        why = str(exc).splitlines()[0]
        raise BuildFailed(
            f"Invalid requirement: {text[:80]!r}: {why} (from line {number} of requirements.txt)"
        ) from exc
    if wanted.marker is not None and not wanted.marker.evaluate():
        return f"Ignoring {wanted.name}: markers {str(wanted.marker)!r} don't match your environment"
    for name in (wanted.name, *_STAND_INS.get(wanted.name.lower(), ())):
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        if wanted.specifier.contains(version, prereleases=True):
            return f"Requirement already satisfied: {wanted} ({name} {version})"
        raise BuildFailed(
            f"Could not find a version that satisfies the requirement {wanted} (from versions: {version}):"
            " functions run in the fabric's own interpreter"
        )
    raise BuildFailed(
        f"No matching distribution found for {wanted}: functions run in the fabric's own interpreter,"
        " install it there"
    )
