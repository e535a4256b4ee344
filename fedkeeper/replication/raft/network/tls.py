"""Mutual TLS 1.3: each side shows a certificate that the CA signed and that names the keeper."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from typing import Any, Final, cast

from fedkeeper.config.keepers import Tls
from fedkeeper.errors import ConfigError
from fedkeeper.replication.raft.network.channels import Bytes
from fedkeeper.replication.raft.network.frames import HEADER, Broken, Inbox

_BYTES_MAX_BEFORE_PROOF: Final = 64 * 1024  # two certificate chains, at most
_ROOM: Final = 256 * 1024


class MutualTls:
    """Credentials from the config's `keepers.tls`. ConfigError if the files are not what they should be."""

    protects = True

    def __init__(self, files: Tls) -> None:
        self._dialling = _context(files, ssl.PROTOCOL_TLS_CLIENT)
        self._accepting = _context(files, ssl.PROTOCOL_TLS_SERVER)

    def channel(self, *, dialling: bool) -> TlsChannel:
        """One for a new connection."""
        return TlsChannel(self._dialling if dialling else self._accepting, dialling=dialling)


def _context(files: Tls, protocol: int) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False  # keepers have names, not hosts: `TlsChannel.proves` looks at them
    context.verify_mode = ssl.CERT_REQUIRED
    try:
        context.load_verify_locations(files.ca_file)
        context.load_cert_chain(files.cert_file, files.key_file, password=_no_password)
    except (ssl.SSLError, OSError, ValueError) as exc:
        raise ConfigError(
            f"keepers.tls: {files.ca_file}, {files.cert_file}, {files.key_file}: {exc}",
            hint="PEM files are needed: a CA, a certificate that it signed, and its key without password",
        ) from exc
    if protocol == ssl.PROTOCOL_TLS_SERVER:
        context.num_tickets = 0  # nobody resumes: each connection shows its certificate
    return context


def _no_password() -> str:
    raise ValueError("the key has a password")  # otherwise OpenSSL asks for it on the terminal


class TlsChannel:
    """Frames inside TLS, over buffers in memory: leaner than asyncio's, and bounded before the proof."""

    def __init__(self, context: ssl.SSLContext, *, dialling: bool) -> None:
        self.ready = False
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=not dialling)
        self._room = memoryview(bytearray(_ROOM))
        self._heard = 0  # bytes before the proof
        self._inbox = Inbox()
        self._names: frozenset[str] = frozenset()

    def begin(self) -> bytes:
        """The client's hello; nothing, if we are the server."""
        self._shake()
        return self._outgoing.read()

    def space(self) -> memoryview:
        """Where the next bytes go."""
        return self._room

    def received(self, count: int) -> Iterator[Bytes]:
        """The frames inside; the handshake's own bytes are kept back."""
        self._incoming.write(self._room[:count])
        if not self.ready:
            self._heard += count
            if self._heard > _BYTES_MAX_BEFORE_PROOF:
                raise Broken(f"more than {_BYTES_MAX_BEFORE_PROOF} bytes, and no proof")
            self._shake()
            if not self.ready:
                return
        while True:
            space = self._inbox.space()
            try:
                count = cast(
                    int, self._tls.read(len(space), cast(bytearray, space))
                )  # with a buffer: a count
            except ssl.SSLWantReadError:
                return
            except ssl.SSLError as exc:
                raise Broken(f"TLS: {_said(exc)}") from None
            if not count:
                raise Broken("TLS: closed by the other side")
            yield from self._inbox.frames(count)
            if count < len(space) and not self._incoming.pending:
                return  # all is taken: asking once more would only cost an exception

    def answer(self) -> bytes:
        """The handshake's next message; an alert, when it failed."""
        return self._outgoing.read()

    def seal(self, body: Bytes) -> bytes:
        """The frame as TLS records."""
        self._tls.write(HEADER.pack(len(body)) + body)  # into memory: always the whole
        return self._outgoing.read()

    def trust(self, limit: int) -> None:
        """Frames may be larger from now on."""
        self._inbox.trust(limit)

    def proves(self, name: str) -> bool:
        """The other's certificate names `name`."""
        return name in self._names

    def _shake(self) -> None:
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return
        except ssl.SSLError as exc:
            raise Broken(f"TLS: {_said(exc)}") from None
        self.ready = True
        self._names = _names(self._tls.getpeercert() or {})


def _names(certificate: dict[str, Any]) -> frozenset[str]:
    """The DNS names of a certificate, or its common name if it has none. No wildcards."""
    names = frozenset(name for kind, name in certificate.get("subjectAltName", ()) if kind == "DNS")
    if names:
        return names
    subject = (pair for part in certificate.get("subject", ()) for pair in part)
    return frozenset(value for kind, value in subject if kind == "commonName")


def _said(exc: ssl.SSLError) -> str:
    if isinstance(exc, ssl.SSLCertVerificationError):
        return f"certificate refused: {exc.verify_message}"
    return (exc.reason or str(exc)).lower().replace("_", " ")
