"""The credentials that a daemon knows, as values: tokens, certificates, and who may sign others.

Above: `identity`, which holds calls against them, and `planning.auth`, which makes them from the configuration; below
`scopes`. Nothing here imports grpc. A token is never kept, only its hash: it is 256 bits from the system's random
source, so there is nothing to guess that a slow hash would protect, and SHA-256 costs a call a microsecond. Comparing
takes the same time whatever is compared.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from behestd.service.scopes import Caller

PREFIX = "behest_"
SECRET_BYTES = 32
ID_BYTES = 5
DIGEST_PREFIX = "sha256:"
TOKEN_ID = re.compile(r"[a-z2-7]{8}")
_TOKEN = re.compile(r"behest_([a-z2-7]{8})_([A-Za-z0-9_-]{43})")
_NO_DIGEST = bytes(hashlib.sha256().digest_size)


@dataclass(frozen=True, slots=True)
class Token:
    """A token that the operator gave out: its hash, and who shows it."""

    digest: bytes = field(repr=False)
    caller: Caller
    is_revoked: bool = False


class Signed(Protocol):
    """Knows callers by what others have signed."""

    def caller(self, token: str) -> Caller:
        """Say who shows a JSON Web Token. Raises Unauthenticated."""
        ...

    def knows(self, caller: Caller) -> bool:
        """Tell whether the key that signed for a caller is still trusted."""
        ...


@dataclass(frozen=True, slots=True)
class Credentials:
    """All credentials of a daemon."""

    tokens: Mapping[str, Token] = field(default_factory=dict)
    """By id."""
    certificates: Mapping[str, Caller] = field(default_factory=dict)
    """By the URI in the certificate's subject alternative name."""
    signed: Signed | None = None

    @property
    def is_empty(self) -> bool:
        """Tell whether there are none, which makes local mode possible."""
        return not self.tokens and not self.certificates and self.signed is None

    def token(self, text: str) -> Token | None:
        """Find the token of a text, None when there is none. Takes the same time for a wrong secret and a right one."""
        shape = _TOKEN.fullmatch(text)
        known = self.tokens.get(shape[1]) if shape is not None else None
        is_same = hmac.compare_digest(digest(text), known.digest if known is not None else _NO_DIGEST)
        return known if is_same else None


@dataclass(frozen=True, slots=True)
class NewToken:
    """A token that nobody has yet: the text is shown once and never again."""

    token_id: str
    text: str = field(repr=False)

    @property
    def stored(self) -> str:
        """What the configuration keeps of it."""
        return DIGEST_PREFIX + digest(self.text).hex()


def new_token() -> NewToken:
    """Draw a token."""
    token_id = base64.b32encode(secrets.token_bytes(ID_BYTES)).decode().lower()
    return NewToken(token_id, f"{PREFIX}{token_id}_{secrets.token_urlsafe(SECRET_BYTES)}")


def digest(text: str) -> bytes:
    """Return the SHA-256 of a token."""
    return hashlib.sha256(text.encode()).digest()
