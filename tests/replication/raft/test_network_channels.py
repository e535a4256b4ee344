"""Channels and frames, byte by byte: only what a peer sealed, once and in order, comes out."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from fedkeeper.config.keepers import Tls
from fedkeeper.errors import ConfigError
from fedkeeper.replication.raft.network import Credentials, MutualTls, SharedSecret, Unprotected, secret
from fedkeeper.replication.raft.network.channels import Channel
from fedkeeper.replication.raft.network.frames import BYTES_MAX_BEFORE_PROOF, HEADER, Broken, Inbox
from tests.replication.raft.certificates import authority
from tests.replication.raft.real_world import SECRET, shared

LIMIT = 1 << 20


def feed(channel: Channel, data: bytes) -> list[bytes]:
    """What comes out of `channel` when `data` comes in, in as many reads as it takes."""
    frames = []
    while data:
        space = channel.space()
        count = min(len(space), len(data))
        space[:count] = data[:count]
        data = data[count:]
        frames.extend(bytes(frame) for frame in channel.received(count))
    return frames


def shake(one: Channel, two: Channel) -> list[bytes]:
    """Let `one` connect to `two`; all that was said, in turn."""
    said = [one.begin(), two.begin()]
    feed(two, said[0])
    while answer := two.answer():
        feed(one, answer)
        said += [answer, one.answer()]
        feed(two, said[-1])
    one.trust(LIMIT)
    two.trust(LIMIT)
    return said


def pair(credentials: Credentials) -> tuple[Channel, Channel]:
    """Two ends of a connection that stands."""
    one, two = credentials.channel(dialling=True), credentials.channel(dialling=False)
    shake(one, two)
    assert one.ready
    assert two.ready
    return one, two


@pytest.fixture(params=["nothing", "secret", "tls"])
def credentials(request: pytest.FixtureRequest, tmp_path: Path) -> Credentials:
    """All kinds."""
    if request.param == "tls":
        return MutualTls(authority().files(tmp_path, "k1"))
    return Unprotected() if request.param == "nothing" else shared(SECRET)


@pytest.fixture(params=["secret", "tls"])
def protecting(request: pytest.FixtureRequest, tmp_path: Path) -> Credentials:
    """Those that keep strangers out."""
    return MutualTls(authority().files(tmp_path, "k1")) if request.param == "tls" else shared(SECRET)


class TestFrames:
    @given(bodies=st.lists(st.binary(max_size=3000), max_size=20), cuts=st.lists(st.integers(1, 5000)))
    def test_frames_come_out_as_they_went_in(self, bodies: list[bytes], cuts: list[int]) -> None:
        """However the network cuts them up."""
        stream = b"".join(HEADER.pack(len(body)) + body for body in bodies)
        inbox, out, sizes = Inbox(), [], iter(cuts)
        while stream:
            space = inbox.space()
            count = min(len(space), len(stream), next(sizes, 700))
            space[:count] = stream[:count]
            stream = stream[count:]
            out += [bytes(frame) for frame in inbox.frames(count)]
        assert out == bodies

    @given(size=st.integers(0, 2 * LIMIT), chunk=st.integers(1000, 300_000))
    def test_large_frames_are_taken_up_to_the_limit(self, size: int, chunk: int) -> None:
        """With a buffer that grows to the frame, and shrinks again after it."""
        inbox = Inbox()
        inbox.trust(LIMIT)
        stream = memoryview(HEADER.pack(size) + bytes(size) + HEADER.pack(3) + b"end")
        out: list[bytes] = []

        def run() -> None:
            at = 0
            while at < len(stream):
                space = inbox.space()
                assert len(space) <= LIMIT + HEADER.size
                count = min(len(space), len(stream) - at, chunk)
                space[:count] = stream[at : at + count]
                at += count
                out.extend(bytes(frame) for frame in inbox.frames(count))

        if size > LIMIT:
            with pytest.raises(Broken, match="bytes, and"):
                run()
        else:
            run()
            assert out == [bytes(size), b"end"]
            assert len(inbox.space()) <= 256 * 1024

    @pytest.mark.parametrize("length", [BYTES_MAX_BEFORE_PROOF + 1, 2**31 - 1, 2**31, 2**32 - 1])
    def test_a_strangers_length_is_refused_before_its_bytes(self, length: int) -> None:
        """Above 4 KiB nothing is kept for anybody who has not proved who it is; negative ones are huge."""
        inbox = Inbox()
        inbox.space()[:4] = HEADER.pack(length)
        with pytest.raises(Broken, match=f"a frame of {length} bytes"):
            list(inbox.frames(4))


class TestChannels:
    def test_frames_of_all_sizes_pass_both_ways(self, credentials: Credentials) -> None:
        """Empty ones, and those of several TLS records, too."""
        one, two = pair(credentials)
        for size in (0, 1, 100, 4096, 16384, 70_000, LIMIT):
            body = bytes(range(256)) * (size // 256) + bytes(size % 256)
            assert feed(two, one.seal(body)) == [body]
            assert feed(one, two.seal(body) + two.seal(b"next")) == [body, b"next"]

    def test_nothing_is_in_the_clear(self, protecting: Credentials) -> None:
        """What is said cannot be read by who listens."""
        one, _ = pair(protecting)
        assert b"weights pointer" not in one.seal(b"weights pointer")

    @pytest.mark.parametrize("spot", [0.0, 0.3, 0.6, 0.999])
    def test_a_changed_byte_ends_it(self, protecting: Credentials, spot: float) -> None:
        """Anywhere in the frame; nothing of it comes out."""
        one, two = pair(protecting)
        sealed = bytearray(one.seal(b"x" * 1000))
        sealed[max(3, int(spot * len(sealed)))] ^= 1  # the length's first bytes would only make it wait
        with pytest.raises(Broken):
            assert feed(two, bytes(sealed) + one.seal(b"y" * 2000)) == []

    def test_a_repeated_frame_ends_it(self, protecting: Credentials) -> None:
        """A frame counts once."""
        one, two = pair(protecting)
        sealed = one.seal(b"vote")
        assert feed(two, sealed) == [b"vote"]
        with pytest.raises(Broken):
            feed(two, sealed)

    def test_a_frame_left_out_or_out_of_order_ends_it(self, protecting: Credentials) -> None:
        """In order, or not at all."""
        one, two = pair(protecting)
        first, second = one.seal(b"first"), one.seal(b"second")
        with pytest.raises(Broken):
            feed(two, second + first)

    def test_a_frame_sent_back_ends_it(self, protecting: Credentials) -> None:
        """The two directions have different keys."""
        one, _ = pair(protecting)
        with pytest.raises(Broken):
            feed(one, one.seal(b"mine"))

    def test_a_frame_of_another_connection_ends_it(self, protecting: Credentials) -> None:
        """Each connection has keys of its own."""
        one, _ = pair(protecting)
        _, two = pair(protecting)
        with pytest.raises(Broken):
            feed(two, one.seal(b"recorded"))

    def test_a_recorded_connection_cannot_be_played_again(self, protecting: Credentials) -> None:
        """Neither side's words convince anybody a second time."""
        one, two = protecting.channel(dialling=True), protecting.channel(dialling=False)
        said = shake(one, two)
        recorded = [part for part in (said[0], *said[3::2], one.seal(b"vote")) if part]
        victim = protecting.channel(dialling=False)
        victim.begin()
        with pytest.raises(Broken):
            assert not feed(victim, b"".join(recorded))
        assert not victim.ready

    def test_strangers_get_no_answer(self, protecting: Credentials) -> None:
        """Random bytes, HTTP, zeros: refused, and not with what could be worked on."""
        for noise in (
            b"GET / HTTP/1.1\r\n\r\n" * 10,
            bytes(200),
            bytes(range(256)),
            b"\x00\x00\x00\x70" + bytes(112),
        ):
            victim = protecting.channel(dialling=False)
            with pytest.raises(Broken):
                feed(victim, noise * 300)
            assert not victim.ready
            assert len(victim.answer()) < 10  # an alert of TLS at most


class TestSecret:
    def test_keys_are_renewed_without_a_gap(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """After so many frames the next key follows from the last; both sides turn at the same frame."""
        monkeypatch.setattr(secret, "FRAMES_PER_KEY", 3)
        one, two = pair(shared(SECRET))
        numbers = [str(number).encode() for number in range(20)]
        assert [feed(two, one.seal(number)) for number in numbers] == [[number] for number in numbers]

    def test_another_secret_is_refused_at_the_first_message(self) -> None:
        """Before anything costly is done for it."""
        stranger = shared("another secret, as good as ours").channel(dialling=True)
        victim = shared(SECRET).channel(dialling=False)
        with pytest.raises(Broken, match="does not know the secret"):
            feed(victim, stranger.begin())
        assert victim.answer() == b""

    def test_a_dialler_is_not_taken_in_either(self) -> None:
        """By a listener that mirrors its own words, or that does not know the secret."""
        dialler = shared(SECRET).channel(dialling=True)
        opening = dialler.begin()
        with pytest.raises(Broken, match="does not know the secret"):
            feed(dialler, opening)
        stranger = shared("another secret, as good as ours")
        dialler, victim = shared(SECRET).channel(dialling=True), stranger.channel(dialling=False)
        opening = dialler.begin()
        forged = secret.MAGIC + bytes(len(opening) - HEADER.size - len(secret.MAGIC))
        with pytest.raises(Broken, match="does not know the secret"):
            feed(dialler, HEADER.pack(len(forged)) + forged)
        assert not victim.ready

    def test_who_sits_between_cannot_swap_a_key(self) -> None:
        """The proofs cover the keys: one's own put in its place is found out."""
        one, two = (shared(SECRET).channel(dialling=dialling) for dialling in (True, False))
        opening = bytearray(one.begin())
        opening[HEADER.size + len(secret.MAGIC) + 40] ^= 1
        with pytest.raises(Broken, match="does not know the secret"):
            feed(two, bytes(opening))

    def test_a_short_secret_is_refused_and_never_shown(self) -> None:
        """The error names how long it must be."""
        with pytest.raises(ConfigError, match="9 characters") as caught:
            SharedSecret(SecretStr("password1"))
        assert "password1" not in str(caught.value) + caught.value.hint
        assert SECRET not in repr(shared(SECRET))


class TestTls:
    @pytest.fixture
    def files(self, tmp_path: Path) -> Callable[..., Tls]:
        def make(name: str, ca: str = "ca", **options: Any) -> Tls:
            return authority(ca).files(tmp_path, name, **options)

        return make

    def _ends(self, dialler: Tls, acceptor: Tls) -> Iterator[Channel]:
        one, two = MutualTls(dialler).channel(dialling=True), MutualTls(acceptor).channel(dialling=False)
        shake(one, two)
        feed(two, one.seal(b"hello"))
        feed(one, two.seal(b"hello"))
        return iter((one, two))

    def test_each_sees_the_others_name(self, files: Callable[..., Tls]) -> None:
        """From the DNS names, or the common name if there are none; no wildcards."""
        one, two = self._ends(files("k1", sans=("k1", "extra")), files("k2", sans=()))
        assert [two.proves(name) for name in ("k1", "extra", "k2")] == [True, True, False]
        assert [one.proves(name) for name in ("k2", "k1", "")] == [True, False, False]
        _, two = self._ends(files("k3", sans=("*.keepers", "other")), files("k2"))
        assert not two.proves("a.keepers")
        assert not two.proves("k3")

    @pytest.mark.parametrize(
        ("bad", "reason"),
        [({"ca": "other"}, "unable to get|unknown ca|self-signed"), ({"days": -1}, "expired")],
    )
    @pytest.mark.parametrize("dialling", [True, False])
    def test_a_bad_certificate_is_refused(
        self, files: Callable[..., Tls], bad: dict[str, Any], reason: str, *, dialling: bool
    ) -> None:
        """Of another CA, or out of date; on whichever side it is."""
        good, wrong = files("k1"), files("k2", **bad)
        wrong = wrong.model_copy(update={"ca_file": good.ca_file})
        with pytest.raises(Broken, match=reason):
            self._ends(*((wrong, good) if dialling else (good, wrong)))

    def test_older_tls_is_refused(self, files: Callable[..., Tls]) -> None:
        """1.3 and nothing before."""
        tls = files("k1")
        context = ssl.create_default_context(cafile=tls.ca_file)
        context.check_hostname = False
        context.load_cert_chain(tls.cert_file, tls.key_file)
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        out = ssl.MemoryBIO()
        client = context.wrap_bio(ssl.MemoryBIO(), out)
        with pytest.raises(ssl.SSLWantReadError):
            client.do_handshake()
        with pytest.raises(Broken, match="unsupported protocol"):
            feed(MutualTls(tls).channel(dialling=False), out.read())

    def test_without_a_certificate_nobody_gets_in(self, files: Callable[..., Tls]) -> None:
        """TLS alone proves nothing about the one that dials."""
        tls = files("k1")
        context = ssl.create_default_context(cafile=tls.ca_file)
        context.check_hostname = False
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        client = context.wrap_bio(incoming, outgoing)
        victim = MutualTls(tls).channel(dialling=False)
        with pytest.raises(ssl.SSLWantReadError):
            client.do_handshake()
        feed(victim, outgoing.read())
        incoming.write(victim.answer())
        client.do_handshake()
        with pytest.raises(Broken, match="did not return a certificate"):
            feed(victim, outgoing.read())

    def test_files_that_are_no_certificates_are_named(
        self, files: Callable[..., Tls], tmp_path: Path
    ) -> None:
        """So are keys of another certificate, and keys with a password (nobody is asked for it)."""
        good, other = files("k1"), files("k2")
        empty = tmp_path / "empty.pem"
        empty.touch()
        locked = tmp_path / "locked.pem"
        locked.write_bytes(encrypted(good.key_file))
        for wrong in (
            {"ca_file": empty},
            {"cert_file": empty},
            {"key_file": other.key_file},
            {"key_file": locked},
        ):
            with pytest.raises(ConfigError, match=r"keepers\.tls") as caught:
                MutualTls(good.model_copy(update=wrong))
            assert "PEM files are needed" in caught.value.hint


def encrypted(path: Path) -> bytes:
    """The PEM key of `path` under a password."""
    from cryptography.hazmat.primitives.serialization import (
        BestAvailableEncryption,
        Encoding,
        PrivateFormat,
        load_pem_private_key,
    )

    key = load_pem_private_key(path.read_bytes(), None)
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"open sesame"))
