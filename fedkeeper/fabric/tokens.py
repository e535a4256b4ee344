"""Identities of the fabric's Google side: what its service accounts sign, and what it signs for them.

Three kinds of token, all RS256 JWTs: the self-signed one that the official client sends to the API, the
assertion that asks the token endpoint for another token, and the ID and access tokens given in return.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from google.auth import crypt, jwt

API_AUDIENCE: Final = "https://cloudfunctions.googleapis.com/"
# gcloud's own client: `gcloud functions call` sends an ID token for it, whatever function it calls.
GCLOUD_AUDIENCE: Final = "32555940559.apps.googleusercontent.com"
GRANT_TYPE: Final = "urn:ietf:params:oauth:grant-type:jwt-bearer"
_GOOGLE_ENDPOINT: Final = "https://oauth2.googleapis.com/token"
LIFETIME_S: Final = 3600
_SCOPES: Final = frozenset(
    {"https://www.googleapis.com/auth/cloud-platform", "https://www.googleapis.com/auth/cloudfunctions"}
)
_SKEW_S: Final = 10
_TOKEN_MAX_CHARS: Final = 16_384


class TokenRefused(Exception):
    """The token is not one that may be used here; says why, never what it was."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """A verified caller."""

    email: str
    project: str


@dataclass(slots=True)
class Authority:
    """Verifies the service accounts' tokens, and issues and verifies its own."""

    issuer: str  # base URL of the fabric
    private_key: str = field(repr=False)  # PEM
    accounts: Mapping[str, Mapping[str, Any]] = field(repr=False)  # project -> service account JSON
    _signer: Any = field(init=False, repr=False)
    _own_key: bytes = field(init=False, repr=False)
    _key_id: str = field(init=False, repr=False)
    _keys: dict[str, tuple[bytes, str, str]] = field(init=False, repr=False)  # email -> key, its ID, project

    def __post_init__(self) -> None:
        self._own_key = public_pem(self.private_key)
        self._key_id = hashlib.sha1(
            self._own_key, usedforsecurity=False
        ).hexdigest()  # 40 digits, as Google's
        self._signer = crypt.RSASigner.from_string(self.private_key, self._key_id)
        self.replace(self.accounts)

    def replace(self, accounts: Mapping[str, Mapping[str, Any]]) -> None:
        """Take another set of service accounts."""
        self.accounts = accounts
        self._keys = {
            str(account["client_email"]): (
                public_pem(account["private_key"]),
                str(account.get("private_key_id", "")),
                project,
            )
            for project, account in accounts.items()
        }

    def api_caller(self, token: str) -> Identity:
        """Who calls the API, by a self-signed JWT or an access token of ours. TokenRefused."""
        claims = _unverified(token)
        if claims.get("iss") == self.issuer:
            return self._issued(token, API_AUDIENCE)
        identity, claims = self._self_signed(token)
        scopes = set(str(claims.get("scope", "")).split())
        if claims.get("aud") != API_AUDIENCE and not scopes & _SCOPES:
            raise TokenRefused("the token is for another audience")
        return identity

    def function_caller(self, token: str, audience: str) -> Identity:
        """Who calls a function, by an ID token of ours for exactly that URL, or gcloud's. TokenRefused."""
        return self._issued(token, audience, GCLOUD_AUDIENCE)

    def certificates(self) -> dict[str, str]:
        """The public keys that verify our tokens, by key ID (PEM)."""
        return {self._key_id: self._own_key.decode()}

    def grant(self, assertion: str) -> dict[str, Any]:
        """The token endpoint's answer: an ID token for a `target_audience`, else an access token."""
        identity, claims = self._self_signed(assertion)
        # google-auth names Google's own endpoint in assertions for ID tokens, whatever the token_uri
        if claims.get("aud") not in {f"{self.issuer}/token", _GOOGLE_ENDPOINT}:
            raise TokenRefused("the assertion is for another token endpoint")
        audience = claims.get("target_audience")
        if isinstance(audience, str) and audience:
            return {"id_token": self._sign(identity, audience)}
        return {
            "access_token": self._sign(identity, API_AUDIENCE),
            "expires_in": LIFETIME_S,
            "token_type": "Bearer",
        }

    def _sign(self, identity: Identity, audience: str) -> str:
        now = int(time.time())
        claims = {
            "iss": self.issuer, "aud": audience, "sub": identity.email, "email": identity.email,
            "email_verified": True, "iat": now, "exp": now + LIFETIME_S,
        }  # fmt: skip
        return str(jwt.encode(self._signer, claims).decode())

    def _issued(self, token: str, *audiences: str) -> Identity:
        claims = _verified(token, self._own_key, self._key_id, audiences)
        email = str(claims.get("email"))
        if claims.get("iss") != self.issuer or email not in self._keys:
            raise TokenRefused("the token was issued by or to somebody else")
        return Identity(email=email, project=self._keys[email][2])

    def _self_signed(self, token: str) -> tuple[Identity, Mapping[str, Any]]:
        email = str(_unverified(token).get("iss"))
        if email not in self._keys:
            raise TokenRefused("the token's issuer is not known")
        key, key_id, project = self._keys[email]
        claims = _verified(token, key, key_id, ())
        if claims.get("sub", email) != email or claims["exp"] - claims["iat"] > LIFETIME_S + _SKEW_S:
            raise TokenRefused("the token is for another subject, or lives too long")
        return Identity(email=email, project=project), claims


def new_private_key() -> str:
    """A fresh RSA key, PKCS8 PEM. Blocking, about 0.1 s."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return key.private_bytes(*form).decode()


def public_pem(private_key: str) -> bytes:
    """The public half of a private PEM key."""
    key = serialization.load_pem_private_key(private_key.encode(), password=None)
    return key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def bearer(header: str | None) -> str:
    """The token of an Authorization header; empty if it has none."""
    kind, _, token = (header or "").partition(" ")
    return token.strip() if kind.lower() == "bearer" else ""


def _unverified(token: str) -> Mapping[str, Any]:
    return _decode(token, None, "", ())


def _verified(token: str, key: bytes, key_id: str, audiences: Sequence[str]) -> Mapping[str, Any]:
    return _decode(token, key, key_id, audiences)


def _decode(token: str, key: bytes | None, key_id: str, audiences: Sequence[str]) -> Mapping[str, Any]:
    """The claims; with a `key`, after key ID, signature, times and audience (one of them; none: any)."""
    if not token or len(token) > _TOKEN_MAX_CHARS:
        raise TokenRefused("there is no token, or it is too long")
    try:
        header = jwt.decode_header(token)
        if header.get("alg") != "RS256":  # the caller does not choose how it is verified
            raise TokenRefused("the token is not signed with RS256")
        if key is not None and header.get("kid", key_id) != key_id:
            raise TokenRefused("the token names a key that is not its issuer's")
        claims = jwt.decode(
            token,
            certs=key,
            verify=key is not None,
            audience=list(audiences) or None,
            clock_skew_in_seconds=_SKEW_S,
        )
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError) as exc:
        # google-auth checks shapes only in part: of a hostile token it may raise any of these
        raise TokenRefused(_why(exc)) from exc
    if not isinstance(claims, Mapping):
        raise TokenRefused("the token has no claims")
    return claims


def _why(exc: Exception) -> str:
    """What is wrong with a token, without anything of it: google-auth's texts quote its claims."""
    text = str(exc)
    for mark, words in (
        ("Token expired", "the token has expired"),
        ("used too early", "the token is not valid yet: compare the clocks"),
        ("wrong audience", "the token is for another audience"),
        ("verify token signature", "the token is not signed by its issuer's key"),
    ):
        if mark in text:
            return words
    return "the token is malformed"
