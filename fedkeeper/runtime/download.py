"""Files from the web, fetched once and kept in a private folder for the workers that come after."""

from __future__ import annotations

import functools
import hashlib
import os
import stat
import tempfile
import time
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

import requests

from fedkeeper.errors import TaskError
from fedkeeper.runtime.environment import download_limits

_CONNECT_S: Final = 10.0
_SILENCE_S: Final = 60.0  # without a byte
_FRESH_S: Final = 3600.0  # how long a file without a sha256 is taken for the one that is there now
_CHUNK: Final = 1 << 20


def local_file(url: str, sha256: str) -> Path:
    """The path of the file behind `url` (https, http or file), fetched if need be.

    With a `sha256` the file is checked each time it is opened anew. Raises TaskError: not there, not
    reachable in time, too large, or not of that sha256.
    """
    parts = urlsplit(url)
    where = f"{parts.scheme}://{parts.hostname or ''}{parts.path}"  # no user, password or query
    if parts.scheme == "file":
        if parts.netloc not in ("", "localhost"):
            raise TaskError(f"{where}: a file on another machine", hint="file:///absolute/path")
        path = Path(unquote(parts.path))
        if not path.is_file():
            raise TaskError(f"{where}: no such file where the function runs")
        _check(path, sha256, where)
        return path
    if parts.scheme not in ("http", "https"):
        raise TaskError(
            f"{where}: data comes by https://, http://, file:/// or module:function, not {parts.scheme!r}"
        )
    kept = _folder(tempfile.gettempdir()) / hashlib.sha256(f"{sha256} {url}".encode()).hexdigest()
    if not _usable(kept, sha256):
        _fetch(url, where, kept, sha256)
    return kept


def sha256_of(path: Path) -> str:
    """The hex SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _usable(path: Path, sha256: str) -> bool:
    if not path.is_file():
        return False
    if sha256:
        return sha256_of(path) == sha256.lower()
    return time.time() - path.stat().st_mtime < _FRESH_S


def _check(path: Path, sha256: str, where: str) -> None:
    if sha256 and (found := sha256_of(path)) != sha256.lower():
        raise TaskError(f"{where} has the sha256 {found}, the config asks for {sha256}")


def _fetch(url: str, where: str, target: Path, sha256: str) -> None:
    """Stream `url` to `target`, which appears only when it is whole and checked."""
    handle, name = tempfile.mkstemp(dir=target.parent)
    part = Path(name)
    try:
        with os.fdopen(handle, "wb") as file, requests.Session() as session:
            limits = download_limits()
            deadline = time.monotonic() + limits.timeout_s
            with session.get(url, stream=True, timeout=(_CONNECT_S, _SILENCE_S)) as answer:
                if answer.status_code != 200:
                    raise TaskError(f"{where}: HTTP {answer.status_code}")
                size = 0
                for chunk in answer.iter_content(_CHUNK):
                    size += len(chunk)
                    if size > limits.bytes_max:
                        raise TaskError(
                            f"{where}: more than {limits.bytes_max} bytes", hint="limits.download_bytes_max"
                        )
                    if time.monotonic() > deadline:
                        raise TaskError(
                            f"{where}: not here after {limits.timeout_s:g} s",
                            hint="limits.download_timeout_s",
                        )
                    file.write(chunk)
        _check(part, sha256, where)
        part.replace(target)
    except requests.RequestException as exc:
        # Its message holds the whole URL, so only its kind is told.
        raise TaskError(f"{where}: {type(exc).__name__}", hint="can the function reach it?") from None
    except OSError as exc:
        raise TaskError(f"{where}: cannot be kept in {target.parent}: {exc.strerror}") from exc
    finally:
        part.unlink(missing_ok=True)


@functools.lru_cache(maxsize=4)
def _folder(temporary: str) -> Path:
    """Ours alone: nobody else may put files there for us to read."""
    path = Path(temporary) / f"fedkeeper-{os.getuid()}"
    try:
        path.mkdir(mode=0o700, exist_ok=True)
        found = path.lstat()
        if stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077:
            return path
    except OSError:
        pass  # taken by a file, say: use another
    return Path(tempfile.mkdtemp(prefix="fedkeeper-", dir=temporary))
