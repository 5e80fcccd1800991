"""Who calls: the one place that looks at the credentials of a call.

Above: `methods`, which asks for each call, and `open_calls`, which asks again for those that stay open; below
`credentials` and `peer_certificate`. A bearer token comes in the metadata `authorization` and from nowhere else; it
goes before the certificate of the connection. In local mode every caller is the same. What is in force is swapped
whole by a reload, so that a revoked credential fails with the next call.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from behestd.errors import BehestError, Forbidden, Unauthenticated
from behestd.service import peer_certificate
from behestd.service.scopes import ANY_CALLER, LOCAL, Caller

if TYPE_CHECKING:
    import grpc

    from behestd.service.credentials import Credentials

    Context = grpc.aio.ServicerContext[Any, Any]

AUTHORIZATION = "authorization"
SCHEME = "bearer"


class Identity:
    """Knows callers by their credentials."""

    def __init__(self, credentials: Credentials, *, is_local: bool, now_ns: Callable[[], int] = time.time_ns) -> None:
        self.credentials = credentials
        self.is_local = is_local
        self._now_ns = now_ns

    def authenticate(self, context: Context) -> Caller:
        """Say who calls. Raises Unauthenticated."""
        if self.is_local:
            return LOCAL
        bearer = _bearer(context)
        if bearer:
            return self._shown(bearer)
        if self.credentials.certificates and (found := self._certified(context)) is not None:
            return found
        raise Unauthenticated("AUTH_REQUIRED", "a credential is required: a bearer token, or a known certificate")

    def why_not(self, caller: Caller, scope: str = ANY_CALLER) -> BehestError | None:
        """Say why a caller that was known may go on no longer, None when it may."""
        if caller.expires_ns and caller.expires_ns <= self._now_ns():
            return expired()
        kind, _, name = caller.credential.partition(":")
        known: Caller | None = None
        if not kind:
            known = LOCAL if self.is_local and caller is LOCAL else None
        elif kind == "token":
            token = self.credentials.tokens.get(name)
            known = token.caller if token is not None and not token.is_revoked else None
        elif kind == "certificate":
            known = self.credentials.certificates.get(name)
        elif self.credentials.signed is not None and self.credentials.signed.knows(caller):
            known = caller
        if known is None or (known.principal, known.namespace) != (caller.principal, caller.namespace):
            return revoked()
        if known.expires_ns and known.expires_ns <= self._now_ns():
            return expired()
        if not known.has(scope):
            return Forbidden("AUTH_SCOPE_MISSING", f"this needs the scope {scope}", scope=scope)
        return None

    def is_valid(self, caller: Caller) -> bool:
        """Tell whether a caller that was known before would still be known."""
        return self.why_not(caller) is None

    def replace(self, credentials: Credentials) -> None:
        """Know other credentials from now on."""
        self.credentials = credentials

    def _shown(self, bearer: str) -> Caller:
        token = self.credentials.token(bearer)
        if token is not None:
            if token.is_revoked:
                raise revoked()
            caller = token.caller
        elif self.credentials.signed is not None:
            caller = self.credentials.signed.caller(bearer)
        else:
            raise Unauthenticated("AUTH_CREDENTIAL_INVALID", "the token is not known")
        if caller.expires_ns and caller.expires_ns <= self._now_ns():
            raise expired()
        return caller

    def _certified(self, context: Context) -> Caller | None:
        """Find the caller of the connection's certificate, which the transport has verified. None: it is nobody's."""
        seen = peer_certificate.of(context.auth_context())
        if seen is None:
            return None
        known = [self.credentials.certificates[uri] for uri in seen.uris if uri in self.credentials.certificates]
        if len(known) != 1:
            return None
        if seen.expires_ns <= self._now_ns():
            raise expired()
        (caller,) = known
        return Caller(caller.principal, caller.namespace, caller.scopes, caller.credential, seen.expires_ns)


def revoked() -> Unauthenticated:
    """Make the error of a credential that was taken back."""
    return Unauthenticated("AUTH_CREDENTIAL_REVOKED", "the credential was revoked")


def expired() -> Unauthenticated:
    """Make the error of a credential whose time is over."""
    return Unauthenticated("AUTH_CREDENTIAL_EXPIRED", "the credential has expired")


def _bearer(context: Context) -> str:
    """Return the bearer token of a call, empty when it brings none. Raises Unauthenticated for what is none."""
    values = [value for key, value in context.invocation_metadata() or () if key == AUTHORIZATION]
    if not values:
        return ""
    scheme, _, token = str(values[0]).partition(" ")
    if len(values) > 1 or scheme.lower() != SCHEME or not token:
        raise Unauthenticated("AUTH_CREDENTIAL_INVALID", "authorization holds one bearer token, or is left out")
    return token
