"""Signed tokens (JWT) of one issuer: verified with its public keys, and read as callers.

Above: `credentials`, which holds one, and `planning.auth`, which makes it; below: the package PyJWT, loaded when the
configuration asks for it. Only asymmetric signatures count, so that what verifies a token cannot make one, and what a
token says of its own algorithm is held against the key. An expiry is required.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from behestd.errors import Unauthenticated, Unsupported
from behestd.service.identity import expired
from behestd.service.scopes import Caller

ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
MAX_BYTES = 8 * 1024
_PRINCIPAL = re.compile(r"[!-~]{1,128}")
_NAMESPACE = re.compile(r"[A-Za-z0-9_-]{1,64}")


class KeysUnusable(ValueError):
    """Raised when a JWK set cannot be read, or holds no key that counts."""


@dataclass(frozen=True, slots=True)
class Rules:
    """What a token must say, and where it says the rest."""

    issuer: str
    audience: str
    principal_claim: str = "sub"
    namespace_claim: str = ""
    namespace: str = "default"
    scopes_claim: str = "scope"
    grants: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """What each word of the scopes claim stands for. Words that are not here are passed over."""
    leeway_seconds: float = 0.0


class WebTokens:
    """Knows callers by signed tokens."""

    def __init__(self, rules: Rules, keys: str) -> None:
        """Read a JWK set. Raises KeysUnusable, and Unsupported when the extra is not installed."""
        self._rules = rules
        self._jwt = _load()
        try:
            found = self._jwt.PyJWKSet.from_json(keys).keys
        except (self._jwt.PyJWTError, ValueError, TypeError, AttributeError):
            raise KeysUnusable("it is no JWK set") from None
        self._keys = {key.key_id or "": key for key in found if key.algorithm_name in ALGORITHMS}
        if not self._keys:
            raise KeysUnusable("it holds no public key of an asymmetric algorithm")

    def caller(self, token: str) -> Caller:
        """Say who shows a token. Raises Unauthenticated."""
        if len(token) > MAX_BYTES:
            raise _invalid()
        try:
            key_id = str(self._jwt.get_unverified_header(token).get("kid", ""))
            key = self._keys.get(key_id)
            if key is None:
                raise _invalid()
            claims: Mapping[str, Any] = self._jwt.decode(
                token,
                key.key,
                algorithms=[key.algorithm_name],
                issuer=self._rules.issuer,
                audience=self._rules.audience,
                leeway=self._rules.leeway_seconds,
                options={"require": ["exp", "iss", "aud"]},
            )
        except self._jwt.ExpiredSignatureError:
            raise expired() from None
        except self._jwt.PyJWTError:
            raise _invalid() from None
        return self._read(claims, key_id)

    def knows(self, caller: Caller) -> bool:
        """Tell whether the key that signed for a caller is still trusted."""
        return caller.credential.removeprefix("jwt:") in self._keys

    def _read(self, claims: Mapping[str, Any], key_id: str) -> Caller:
        rules = self._rules
        principal = claims.get(rules.principal_claim)
        namespace = claims.get(rules.namespace_claim) if rules.namespace_claim else rules.namespace
        words = claims.get(rules.scopes_claim, ())
        if isinstance(words, str):
            words = words.split()
        if not (isinstance(principal, str) and _PRINCIPAL.fullmatch(principal)):
            raise _invalid()
        if not (isinstance(namespace, str) and _NAMESPACE.fullmatch(namespace)):
            raise _invalid()
        if not isinstance(words, list | tuple):
            raise _invalid()
        granted = [rules.grants[word] for word in words if isinstance(word, str) and word in rules.grants]
        expires_ns = int((float(claims["exp"]) + rules.leeway_seconds) * 1e9)
        return Caller(principal, namespace, frozenset().union(*granted), f"jwt:{key_id}", expires_ns)


def _invalid() -> Unauthenticated:
    return Unauthenticated("AUTH_CREDENTIAL_INVALID", "the token is not known")


def _load() -> Any:
    try:
        module = importlib.import_module("jwt")
        importlib.import_module("cryptography")
    except ImportError:
        raise Unsupported(
            "REQUEST_UNSUPPORTED",
            "signed tokens need the packages PyJWT and cryptography: pip install 'behestd[auth]'",
            feature="auth",
        ) from None
    return module
