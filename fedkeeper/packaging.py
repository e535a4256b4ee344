"""Make the zip that a platform runs, and the digest that tells whether what runs is what we have.

A function is one of
- a folder with the adapter of each platform in a folder of its own (FedKeeper's own functions):
  `fl_client/{handler.py, requirements.txt, openwhisk/__main__.py, google/main.py}`;
- a folder with `__main__.py` (OpenWhisk) or `main.py` (Cloud Functions) in it: goes in whole;
- a single .py file, which is put in under the name that the platform asks for.
Every such zip also carries `fedkeeper.runtime`, so that functions and keeper speak the same wire format.

A function for Node.js (`node=True`, OpenWhisk only) is a folder as above with `package.json` or `index.js`
in place of `__main__.py`, or a single .js file that exports its entry point. It goes in with its
`node_modules` and nothing of ours.
"""

from __future__ import annotations

import functools
import hashlib
import hmac
import io
import json
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Final

from pydantic import SecretStr

from fedkeeper.errors import ConfigError
from fedkeeper.platforms import PLATFORMS, describe

REQUIREMENTS: Final = "requirements.txt"
_OWN_PACKAGE: Final = Path(__file__).parent
_NODE_MANIFEST: Final = "package.json"
_EXPORTS: Final = re.compile(r"\bexports?\b")
_SKIPPED_FOLDERS: Final = frozenset({"__pycache__", "node_modules"})
_EPOCH: Final = (1980, 1, 1, 0, 0, 0)  # the earliest a zip can say: file times must not change the bytes
_FILE_MODE: Final = 0o100644 << 16
_DIGEST_HEX: Final = 40  # 160 bits; a Google Cloud label takes 63 characters


def build(
    source: Path,
    platform: str,
    *,
    include: Sequence[Path] = (),
    requirements: bool = True,
    node: bool = False,
) -> bytes:
    """The zip of `source` for `platform`; the same files give the same bytes, whatever their times.

    Args:
        source: a function's folder or .py file, see the module's docstring.
        platform: its name, see `fedkeeper.platforms`.
        include: further .py files, data files or package folders, put at the top level under their names.
        requirements: put requirements.txt in. OpenWhisk installs it at every cold start, so it is left out
            where the function runs in an image of its own, which has the packages.
        node: it is JavaScript for Node.js; `include` and `requirements` are Python's.

    Raises:
        ConfigError: no such source, no adapter for this platform, two files of one name, unreadable.
    """
    if node:
        return _zip(dict(_node_files(source, platform)))
    files: dict[str, Path] = {}
    left_out = set() if requirements else {REQUIREMENTS}
    for name, path in (*_function_files(source, platform), *_included(include), *_runtime_files()):
        if name in left_out:
            continue
        if name in files:
            raise ConfigError(
                f"function {source.name!r}: {files[name]} and {path} would both be {name} in the package",
                hint="rename one of them",
            )
        files[name] = path
    return _zip(files)


def digest(archive: bytes, *, environment: Mapping[str, SecretStr], **settings: object) -> str:
    """40 hex digits that change when the archive, any setting or any environment value changes.

    It is stored where the platform shows it (an annotation, a label), so it must not give the environment's
    secrets away. It is an HMAC whose key is derived from them by scrypt: a generated secret (>= 128 bits)
    cannot be found from it at all; a weak password costs a guesser some 50 ms and 16 MB a try, who must
    moreover know everything else that went in. Whoever may read the annotation may on both platforms read
    the environment itself, so nothing is lost to them.

    `settings` are JSON values: memory_mb, timeout_s, runtime, image, entry …
    """
    secrets = _framed(
        part for name in sorted(environment) for part in (name, environment[name].get_secret_value())
    )
    plain = json.dumps(settings, sort_keys=True, allow_nan=False).encode()
    message = hashlib.sha256(archive).digest() + plain
    return hmac.new(_derived_key(secrets), message, hashlib.sha256).hexdigest()[:_DIGEST_HEX]


@functools.lru_cache(maxsize=64)  # clients share their environment, and scrypt is slow on purpose
def _derived_key(secrets: bytes) -> bytes:
    return hashlib.scrypt(secrets, salt=b"fedkeeper package digest v1", n=2**14, r=8, p=1, dklen=32)


def _framed(parts: Iterator[str]) -> bytes:
    """Length before each part: ("ab", "c") and ("a", "bc") must differ."""
    encoded = (part.encode() for part in parts)
    return b"".join(len(part).to_bytes(8, "big") + part for part in encoded)


def _function_files(source: Path, platform: str) -> Iterator[tuple[str, Path]]:
    entry = describe(platform).entry_file
    if source.is_file():
        if source.suffix != ".py":
            hint = "write runtime: nodejs:default for a .js file" if source.suffix == ".js" else ""
            raise ConfigError(f"function {source}: is neither a folder nor a .py file", hint=hint)
        yield entry, source
        return
    if not source.is_dir():
        raise ConfigError(f"function {source}: no such file or folder", hint="see func_path in the config")
    adapter = source / platform
    if adapter.is_dir():
        own = dict(_tree(adapter))
        if entry not in own:
            raise ConfigError(f"function {source.name!r}: {adapter} has no {entry}")
        shared = dict(_top_level(source))
        if REQUIREMENTS in own:
            shared.pop(REQUIREMENTS, None)
        yield from (*shared.items(), *own.items())
    elif (source / entry).is_file():
        yield from _tree(source)
    else:
        raise ConfigError(
            f"function {source.name!r} has no adapter for {platform}: neither {platform}/{entry} nor {entry}",
            hint=f"it has: {_adapters(source) or 'no adapter at all'}",
        )


def _node_files(source: Path, platform: str) -> Iterator[tuple[str, Path]]:
    entry = describe(platform).node_entry_file
    if not entry:
        raise ConfigError(
            f"function {source.name!r}: FedKeeper packages no Node.js for {platform}",
            hint="leave `runtime` out where the function is Python",
        )
    if source.is_file() and source.suffix == ".js":
        if not _EXPORTS.search(_read(source).decode(errors="replace")):
            raise ConfigError(
                f"function {source}: exports nothing, and a package's entry point must be exported",
                hint="end it with: exports.main = main;",
            )
        yield entry, source
        return
    for folder in (source / platform, source):
        if any((folder / name).is_file() for name in (_NODE_MANIFEST, entry)):
            yield from _tree(folder, skipped=_SKIPPED_FOLDERS - {"node_modules"})
            return
    raise ConfigError(
        f"function {source.name!r} is nothing for Node.js: {source} is no .js file, and has neither"
        f" {_NODE_MANIFEST} nor {entry}",
        hint="leave `runtime` out where the function is Python",
    )


def _adapters(source: Path) -> str:
    """What `source` could be packaged for, for people."""
    return ", ".join(
        known
        for known in PLATFORMS
        if (source / known).is_dir() or (source / describe(known).entry_file).is_file()
    )


def _top_level(folder: Path) -> Iterator[tuple[str, Path]]:
    for path in sorted(folder.iterdir()):
        if path.is_file() and (path.suffix == ".py" or path.name == "requirements.txt"):
            yield path.name, path


def _tree(folder: Path, *, skipped: Set[str] = _SKIPPED_FOLDERS) -> Iterator[tuple[str, Path]]:
    """Every file below, bar hidden ones and folders called as one of `skipped`."""
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        if path.is_file() and not any(part.startswith(".") or part in skipped for part in inside.parts):
            yield inside.as_posix(), path


def _included(include: Sequence[Path]) -> Iterator[tuple[str, Path]]:
    for path in include:
        if path.is_dir():
            yield from ((f"{path.name}/{name}", file) for name, file in _tree(path))
        elif path.is_file():
            yield path.name, path
        else:
            raise ConfigError(f"file to package: {path} does not exist")


def _runtime_files() -> Iterator[tuple[str, Path]]:
    runtime = sorted((_OWN_PACKAGE / "runtime").rglob("*.py"))
    for path in (_OWN_PACKAGE / "__init__.py", _OWN_PACKAGE / "errors.py", *runtime):
        yield f"fedkeeper/{path.relative_to(_OWN_PACKAGE).as_posix()}", path


def _zip(files: Mapping[str, Path]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in sorted(files):
            entry = zipfile.ZipInfo(name, date_time=_EPOCH)
            entry.create_system = 3  # Unix, on every system
            entry.external_attr = _FILE_MODE
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, _read(files[name]))
    return buffer.getvalue()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as exc:
        raise ConfigError(f"file to package: {path}: {exc.strerror or exc}") from exc
