"""The authorities that functions trust."""

from __future__ import annotations

import multiprocessing
import tempfile
from pathlib import Path

import pytest

from fedkeeper.errors import TaskError
from fedkeeper.runtime.environment import ClientAccess
from tests.certificates import certificate, key_pem, pem
from tests.runtime.test_posting import send
from tests.runtime.web import Reply, serving


def _send_anew(url: str, access: ClientAccess) -> None:
    assert send(url, access) == b"update"


def test_a_clients_own_authority_is_trusted_and_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Here and in a forked process; another one is refused; the temporary folder stays empty."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    authority, other = certificate("the lab's CA"), certificate("another CA")
    server = certificate("client", authority)
    (tmp_path / "server.pem").write_text(pem(server) + key_pem(server))
    trusted, wrong = (ClientAccess(platform="openfaas", ca_pem=pem(one)) for one in (authority, other))
    with serving(lambda _: Reply(body=b"update"), certificate=tmp_path / "server.pem") as web:
        assert send(web.url, trusted) == b"update"
        assert send(web.url, trusted) == b"update"
        child = multiprocessing.get_context("fork").Process(target=_send_anew, args=(web.url, trusted))
        child.start()
        child.join(60)
        assert child.exitcode == 0
        with pytest.raises(TaskError, match="SSLError"):
            send(web.url, wrong)
    assert list(temporary.iterdir()) == []
