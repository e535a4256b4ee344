"""A secret that all keepers share: who knows it may speak, and nobody else can listen. See ADR 0009.

dialler  → MAGIC nonce ephemeral-key proof      proof = HMAC(secret, "dial" …)
acceptor → MAGIC nonce ephemeral-key proof      proof = HMAC(secret, "accept" first message …)
dialler  → proof                                proof = HMAC(secret, "confirm" both messages)

Then both derive one key per direction from the X25519 exchange, the secret and both messages, and every
frame is sealed with AES-256-GCM, its number being the nonce: a frame that is changed, repeated, left out,
or taken from another connection or direction does not open. All messages have a fixed size: nothing of a
stranger's is parsed but a length.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Iterator
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF, HKDFExpand
from pydantic import SecretStr

from fedkeeper.errors import ConfigError
from fedkeeper.replication.raft.network.channels import Bytes
from fedkeeper.replication.raft.network.frames import HEADER, Broken, Inbox

SECRET_CHARS_MIN: Final = 16
MAGIC: Final = b"FedKeeper raft 1"
_NONCE: Final = 32
_PUBLIC: Final = 32
_PROOF: Final = 32
_OPENING: Final = len(MAGIC) + _NONCE + _PUBLIC  # of the first two messages, without the proof
_TAG: Final = 16
FRAMES_PER_KEY: Final = 1 << 20  # then the key is replaced by one derived from it


class SharedSecret:
    """Credentials from the config's `keepers.secret`. ConfigError if it is too short to be one."""

    protects = True

    def __init__(self, secret: SecretStr) -> None:
        value = secret.get_secret_value()
        if len(value) < SECRET_CHARS_MIN:
            raise ConfigError(
                f"keepers.secret has {len(value)} characters, and needs {SECRET_CHARS_MIN}",
                hint="python -c 'import secrets; print(secrets.token_urlsafe(32))' makes a good one",
            )
        # Stretched: who records a handshake can try words against it, and each try shall cost 50 ms.
        self._key = hashlib.scrypt(value.encode(), salt=MAGIC, n=1 << 14, r=8, p=1, dklen=32)

    def __repr__(self) -> str:
        return "SharedSecret(***)"

    def channel(self, *, dialling: bool) -> SecretChannel:
        """One for a new connection."""
        return SecretChannel(self._key, dialling=dialling)


class SecretChannel:
    """One connection between two that know the secret."""

    def __init__(self, key: bytes, *, dialling: bool) -> None:
        self.ready = False
        self._key = key
        self._dialling = dialling
        self._inbox = Inbox()
        self._private: X25519PrivateKey | None = None
        self._said = b""  # our first message
        self._heard = b""  # theirs
        self._answer = b""
        self._to_them: _Direction | None = None
        self._to_us: _Direction | None = None

    def begin(self) -> bytes:
        """The dialler's first message; the acceptor is silent until that has proved itself."""
        return self._frame(self._opening(b"dial")) if self._dialling else b""

    def space(self) -> memoryview:
        """Where the next bytes go."""
        return self._inbox.space()

    def received(self, count: int) -> Iterator[Bytes]:
        """The frames that open; the handshake's own are kept back."""
        for sealed in self._inbox.frames(count):
            if self._to_us is not None and self.ready:
                yield self._to_us.open(sealed)
            else:
                self._shake(bytes(sealed))

    def answer(self) -> bytes:
        """The handshake's next message."""
        answer, self._answer = self._answer, b""
        return answer

    def seal(self, body: Bytes) -> bytes:
        """The frame, encrypted and authenticated."""
        assert self._to_them is not None, "sealed before the handshake"
        return self._to_them.seal(body)

    def trust(self, limit: int) -> None:
        """Frames may be larger from now on."""
        self._inbox.trust(limit + _TAG)

    def proves(self, name: str) -> bool:
        """Whoever knows the secret is believed its name."""
        return True

    def _opening(self, role: bytes) -> bytes:
        self._private = X25519PrivateKey.generate()
        said = MAGIC + os.urandom(_NONCE) + self._private.public_key().public_bytes_raw()
        self._said = said + self._proof(role, self._heard, said)
        return self._said

    def _shake(self, message: bytes) -> None:
        """Take one of the three messages. Broken if it does not prove that the other knows the secret."""
        if self._heard:  # only the acceptor comes here: the dialler is ready with the first message
            self._check(message, self._proof(b"confirm", self._heard, self._said))
            self.ready = True
            return
        if not message.startswith(MAGIC) or len(message) != _OPENING + _PROOF:
            raise Broken("it does not speak as a keeper with a secret does")
        role = b"accept" if self._dialling else b"dial"
        self._check(message[_OPENING:], self._proof(role, self._said, message[:_OPENING]))
        self._heard = message
        if self._dialling:
            self._answer = self._frame(self._proof(b"confirm", self._said, self._heard))
            self._derive(self._said, self._heard)
            self.ready = True
        else:
            self._answer = self._frame(self._opening(b"accept"))
            self._derive(self._heard, self._said)

    def _proof(self, role: bytes, *parts: bytes) -> bytes:
        return hmac.digest(self._key, role + b"\0" + b"".join(parts), "sha256")

    @staticmethod
    def _check(given: bytes, right: bytes) -> None:
        if not hmac.compare_digest(given, right):
            raise Broken("it does not know the secret")

    @staticmethod
    def _frame(body: bytes) -> bytes:
        return HEADER.pack(len(body)) + body

    def _derive(self, first: bytes, second: bytes) -> None:
        assert self._private is not None
        theirs = X25519PublicKey.from_public_bytes(self._heard[len(MAGIC) + _NONCE : _OPENING])
        try:
            shared = self._private.exchange(theirs)
        except ValueError:  # a point of small order: nobody honest sends one
            raise Broken("its key is no key") from None
        salt = hashlib.sha256(first + second).digest()
        keys = HKDF(SHA256(), 64, salt, MAGIC).derive(shared + self._key)
        from_dialler, from_acceptor = _Direction(keys[:32]), _Direction(keys[32:])
        self._private = None  # forgotten: what is recorded today stays closed even if the secret leaks
        if self._dialling:
            self._to_them, self._to_us = from_dialler, from_acceptor
        else:
            self._to_them, self._to_us = from_acceptor, from_dialler


class _Direction:
    """The key of one direction, and the number of the next frame."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._cipher = AESGCM(key)
        self._number = 0

    def _nonce(self) -> bytes:
        if self._number == FRAMES_PER_KEY:
            self._key = HKDFExpand(SHA256(), 32, MAGIC + b" next").derive(self._key)
            self._cipher = AESGCM(self._key)
            self._number = 0
        self._number += 1
        return self._number.to_bytes(12, "big")

    def seal(self, body: Bytes) -> bytes:
        header = HEADER.pack(len(body) + _TAG)
        return header + self._cipher.encrypt(self._nonce(), body, header)

    def open(self, sealed: memoryview) -> bytes:
        try:
            return self._cipher.decrypt(self._nonce(), sealed, HEADER.pack(len(sealed)))
        except InvalidTag:
            raise Broken("a frame was changed, repeated or left out on its way") from None
