"""What an API is given: its bounds, its certificate, its tokens. Unsafe combinations are refused."""

from __future__ import annotations

import ipaddress
import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from fedkeeper.errors import ConfigError

TOKEN_CHARS_MIN: Final = 16
TIMEOUT_HEADER: Final = "Fedkeeper-Timeout"  # seconds that a caller waits for its answer


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiSettings:
    """As `keepers.api` in the config, which says what each of them is."""

    cert_file: Path | None = None
    key_file: Path | None = None
    reader_token: str | None = field(default=None, repr=False)
    operator_token: str | None = field(default=None, repr=False)
    requests_in_flight_max: int = 256
    body_bytes_max: int = 16 * 1024 * 1024
    value_bytes_max: int = 1024 * 1024
    kv_bytes_max: int = 64 * 1024 * 1024  # `keepers.kv_bytes_max`
    header_bytes_max: int = 16 * 1024
    connections_max: int = 1024
    idle_s: float = 75.0
    request_timeout_s: float = 10.0
    streams_max: int = 64
    events_s: float = 0.1
    keep_alive_s: float = 1.0
    stall_s: float = 10.0


def is_loopback(host: str) -> bool:
    """Whether `host`, as in an address or URL, can only be this machine. Other names are not asked for."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def check_safe(settings: ApiSettings, host: str) -> None:
    """Refuse to listen on `host` in a way that would let strangers in.

    Raises ConfigError: names the key, and what to write there.
    """
    for key in ("reader_token", "operator_token"):
        token = getattr(settings, key)
        if token is None:
            continue
        if len(token) < TOKEN_CHARS_MIN:
            raise ConfigError(
                f"keepers.api.{key} is shorter than {TOKEN_CHARS_MIN} characters",
                hint="make one with: python -c 'import secrets; print(secrets.token_urlsafe(32))'",
            )
        if not (token.isascii() and token.isprintable() and " " not in token):
            raise ConfigError(
                f"keepers.api.{key} holds a space, or a character that a header cannot carry",
                hint="use letters, digits and -._~+/= only",
            )
    if settings.reader_token is not None and settings.reader_token == settings.operator_token:
        raise ConfigError("keepers.api.reader_token and operator_token are the same", hint="use two tokens")
    if settings.reader_token is not None and settings.operator_token is None:
        raise ConfigError(
            "keepers.api.reader_token is set and operator_token is not: nobody could write",
            hint="set operator_token as well, or neither on loopback",
        )
    if (settings.cert_file is None) != (settings.key_file is None):
        raise ConfigError("keepers.api needs cert_file and key_file, or neither of them")
    if is_loopback(host):
        return
    if settings.cert_file is None:
        raise ConfigError(
            f"the API would listen on {host} without TLS",
            hint="set keepers.api.cert_file and key_file, or bind it to 127.0.0.1",
        )
    if settings.operator_token is None:
        raise ConfigError(
            f"the API would listen on {host} without tokens",
            hint="set keepers.api.operator_token (and reader_token), or bind it to 127.0.0.1",
        )


def server_context(settings: ApiSettings) -> ssl.SSLContext | None:
    """TLS as configured; None without a certificate. Raises ConfigError: names the file."""
    if settings.cert_file is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(settings.cert_file, settings.key_file)
    except (OSError, ssl.SSLError) as exc:
        raise ConfigError(
            f"keepers.api: {settings.cert_file} and {settings.key_file} do not make a certificate: {exc}",
            hint="both in PEM, the key without a passphrase",
        ) from exc
    return context
