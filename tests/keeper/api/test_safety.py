"""Who is let in, and what nobody can do to a keeper."""

from __future__ import annotations

import asyncio
import json
import ssl
from dataclasses import replace

import pytest
from structlog.testing import capture_logs

from fedkeeper.errors import ConfigError, PortTaken
from fedkeeper.keeper.api.app import open_api
from fedkeeper.keeper.api.control import LogControl
from fedkeeper.keeper.api.server import listen
from fedkeeper.keeper.api.settings import ApiSettings, check_safe, is_loopback
from fedkeeper.replication.memory import MemoryLog
from tests.keeper.lab import Lab, open_lab, until
from tests.replication.raft.certificates import authority

OPERATOR, READER = "operator-token-0123456789", "reader-token-0123456789"
TOKENS = ApiSettings(operator_token=OPERATOR, reader_token=READER)


def bearer(token: str) -> dict[str, dict[str, str]]:
    """As an argument of `ask`."""
    return {"headers": {"Authorization": f"Bearer {token}"}}


async def test_roles():
    """A reader reads, an operator writes as well, others get 401; nobody needs one for health."""
    async with open_lab(settings=TOKENS) as lab:
        for route in lab["k1"].api.routes:
            target = route.path.replace("{run}", "none").replace("{name}", "none")
            for token, access in (("", 0), ("wrong-token-0123456789", 0), (READER, 1), (OPERATOR, 2)):
                answer = await lab.ask(route.method, target, **(bearer(token) if token else {}))
                expected = {0: 401, 1: 403}[access] if access < route.needs else None
                if expected is None:
                    assert answer.status not in {401, 403}, f"{route.method} {target}"
                else:
                    assert answer.status == expected, f"{route.method} {target}"
                    assert answer.error["kind"] == "ApiRefused"
                assert OPERATOR not in answer.data.decode()
        assert (await lab.ask("GET", "/v1/status")).headers["WWW-Authenticate"] == "Bearer"
        assert (await lab.ask("GET", "/v1/nothing")).status == 401


@pytest.mark.parametrize(
    "header",
    [
        "",
        "Bearer",
        "Bearer ",
        f"Basic {OPERATOR}",
        OPERATOR,
        f"Bearer {OPERATOR}x",
        f"Bearer {OPERATOR[:-1]}",
    ],
)
async def test_what_is_not_quite_a_token(header):
    """Is none."""
    async with open_lab(settings=TOKENS) as lab:
        assert (await lab.ask("GET", "/v1/status", headers={"Authorization": header})).status == 401


@pytest.mark.parametrize(
    ("settings", "host", "said"),
    [
        (ApiSettings(), "0.0.0.0", "TLS"),
        (ApiSettings(), "10.0.0.1", "TLS"),
        (ApiSettings(), "k1.example", "TLS"),
        (TOKENS, "0.0.0.0", "TLS"),
        (ApiSettings(operator_token="short"), "127.0.0.1", "16"),
        (ApiSettings(operator_token="with a space in the middle"), "127.0.0.1", "space"),
        (ApiSettings(operator_token=OPERATOR, reader_token=OPERATOR), "127.0.0.1", "same"),
        (ApiSettings(reader_token=READER), "127.0.0.1", "operator_token"),
    ],
)
async def test_an_unsafe_start_is_refused(settings, host, said):
    """With the key to set, and never with the token."""
    with pytest.raises(ConfigError, match=said) as caught:
        check_safe(settings, host)
    assert "token-0123456789" not in str(caught.value) + caught.value.hint + repr(settings)


async def test_an_open_socket_is_no_way_around():
    """What counts is where it listens."""
    log = MemoryLog()
    with pytest.raises(ConfigError, match="TLS"):
        async with open_api(log, LogControl(log), listen("0.0.0.0", 0)):
            pass


def test_what_is_loopback():
    """Addresses of it, and `localhost`; no other name, wherever it leads."""
    assert all(is_loopback(host) for host in ("127.0.0.1", "127.9.9.9", "::1", "[::1]", "localhost"))
    assert not any(is_loopback(host) for host in ("0.0.0.0", "::", "127.0.0.1.evil.example", "10.0.0.1", ""))


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example"}, 403),
        ({"Host": "127.0.0.1.evil.example:80"}, 403),
        ({"Host": ""}, 403),
        ({"Host": "localhost:1"}, 200),
        ({"Host": "[::1]:1"}, 200),
        ({"Host": "127.0.0.1:1", "Origin": "http://evil.example"}, 403),
        ({"Host": "127.0.0.1:1", "Origin": "http://127.0.0.1:2"}, 403),
        ({"Host": "127.0.0.1:1", "Origin": "null"}, 403),
        ({"Host": "127.0.0.1:1", "Origin": "http://127.0.0.1:1"}, 200),
        ({"Host": "127.0.0.1:1", "Sec-Fetch-Site": "cross-site"}, 403),
        ({"Content-Type": "text/plain"}, 415),
    ],
)
async def test_web_pages_change_nothing_here(lab, headers, status):
    """A browser on this machine reaches loopback too: across sites, or by a name that leads here."""
    answer = await lab.ask("PUT", "/v1/kv/x", {"value": 1}, headers=headers)
    assert answer.status == status
    assert ("x" in lab.group.state.kv) == (status == 200)


async def test_a_rebound_name_does_not_read_either(lab):
    """Such a page would be of the same origin."""
    assert (await lab.ask("GET", "/v1/status", headers={"Host": "evil.example"})).status == 403


async def test_tls(tmp_path):
    """With a certificate nobody is answered in the clear; a key that does not fit is refused at the start."""
    ca = authority()
    files, others = ca.files(tmp_path, "k1"), ca.files(tmp_path, "k2")
    settings = replace(TOKENS, cert_file=files.cert_file, key_file=files.key_file)
    context = ssl.create_default_context(cafile=files.ca_file)
    context.check_hostname = False
    async with open_lab(settings=settings, verify=context) as lab:
        assert lab["k1"].url.startswith("https://")
        assert (await lab.ask("GET", "/v1/status", **bearer(READER))).status == 200
        assert await raw(lab, b"GET /v1/health HTTP/1.1\r\nHost: x\r\n\r\n") == b""
    log = MemoryLog()
    wrong = replace(settings, cert_file=others.cert_file)
    with pytest.raises(ConfigError, match="certificate"):
        async with open_api(log, LogControl(log), listen("127.0.0.1", 0), settings=wrong):
            pass


async def raw(lab: Lab, data: bytes, *, whole: bool = True) -> bytes:
    """Everything that comes back, until the keeper closes; or the first line of it."""
    host, _, port = lab["k1"].url.partition("://")[2].partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(data)
        async with asyncio.timeout(20):
            return await reader.read() if whole else await reader.readline()
    except ConnectionError:
        return b""
    finally:
        writer.close()


@pytest.mark.parametrize(
    "data",
    [
        b"\x00\xff\x16\x03\x01 garbage\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /" + b"x" * 100_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 100_000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"X: y\r\n" * 1000 + b"\r\n",
        b"PUT /v1/kv/x HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
    ],
)
async def test_what_is_no_http_is_answered_and_closed(lab, data):
    """In JSON, without a stack trace and without a line in the log; the next request is served."""
    with capture_logs() as logs:
        answer = await raw(lab, data)
    assert answer.startswith((b"HTTP/1.1 400", b"HTTP/1.0 400")), answer[:200]
    assert b'"kind":"ApiError"' in answer
    assert b"Traceback" not in answer
    assert logs == []
    assert (await lab.ask("GET", "/v1/health")).status == 200


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"Content-Type: application/json\r\nTransfer-Encoding: chunked", 411),
        (b"Content-Type: application/json\r\nContent-Length: 99999999999", 413),
        (b"Content-Type: application/json\r\nContent-Length: 3\r\nContent-Encoding: gzip", 415),
        (b"Content-Type: application/json\r\nContent-Length: 3\r\nExpect: a-miracle", 417),
        (b"Content-Length: 3", 415),
    ],
)
async def test_bodies_that_are_not_taken(lab, head, status):
    """Are refused by their head, before any of them is read."""
    data = b"PUT /v1/kv/x HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n" + head + b"\r\n\r\n"
    assert (await raw(lab, data, whole=False)).startswith(b"HTTP/1.1 %d " % status)


async def test_a_body_that_does_not_come_is_not_waited_for():
    """408."""
    async with open_lab(settings=ApiSettings(request_timeout_s=0.1)) as lab:
        head = b"Content-Type: application/json\r\nContent-Length: 20\r\n\r\n{"
        answer = await raw(lab, b"PUT /v1/kv/x HTTP/1.1\r\nHost: localhost\r\n" + head, whole=False)
    assert answer.startswith(b"HTTP/1.1 408 ")


async def test_expect_100_continue(lab):
    """curl asks so before it sends a large body."""
    host, _, port = lab["k1"].url.partition("://")[2].partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    body = b'{"value":1}'
    writer.write(
        b"PUT /v1/kv/x HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\r\n"
        b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(body)
    )
    async with asyncio.timeout(20):
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(body)
        assert (await reader.read()).startswith(b"HTTP/1.1 200 ")
    writer.close()


async def test_there_are_only_so_many_connections():
    """For one more, the one that has been silent the longest gives way; nobody is kept out by it."""
    async with open_lab(settings=ApiSettings(connections_max=5)) as lab:
        host, _, port = lab["k1"].url.partition("://")[2].partition(":")
        held = [await asyncio.open_connection(host, int(port)) for _ in range(5)]
        answer = await raw(lab, b"GET /v1/health HTTP/1.0\r\nHost: localhost\r\n\r\n")
        assert answer.startswith(b"HTTP/1.0 200 ")
        async with asyncio.timeout(20):
            assert await held[0][0].read() == b""
        assert not held[1][0].at_eof()
        for _, writer in held:
            writer.close()


@pytest.mark.parametrize("sent", [b"", b"GET /v1/hea", b"GET /v1/health HTTP/1.1\r\nHost: localhost\r\n\r\n"])
async def test_idle_connections_are_closed(sent):
    """Those that never ask, those that never finish asking, those that asked long ago."""
    async with open_lab(settings=ApiSettings(idle_s=0.1)) as lab:
        answer = await raw(lab, sent)  # returns when the keeper closes
    assert answer.startswith(b"HTTP/1.1 200") == sent.endswith(b"\r\n\r\n")


async def test_there_are_only_so_many_requests_at_once(monkeypatch):
    """503, and when to come back; health and status are answered all the same."""
    async with open_lab(settings=ApiSettings(requests_in_flight_max=3)) as lab:
        go, begun = asyncio.Event(), []
        real = lab["k1"].log.propose

        async def slow(command):
            begun.append(command)
            await go.wait()
            return await real(command)

        monkeypatch.setattr(lab["k1"].log, "propose", slow)
        held = [asyncio.create_task(lab.put("x", number)) for number in range(3)]
        await until(lambda: len(begun) == 3)
        answer = await lab.ask("PUT", "/v1/kv/x", {"value": 4})
        assert (answer.status, answer.error["kind"], answer.error["definite"]) == (503, "KeeperBusy", True)
        assert answer.headers["Retry-After"] == "1"
        assert (await lab.ask("GET", "/v1/status")).status == 200
        go.set()
        await asyncio.gather(*held)
        await lab.put("x", 5)


async def test_a_fault_of_ours_tells_nothing(lab, monkeypatch):
    """500 with its kind, which may have happened; the details are in the keeper's log."""

    async def broken(command):
        raise ZeroDivisionError("a secret inside")

    monkeypatch.setattr(lab["k1"].log, "propose", broken)
    with capture_logs() as logs:
        answer = await lab.ask("PUT", "/v1/kv/x", {"value": 1})
    assert (answer.status, answer.error["kind"], answer.error["definite"]) == (500, "InternalError", False)
    assert b"secret" not in answer.data
    assert [entry["event"] for entry in logs] == ["request failed inside the keeper"]


async def test_a_taken_port_is_named():
    """With the address."""
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(PortTaken, match=f"127.0.0.1:{port}"):
            listen("127.0.0.1", port)


@pytest.mark.parametrize(
    ("version", "connection", "size", "kept"),
    [
        (b"1.1", b"keep-alive", 10, True),
        (b"1.1", b"close", 10, False),
        (b"1.0", b"close", 10, False),
        (b"1.0", b"keep-alive", 10, True),
        (b"1.1", b"keep-alive", 100_000, True),
    ],
)
async def test_answers_of_the_dictionary_are_http_like_all_others(lab, version, connection, size, kept):
    """They are written by hand, in one piece: head, length, and whether the connection stays."""
    await lab.put("x", "v" * size)
    host, _, port = lab["k1"].url.partition("://")[2].partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    request = b"GET /v1/kv/x HTTP/%b\r\nHost: localhost\r\nConnection: %b\r\n\r\n" % (version, connection)
    async with asyncio.timeout(20):
        for _ in range(2 if kept else 1):
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            fields = dict(line.split(b": ", 1) for line in head.split(b"\r\n")[1:] if line)
            assert head.startswith(b"HTTP/%b 200 OK\r\n" % version)
            assert fields[b"Content-Type"] == b"application/json"
            assert fields[b"Date"].endswith(b"GMT")
            body = await reader.readexactly(int(fields[b"Content-Length"]))
            assert json.loads(body)["value"] == "v" * size
        if not kept:
            assert await reader.read() == b""
    writer.close()
