"""Makes credentials and TLS from the configuration, and says whether it means local mode.

Above: `plan`, and `behestd check-config`. Below: `service.credentials`, `service.tls` and `service.web_tokens`. What
names a file is read here, at the start and again at each reload; nothing that is read is repeated in an error.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from datetime import datetime

from pydantic import ValidationError

from behestd.config import auth as config
from behestd.config.settings import Settings
from behestd.config.source import ConfigInvalid, Configuration, Key, Problem, dotted
from behestd.core.times import SECOND
from behestd.errors import Unsupported
from behestd.secret import Reference, SecretUnusable
from behestd.service import listen, peer_certificate
from behestd.service.credentials import DIGEST_PREFIX, Credentials, Token
from behestd.service.scopes import ROLES, SCOPES, Caller
from behestd.service.tls import Tls, TlsUnusable
from behestd.service.tls import check as check_pair
from behestd.service.web_tokens import KeysUnusable, Rules, WebTokens

AUTH: Key = ("auth",)
TLS: Key = ("server", "tls")
Place = tuple[str | int, ...]
Roles = Mapping[str, frozenset[str]]


def credentials(configuration: Configuration) -> Credentials:
    """Make all credentials. Raises ConfigInvalid."""
    section = configuration.settings.auth
    roles: Roles = {**ROLES, **{name: frozenset(scopes) for name, scopes in section.roles.items()}}
    tokens: list[tuple[Place, config.Token]] = [
        ((*AUTH, "tokens", index), token) for index, token in enumerate(section.tokens)
    ]
    if section.tokens_file is not None:
        tokens += [((*AUTH, "tokens_file"), token) for token in _tokens_file(configuration, section.tokens_file)]
    return Credentials(
        tokens=_tokens(configuration, tokens, roles),
        certificates=_certificates(configuration, roles),
        signed=_signed(configuration, roles),
    )


def tls(configuration: Configuration) -> Tls | None:
    """Read certificate, key and client authorities, and check that they fit. Raises ConfigInvalid."""
    section = configuration.settings.server.tls
    if section is None:
        return None
    material = Tls(
        *(
            _read(configuration, (*TLS, name), reference).encode() if reference is not None else b""
            for name, reference in (
                ("certificate", section.certificate),
                ("key", section.key),
                ("client_ca", section.client_ca),
            )
        )
    )
    try:
        check_pair(material)
    except TlsUnusable as error:
        raise _invalid(configuration, (*TLS, error.field), str(error)) from None
    return material


def check(configuration: Configuration) -> None:
    """See that all of it can be used. Raises ConfigInvalid."""
    credentials(configuration)
    tls(configuration)


def is_local(settings: Settings) -> bool:
    """Tell whether settings mean local mode: every address is of this machine, and no credential is configured."""
    return settings.auth.is_empty and all(listen.parse(text).is_local for text in settings.server.addresses)


def _tokens_file(configuration: Configuration, reference: Reference) -> tuple[config.Token, ...]:
    key = (*AUTH, "tokens_file")
    try:
        found = config.TokensFile.model_validate(tomllib.loads(_read(configuration, key, reference))).auth.tokens
    except tomllib.TOMLDecodeError as error:
        raise _invalid(configuration, key, f"{reference} is no TOML: {error}") from None
    except ValidationError as error:
        details = error.errors(include_url=False, include_input=False)[0]
        raise _invalid(configuration, key, f"{reference}: {dotted(details['loc'])}: {details['msg']}") from None
    if not found:
        raise _invalid(configuration, key, f"{reference} holds no tokens: revoke them, or leave tokens_file out")
    return found


def _tokens(
    configuration: Configuration, found: Iterable[tuple[Place, config.Token]], roles: Roles
) -> dict[str, Token]:
    tokens: dict[str, Token] = {}
    for key, source in found:
        if source.id in tokens:
            raise _invalid(configuration, key, f"there are two tokens with the id {source.id}")
        caller = Caller(
            source.principal,
            source.namespace,
            _scopes(configuration, key, source, roles),
            f"token:{source.id}",
            _nanoseconds(source.expires),
        )
        digest = bytes.fromhex(source.hash.removeprefix(DIGEST_PREFIX))
        tokens[source.id] = Token(digest, caller, is_revoked=source.revoked)
    return tokens


def _certificates(configuration: Configuration, roles: Roles) -> dict[str, Caller]:
    settings = configuration.settings
    key = (*AUTH, "certificates")
    found: dict[str, Caller] = {}
    for source in settings.auth.certificates:
        if source.uri in found:
            raise _invalid(configuration, key, f"there are two certificates with the URI {source.uri}")
        scopes = _scopes(configuration, key, source, roles)
        found[source.uri] = Caller(source.principal, source.namespace, scopes, f"certificate:{source.uri}")
    if found:
        if settings.server.tls is None or settings.server.tls.client_ca is None:
            raise _invalid(configuration, key, "client certificates need server.tls.client_ca, which verifies them")
        try:
            peer_certificate.check_installed()
        except Unsupported as error:
            raise _invalid(configuration, key, error.message) from None
    return found


def _signed(configuration: Configuration, roles: Roles) -> WebTokens | None:
    source = configuration.settings.auth.jwt
    if source is None:
        return None
    key = (*AUTH, "jwt")
    rules = Rules(
        issuer=source.issuer,
        audience=source.audience,
        principal_claim=source.principal_claim,
        namespace_claim=source.namespace_claim,
        namespace=source.namespace,
        scopes_claim=source.scopes_claim,
        grants={**{scope: frozenset({scope}) for scope in SCOPES}, **roles},
        leeway_seconds=source.leeway_seconds,
    )
    keys = _read(configuration, (*key, "keys"), source.keys)
    try:
        return WebTokens(rules, keys)
    except KeysUnusable as error:
        raise _invalid(configuration, (*key, "keys"), f"{source.keys}: {error}") from None
    except Unsupported as error:
        raise _invalid(configuration, key, error.message) from None


def _scopes(
    configuration: Configuration, key: Place, source: config.Token | config.Certificate, roles: Roles
) -> frozenset[str]:
    if source.role and source.role not in roles:
        known = ", ".join(sorted(roles))
        raise _invalid(configuration, key, f"there is no role {source.role}; there are {known}")
    return roles.get(source.role, frozenset()) | frozenset(source.scopes)


def _nanoseconds(moment: str | None) -> int:
    return 0 if moment is None else int(datetime.fromisoformat(moment).timestamp()) * SECOND


def _read(configuration: Configuration, key: Place, reference: Reference) -> str:
    try:
        return configuration.vault.read(reference).reveal()
    except SecretUnusable as error:
        raise _invalid(configuration, key, str(error.args[0])) from None


def _invalid(configuration: Configuration, key: Place, text: str) -> ConfigInvalid:
    source = configuration.source(tuple(str(name) for name in key))
    return ConfigInvalid([Problem(source, dotted(key), text)])
