"""Function packages on disk: zips are taken apart with suspicion, once per revision."""

from __future__ import annotations

import base64
import binascii
import io
import os
import re
import shutil
import stat
import zipfile
import zlib
from pathlib import Path, PurePosixPath
from typing import Final

EXPANDED_MAX_BYTES: Final = 500 * 1024 * 1024
ENTRIES_MAX: Final = 20_000
_CHUNK: Final = 1024 * 1024
_BASE64: Final = re.compile(r"[A-Za-z0-9+/]+={0,2}\Z")


class ArchiveRefused(Exception):
    """The zip is damaged, or would write where, what or more than it may."""


def is_binary(code: str) -> bool:
    """Whether OpenWhisk takes `code` for base64: it infers that from length and alphabet alone."""
    return bool(code) and len(code) % 4 == 0 and _BASE64.match(code) is not None


def decode_binary(code: str) -> bytes:
    """The bytes of base64 `code`. Raises ArchiveRefused."""
    try:
        return base64.b64decode(code, validate=True)
    except (binascii.Error, ValueError) as exc:
        raise ArchiveRefused(f"the code is not base64: {exc}") from exc


def extract(archive: bytes, folder: Path) -> None:
    """Extract the zip into `folder`, which must not exist: it appears whole or not at all. Blocking.

    Raises:
        ArchiveRefused: not a zip, damaged, encrypted; an absolute path, a `..`, a link or a device in it;
            more than 20,000 entries or 500 MB expanded (as counted, whatever its headers say).
    """
    scratch = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(mode=0o700, parents=True)
    try:
        with zipfile.ZipFile(io.BytesIO(archive)) as bundle:
            _extract_all(bundle, scratch)
        scratch.rename(folder)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, ValueError, zlib.error) as exc:
        raise ArchiveRefused(f"not a usable zip: {exc}") from exc
    except FileExistsError as exc:  # a file and a folder of one name
        raise ArchiveRefused(f"an entry stands in another's way: {exc.filename}") from exc
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def write_single_file(code: str, folder: Path, kind: str = "") -> None:
    """Make `folder` hold the one file: `__main__.js` of a kind `nodejs:*`, else `__main__.py`. Blocking."""
    scratch = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(mode=0o700, parents=True)
    (scratch / ("__main__.js" if kind.startswith("nodejs:") else "__main__.py")).write_text(
        code, encoding="utf-8"
    )
    scratch.rename(folder)


def _extract_all(bundle: zipfile.ZipFile, root: Path) -> None:
    entries = bundle.infolist()
    if len(entries) > ENTRIES_MAX:
        raise ArchiveRefused(f"{len(entries)} entries, at most {ENTRIES_MAX} are allowed")
    left = EXPANDED_MAX_BYTES
    if sum(entry.file_size for entry in entries) > left:
        raise ArchiveRefused(f"expands to more than {EXPANDED_MAX_BYTES} bytes")
    for entry in entries:
        target = root / _safe_name(entry)
        if entry.is_dir():
            target.mkdir(parents=True, exist_ok=True)
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        with bundle.open(entry) as packed, target.open("xb") as out:
            while chunk := packed.read(min(_CHUNK, left + 1)):
                left -= len(chunk)
                if left < 0:
                    raise ArchiveRefused(f"expands to more than {EXPANDED_MAX_BYTES} bytes")
                out.write(chunk)
        if (entry.external_attr >> 16) & 0o111:
            target.chmod(0o700)


def _safe_name(entry: zipfile.ZipInfo) -> PurePosixPath:
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if kind not in {0, stat.S_IFREG, stat.S_IFDIR}:
        raise ArchiveRefused(f"{entry.filename!r} is a link or a device")
    if entry.compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
        raise ArchiveRefused(f"{entry.filename!r} is packed in an unusual way")
    name = PurePosixPath(entry.filename)
    if name.is_absolute() or ".." in name.parts or "\\" in entry.filename or not name.parts:
        raise ArchiveRefused(f"{entry.filename!r} leads out of the package")
    if max(map(len, map(os.fsencode, name.parts))) > 255 or len(entry.filename) > 2048:
        raise ArchiveRefused("an entry's name is too long")
    return name
