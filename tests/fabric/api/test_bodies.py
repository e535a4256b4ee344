"""What callers send, before anything is believed of it."""

import asyncio
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedkeeper.fabric.bodies import BodyMalformed, dump_json, parse_json, parse_object

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
)  # fmt: skip


@given(plain)
def test_json_comes_back_as_it_was_sent(value):
    """Every value that JSON has a form of."""
    assert parse_json(dump_json(value)) == value


@given(st.binary() | st.text(alphabet='[]{}",:0123456789eE+-.naNIfity\\u ').map(str.encode))
def test_any_bytes_are_strict_json_or_malformed(text):
    """No other exception, and never a number that is not finite."""
    try:
        value = parse_json(text)
    except BodyMalformed:
        return
    assert not isinstance(value, float) or math.isfinite(value)


@pytest.mark.parametrize(
    "text",
    [
        b'{"a":1,"a":1}', b'{"x":{"error":1,"\\u0065rror":2}}', b"NaN", b"-Infinity", b"1e400", b"9" * 5000,
        b"[" * 201 + b"]" * 201, b"[" * 100_000, b'{"a":' * 250 + b"1" + b"}" * 250, b"\xff\xfe", b"",
    ],
)  # fmt: skip
def test_traps_are_malformed(text):
    """Doubled keys (also escaped), numbers that are none, depth bombs, bytes that are no text."""
    with pytest.raises(BodyMalformed):
        parse_json(text)


def test_what_is_only_long_or_just_deep_enough_is_taken():
    """The other side of each bound; an empty body is an empty object."""
    parse_json(b"[" * 200 + b"]" * 200)
    parse_json(b"[" + b",".join([b"{}"] * 10_000) + b"]")
    assert parse_object(b" ") == {}
    with pytest.raises(BodyMalformed, match="Object expected"):
        parse_object(b"[]")


@pytest.mark.parametrize(
    "sent",
    [
        b"GARBAGE\r\n\r\n",
        b"GET /api/v1/namespaces/_/actions HTTP/1.1\r\nHost: x\r\nAuthorization: Basic \xff\xff\r\n\r\n",
        b"POST /token HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
        b"PUT /upload/x HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nZZZ\r\n",
        b"GET /fn/a/b/%ff%00 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n",
        b"POST /api/v1/namespaces/_/actions/%00 HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n{",
    ],
)
async def test_after_a_broken_request_the_next_one_is_served(fabric, sent):
    """Whatever arrives, and then hangs up."""
    host, port = fabric.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(sent)
    writer.write_eof()
    answer = await asyncio.wait_for(reader.read(4096), 10)
    writer.close()
    await writer.wait_closed()
    assert not answer or not answer.startswith(b"HTTP/1.1 2")
    assert (await fabric.put("next")).status == 200
