from __future__ import annotations

import hashlib
import os
import stat
import tempfile
from pathlib import Path

import pytest

from fedkeeper.errors import TaskError
from fedkeeper.runtime import download
from tests.runtime.web import Asked, Reply, serving

CONTENT = b"x" * 3_000_000
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that downloads are kept below."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def whole(_asked: Asked) -> Reply:
    """The file."""
    return Reply(body=CONTENT)


@pytest.mark.parametrize("sha256", ["", DIGEST])
def test_a_file_is_fetched_once_for_all_workers(sha256: str) -> None:
    """The second worker on the machine finds it in the private folder."""
    with serving(whole) as web:
        paths = {download.local_file(f"{web.url}/a.npz", sha256) for _ in range(2)}
        assert len(web.asked) == 1
    (path,) = paths
    assert path.read_bytes() == CONTENT
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_a_kept_file_that_was_damaged_is_fetched_again() -> None:
    """The hash is checked on the kept file as well."""
    with serving(whole) as web:
        path = download.local_file(f"{web.url}/a.npz", DIGEST)
        path.write_bytes(b"damaged")
        assert download.local_file(f"{web.url}/a.npz", DIGEST).read_bytes() == CONTENT
        assert len(web.asked) == 2


def test_without_a_hash_a_kept_file_grows_old() -> None:
    """After an hour it is asked for again: the one on the web may have changed."""
    with serving(whole) as web:
        path = download.local_file(f"{web.url}/a.npz", "")
        os.utime(path, (1, 1))
        download.local_file(f"{web.url}/a.npz", "")
        assert len(web.asked) == 2


def test_a_wrong_hash_leaves_nothing_behind(temporary: Path) -> None:
    """Both hashes are named."""
    with serving(whole) as web, pytest.raises(TaskError, match=DIGEST):
        download.local_file(f"{web.url}/a.npz", "0" * 64)
    assert [path for path in temporary.rglob("*") if path.is_file()] == []


def test_too_large_a_file_is_cut_off(monkeypatch: pytest.MonkeyPatch, temporary: Path) -> None:
    """Whatever its header says."""
    monkeypatch.setenv("FEDKEEPER_DOWNLOADS", '{"timeout_s": 300, "bytes_max": 2000000}')
    with serving(whole) as web, pytest.raises(TaskError, match="more than 2000000 bytes"):
        download.local_file(f"{web.url}/a.npz", "")
    assert [path for path in temporary.rglob("*") if path.is_file()] == []


def test_too_slow_a_file_is_given_up(monkeypatch: pytest.MonkeyPatch, temporary: Path) -> None:
    """After the time that the experiment's config gives a file; nothing of it is left."""
    monkeypatch.setenv("FEDKEEPER_DOWNLOADS", '{"timeout_s": 0, "bytes_max": 2000000000}')
    with serving(whole) as web, pytest.raises(TaskError, match="not here after 0 s"):
        download.local_file(f"{web.url}/a.npz", "")
    assert [path for path in temporary.rglob("*") if path.is_file()] == []


def test_what_went_wrong_is_said_without_the_secrets_in_the_url() -> None:
    """Neither password nor query, in no error; nor in the chain that a traceback would print."""
    with serving(lambda _: Reply(status=403)) as web:
        address = web.url.removeprefix("http://")
        url = f"http://me:topsecret@{address}/a.npz?token=topsecret"
        with pytest.raises(TaskError, match=r"http://127\.0\.0\.1/a\.npz: HTTP 403") as refused:
            download.local_file(url, "")
    with pytest.raises(TaskError, match="ConnectionError") as gone:
        download.local_file(url, "")
    for caught in (refused, gone):
        assert "topsecret" not in str(caught.value)
        assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_a_folder_of_someone_else_is_not_used(temporary: Path) -> None:
    """One that others may write to could hold files of theirs."""
    (temporary / f"fedkeeper-{os.getuid()}").mkdir(mode=0o777)
    (temporary / f"fedkeeper-{os.getuid()}").chmod(0o777)
    with serving(whole) as web:
        path = download.local_file(f"{web.url}/a.npz", "")
    assert path.parent.name != f"fedkeeper-{os.getuid()}"
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("ftp://host/a.npz", "not 'ftp'"),
        ("file://host/a.npz", "another machine"),
        ("file:///no/such/a.npz", "no such file"),
        ("a.npz", "not ''"),
    ],
)
def test_other_places_are_named(url: str, problem: str) -> None:
    """With what would do instead."""
    with pytest.raises(TaskError, match=problem):
        download.local_file(url, "")
