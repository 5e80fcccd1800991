"""Signed tokens (JWT): whose word counts, for how long, and that no trick with the algorithm makes one."""

from __future__ import annotations

import json
import time
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from behestd.errors import Unauthenticated
from behestd.service.call import Call
from behestd.service.credentials import Credentials
from behestd.service.identity import Identity
from behestd.service.scopes import ROLES, SCOPES
from behestd.service.web_tokens import KeysUnusable, Rules, WebTokens
from tests.auth.scenes import called
from tests.auth.test_transport import Secured
from tests.service import edges
from tests.service.edges import connect, failure, reason, serving

EC, OTHER = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
RULES = Rules(
    issuer="https://login.example.org",
    audience="behest",
    namespace_claim="org",
    grants={**{scope: frozenset({scope}) for scope in SCOPES}, **ROLES},
)


def jwk(key: Any, key_id: str, algorithm: str) -> dict[str, Any]:
    """The public half of a key, as an issuer publishes it."""
    kind = jwt.algorithms.RSAAlgorithm if isinstance(key, rsa.RSAPrivateKey) else jwt.algorithms.ECAlgorithm
    return {**json.loads(kind.to_jwk(key.public_key())), "kid": key_id, "alg": algorithm, "use": "sig"}


def keys(*found: dict[str, Any]) -> str:
    """A JWK set."""
    return json.dumps({"keys": found})


EC_KEY, RSA_KEY = jwk(EC, "ec-1", "ES256"), jwk(RSA, "rsa-1", "RS256")
KEYS = keys(EC_KEY, RSA_KEY)


def claims(**other: Any) -> dict[str, Any]:
    """What a good token says; None leaves a claim out."""
    good = {
        "iss": "https://login.example.org",
        "aud": ["behest", "others"],
        "sub": "ann",
        "org": "acme",
        "exp": int(time.time()) + 3600,
        "scope": "openid runs:read tool_server",
    }
    return {key: value for key, value in {**good, **other}.items() if value is not None}


def signed(key: Any = EC, key_id: str | None = "ec-1", algorithm: str = "ES256", **other: Any) -> str:
    """Sign a token."""
    return jwt.encode(claims(**other), key, algorithm=algorithm, headers={"kid": key_id} if key_id else None)


def refusal(token: str, known: WebTokens | None = None) -> str:
    """Show a token that is refused, and return the reason."""
    with pytest.raises(Unauthenticated) as caught:
        (known or WebTokens(RULES, KEYS)).caller(token)
    return caught.value.reason


def test_an_issuers_word_says_who_calls_where_and_what_they_may() -> None:  # C139
    caller = WebTokens(RULES, KEYS).caller(signed())
    assert (caller.principal, caller.namespace, caller.credential) == ("ann", "acme", "jwt:ec-1")
    assert caller.scopes == {"runs:read"} | ROLES["tool_server"]
    assert caller.expires_ns > time.time_ns()
    listed = WebTokens(RULES, KEYS).caller(signed(RSA, "rsa-1", "RS256", scope=["runs:create", "profile", 7]))
    assert listed.scopes == {"runs:create"}


@pytest.mark.parametrize(
    "other",
    [
        {"iss": "https://elsewhere.example.org"},
        {"iss": None},
        {"aud": "others"},
        {"aud": None},
        {"exp": None},
        {"exp": "soon"},
        {"nbf": 32_503_680_000},
        {"sub": None},
        {"sub": ""},
        {"sub": "a b"},
        {"sub": "a\nb"},
        {"sub": 7},
        {"org": None},
        {"org": "../other"},
        {"scope": 7},
    ],
    ids=repr,
)
def test_a_token_that_does_not_say_all_that_it_must_is_not_known(other: dict[str, Any]) -> None:
    assert refusal(signed(**other)) == "AUTH_CREDENTIAL_INVALID"


def test_a_token_of_yesterday_has_expired() -> None:
    assert refusal(signed(exp=int(time.time()) - 3600)) == "AUTH_CREDENTIAL_EXPIRED"


def test_only_the_issuers_keys_sign_and_only_by_their_own_algorithm() -> None:
    header, payload, signature = signed().split(".")
    tricks = [
        signed(OTHER),
        signed(key_id="ec-2"),
        signed(key_id=None),
        signed(RSA, "rsa-1", "PS256"),
        signed(RSA, "ec-1", "RS256"),
        jwt.encode(claims(), None, algorithm="none", headers={"kid": "ec-1"}),
        jwt.encode(claims(), EC_KEY["x"] * 2, algorithm="HS256", headers={"kid": "ec-1"}),
        f"{header}.{payload}.",
        f"{header}.{payload}",
        f"{header}.{signed(sub='root').split('.')[1]}.{signature}",
        "a.b.c",
        f"{header}.{'A' * 9000}.{signature}",
    ]
    assert {refusal(trick) for trick in tricks} == {"AUTH_CREDENTIAL_INVALID"}


@pytest.mark.parametrize(
    "text",
    ["", "{}", "[]", "7", '{"keys": []}', '{"keys": [{"kty": "oct", "k": "c2VjcmV0", "alg": "HS256"}]}'],
)
def test_a_set_without_public_keys_is_refused(text: str) -> None:
    with pytest.raises(KeysUnusable):
        WebTokens(RULES, text)


async def who(request: Any, call: Call) -> bytes:
    """Say who calls."""
    return call.caller.principal.encode()


async def test_a_rotated_key_counts_from_the_reload_on_and_the_old_one_no_more() -> None:  # C135, C139
    before = Credentials(signed=WebTokens(RULES, keys(EC_KEY)))
    after = Credentials(signed=WebTokens(RULES, keys(RSA_KEY)))
    old, new = ((("authorization", f"Bearer {token}"),) for token in (signed(), signed(RSA, "rsa-1", "RS256")))
    async with serving({edges.GET: who}, credentials=before) as edge, connect(edge) as channel:
        method = channel.unary_unary(edges.GET)
        assert await method(b"", metadata=old) == b"ann"
        caller = WebTokens(RULES, KEYS).caller(signed())
        assert edge.identity.is_valid(caller)
        edge.entrance.prepare(Secured(after))()
        assert await method(b"", metadata=new) == b"ann"
        assert reason(await failure(called(channel, edges.GET, old))) == "AUTH_CREDENTIAL_INVALID"
        assert not edge.identity.is_valid(caller)


def test_a_signed_caller_is_valid_until_its_token_ends() -> None:
    known = WebTokens(RULES, KEYS)
    caller = known.caller(signed())
    now = [time.time_ns()]
    identity = Identity(Credentials(signed=known), is_local=False, now_ns=lambda: now[0])
    assert identity.is_valid(caller)
    now[0] = caller.expires_ns
    assert not identity.is_valid(caller)
