"""Who may call what: every method with every scope alone and with every role, over a real channel."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
import pytest_asyncio

import behest.v1
from behestd.service.call import Call, Requests
from behestd.service.scopes import ADMIN, ANY_CALLER, ROLES, RULES, SCOPES
from tests.auth.scenes import Guest, called, guest, knowing
from tests.service.edges import connect, failure, metadata, reason, serving

NOBODY = "nothing"
GUESTS: dict[str, Guest] = {
    **{scope: guest(scope) for scope in sorted(SCOPES)},
    **{f"role {role}": guest(*scopes) for role, scopes in ROLES.items()},
    NOBODY: guest(),
}
# The scopes that the contract's own words give each service: the table may say no other.
FAMILIES = {
    "RunService": {"runs:create", "runs:read", "runs:cancel"},
    "EventService": {"runs:read"},
    "ApprovalService": {"runs:read", "runs:approve"},
    "ToolCallService": {"runs:read", "runs:approve"},
    "SessionService": {"sessions:read", "sessions:write"},
    "SessionDataService": {"data:read", "data:write"},
    "AgentService": {"agents:read", "agents:write"},
    "ReasoningService": {"agents:read", "agents:write"},
    "ChatService": {"models:use"},
    "EmbeddingService": {"models:use"},
    "ArtifactService": {"data:read", "data:write"},
    "UsageService": {"usage:read"},
    "RegistryService": {"tools:register"},
    "DaemonService": {ADMIN},
    "AuditService": {ADMIN},
}
FREE = {
    *("GetServerInfo", "ListProviders", "ListModels", "GetModel", "ListTools", "GetTool", "ListContextSources"),
    *("ListOperators", "ListStrategies", "MakeGraph"),
}
"""What every known caller may ask: no data of anybody's."""


def contract() -> list[str]:
    """The full name of each method of the contract."""
    names = []
    for module in pkgutil.iter_modules(behest.v1.__path__):
        if module.name.endswith("_service_pb2"):
            file = importlib.import_module(f"behest.v1.{module.name}").DESCRIPTOR
            for service in file.services_by_name.values():
                names += [f"/{service.full_name}/{method.name}" for method in service.methods]
    return sorted(names)


async def passed(request: Any, call: Call) -> bytes:
    """Read what whoever came so far has to say."""
    if isinstance(request, Requests):
        async for _ in request:
            pass
    return b""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def channel() -> AsyncIterator[grpc.aio.Channel]:
    """A channel to an edge that serves every method of the contract, and knows every guest."""
    served = serving(dict.fromkeys(contract(), passed), credentials=knowing(*GUESTS.values()))
    async with served as edge, connect(edge) as opened:
        yield opened


def test_every_method_of_the_contract_has_a_row() -> None:  # S4
    assert sorted(name for name in RULES if name.startswith("/behest.")) == contract()


def test_the_table_gives_each_service_the_scopes_of_its_family() -> None:  # S4, S15
    for name in contract():
        service, method = name.removeprefix("/behest.v1.").split("/")
        scope = RULES[name].scope
        if method in FREE:
            assert scope == ANY_CALLER, name
        else:
            assert scope in FAMILIES.get(service, SCOPES - {ADMIN}), name


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("name", contract())
async def test_each_scope_and_role_opens_what_the_table_says_and_nothing_else(  # C140, S4, S15
    name: str, channel: grpc.aio.Channel
) -> None:
    scope = RULES[name].scope
    assert scope is not None
    for who, caller in GUESTS.items():
        error = await failure(called(channel, name, caller.metadata))
        held = caller.token.caller.scopes
        if scope == ANY_CALLER or scope in held or ADMIN in held:
            # Behind the door: the request cannot be read, and who may come in is told so.
            assert reason(error) == "REQUEST_MALFORMED", who
        else:
            assert (error.code(), reason(error)) == (grpc.StatusCode.PERMISSION_DENIED, "AUTH_SCOPE_MISSING"), who
            assert metadata(error) == {"scope": scope}
    unknown = await failure(called(channel, name))
    assert (unknown.code(), reason(unknown)) == (grpc.StatusCode.UNAUTHENTICATED, "AUTH_REQUIRED")


def test_roles_hold_scopes_that_exist_and_only_admin_holds_admin() -> None:  # S4
    assert set().union(*ROLES.values()) <= SCOPES
    assert [role for role, scopes in ROLES.items() if ADMIN in scopes] == ["admin"]
    assert "runs:approve" not in ROLES["user"]
