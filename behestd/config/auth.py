"""Sections of the configuration that tell who may come in: TLS, tokens, certificates, signed tokens, roles.

Above: `settings`, which puts all sections together; below: `kinds`. What they name, files and secrets, is read by
`planning.auth`.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Protocol, TypeVar

from annotated_types import Len
from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from behestd.config.kinds import Flag, Name, PublicRef, Seconds, SecretRef, Section
from behestd.service.scopes import ROLES, SCOPES


def _scope(text: str) -> str:
    if text not in SCOPES:
        raise ValueError(f"there is no such scope; there are {', '.join(sorted(SCOPES))}")
    return text


def _uri(text: str) -> str:
    if ":" not in text or not text.isascii() or not text.isprintable():
        raise ValueError("it must be a URI, as spiffe://example.org/ci")
    return text


def _text(value: Any) -> Any:
    return value.isoformat() if isinstance(value, datetime) else value


def _moment(text: str) -> str:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError("it is no time, as 2027-01-31T00:00:00Z") from None
    if moment.tzinfo is None or moment.year < 1970:
        raise ValueError("it has no time zone, or is before 1970; as 2027-01-31T00:00:00Z")
    return text


class _Granted(Protocol):
    @property
    def role(self) -> str: ...

    @property
    def scopes(self) -> tuple[str, ...]: ...


_Some = TypeVar("_Some", bound=_Granted)


def _may_something(section: _Some) -> _Some:
    if not section.role and not section.scopes:
        raise ValueError("neither role nor scopes says what it may do")
    return section


Scope = Annotated[str, AfterValidator(_scope)]
Principal = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._@:/+-]{0,127}$")]
Moment = Annotated[str, AfterValidator(_moment), BeforeValidator(_text)]


class ListenTls(Section):
    """TLS of every TCP address that the daemon listens on; Unix sockets stay plain. Version 1.2 at least."""

    certificate: PublicRef
    """The daemon's certificate, PEM, with those between it and its authority behind it."""
    key: SecretRef
    """The key of that certificate, PEM, without a password."""
    client_ca: PublicRef | None = None
    """Authorities of the certificates that every client must then show, PEM. Unset: clients show none."""


class Token(Section):
    """A bearer token, as `behestd token new` writes it. It may do what its role and its scopes say, together."""

    id: Annotated[str, Field(pattern=r"^[a-z2-7]{8}$")]
    """The part of the token behind its first underscore, by which logs and the audit name it."""
    hash: Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
    """SHA-256 of the token. The token itself is nowhere but with its owner."""
    principal: Principal
    """Who shows it: the name in the audit, and what quotas count by."""
    namespace: Name = "default"
    """The namespace that all it names is looked up in."""
    role: str = ""
    """A role: one of the daemon's own (reader, user, approver, operator, tool_server, admin) or of auth.roles."""
    scopes: tuple[Scope, ...] = ()
    """Scopes beside those of the role."""
    expires: Moment | None = None
    """When it ends, as 2027-01-31T00:00:00Z. Unset: never."""
    revoked: Flag = False
    """Whether it was taken back: its calls fail and its streams end with the reload."""

    _may_something = model_validator(mode="after")(_may_something)


class Certificate(Section):
    """A client certificate that stands for somebody. Needs server.tls.client_ca."""

    uri: Annotated[str, Len(1, 1024), AfterValidator(_uri)]
    """The URI in its subject alternative name, as spiffe://example.org/ci. The common name never counts."""
    principal: Principal
    """Who shows it: the name in the audit, and what quotas count by."""
    namespace: Name = "default"
    """The namespace that all it names is looked up in."""
    role: str = ""
    """A role: one of the daemon's own, or of auth.roles."""
    scopes: tuple[Scope, ...] = ()
    """Scopes beside those of the role."""

    _may_something = model_validator(mode="after")(_may_something)


class Jwt(Section):
    """Signed tokens (JWT) of one issuer, as OpenID Connect gives them out. Needs the extra auth."""

    issuer: Annotated[str, Len(1, 1024)]
    """What the claim iss must be."""
    audience: Annotated[str, Len(1, 1024)]
    """What the claim aud must hold."""
    keys: PublicRef
    """The issuer's public keys, a JWK set; a rotated one counts from the next reload on. Only asymmetric keys."""
    principal_claim: Annotated[str, Len(1, 256)] = "sub"
    """Claim that holds the principal."""
    namespace_claim: str = ""
    """Claim that holds the namespace. Empty: it is `namespace`."""
    namespace: Name = "default"
    """The namespace where no claim says one."""
    scopes_claim: Annotated[str, Len(1, 256)] = "scope"
    """Claim that holds scopes and names of roles, as a list or with spaces between; what is neither is passed over."""
    leeway_seconds: Seconds = 30.0
    """How far the issuer's clock may be off."""


class Auth(Section):
    """Who may call. With nothing in it and local addresses only, the daemon is in local mode: everybody may all."""

    tokens: Annotated[tuple[Token, ...], Len(0, 10_000)] = ()
    """Bearer tokens. A principal may have several, so that one can replace another."""
    tokens_file: PublicRef | None = None
    """Further [[auth.tokens]] in a file of their own, as file:/path or credential:NAME, at most 64 KiB. Unset: none."""
    certificates: Annotated[tuple[Certificate, ...], Len(0, 10_000)] = ()
    """Client certificates that stand for somebody."""
    jwt: Jwt | None = None
    """Signed tokens. Unset: none are taken."""
    roles: Mapping[Name, tuple[Scope, ...]] = Field(default_factory=dict)
    """Roles beside the daemon's own, with their scopes."""

    @property
    def is_empty(self) -> bool:
        """Tell whether no credential is configured. One that is revoked or has expired counts."""
        return not (self.tokens or self.tokens_file or self.certificates or self.jwt)

    @model_validator(mode="after")
    def _keeps_roles(self) -> Auth:
        own = sorted(ROLES.keys() & self.roles)
        if own:
            raise ValueError(f"the role {own[0]} is the daemon's own")
        return self


class TokensOnly(Section):
    """The part of [auth] that a file of tokens holds."""

    tokens: Annotated[tuple[Token, ...], Len(0, 10_000)] = ()
    """Bearer tokens."""


class TokensFile(Section):
    """The file of auth.tokens_file: what it holds could stand in the configuration as it is."""

    auth: TokensOnly = TokensOnly()
    """The section."""
