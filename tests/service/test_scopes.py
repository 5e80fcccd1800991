"""Who may call what: each method of the contract has its row, and who lacks its scope is refused before all else."""

import importlib
import pkgutil
from typing import Any

import grpc
import pytest

import behest.v1
from behestd.errors import Forbidden, Unauthenticated
from behestd.service import methods
from behestd.service.admission import Admission
from behestd.service.call import Call
from behestd.service.scopes import ADMIN, ANY_CALLER, LOCAL, RULES, Caller, Load, authorise
from tests.service import edges
from tests.service.edges import connect, failure, metadata, reason, serving

SCOPES = {
    *("runs:create", "runs:read", "runs:cancel", "runs:approve", "sessions:read", "sessions:write"),
    *("agents:read", "agents:write", "models:use", "data:read", "data:write", "usage:read", "tools:register", ADMIN),
}


def contract() -> set[str]:
    """The full name of each method of the contract."""
    names = set()
    for module in pkgutil.iter_modules(behest.v1.__path__):
        if module.name.endswith("_service_pb2"):
            file = importlib.import_module(f"behest.v1.{module.name}").DESCRIPTOR
            for service in file.services_by_name.values():
                names |= {f"/{service.full_name}/{method.name}" for method in service.methods}
    return names


async def answer(request: Any, call: Call) -> bytes:
    """Do as asked."""
    return b""


def test_every_method_of_the_contract_has_a_row_and_every_row_a_method() -> None:
    assert {name for name in RULES if name.startswith("/behest.")} == contract()


def test_every_row_names_a_scope_that_exists_and_at_least_one_class() -> None:
    named = {rule.scope for rule in RULES.values()}
    assert named - {None, ANY_CALLER} == SCOPES
    assert all(rule.loads for rule in RULES.values())


def test_only_health_may_be_asked_without_a_credential() -> None:
    public = {name.split("/")[1] for name, rule in RULES.items() if rule.scope is None}
    assert public == {"grpc.health.v1.Health"}


@pytest.mark.parametrize("scope", sorted(SCOPES))
def test_a_scope_opens_itself_and_admin_opens_all(scope: str) -> None:
    authorise(Caller("p", "n", frozenset({scope})), scope)
    authorise(LOCAL, scope)
    authorise(Caller("p", "n", frozenset()), ANY_CALLER)
    with pytest.raises(Forbidden):
        authorise(Caller("p", "n", frozenset(SCOPES - {scope, ADMIN})), scope)


@pytest.mark.parametrize("name", sorted(contract()))
async def test_a_caller_without_scopes_gets_no_further_than_the_door(name: str) -> None:
    def stranger(context: Any) -> Caller:
        return Caller("stranger", "default", frozenset())

    async with serving({name: answer}, authenticate=stranger) as edge, connect(edge) as channel:
        descriptor = methods.describe(name)
        kind = f"{'stream' if descriptor.client_streaming else 'unary'}_"
        kind += "stream" if descriptor.server_streaming else "unary"
        request = iter([b"\xff"]) if descriptor.client_streaming else b"\xff"
        call = getattr(channel, kind)(name)(request)
        error = await failure(edges.drain(call) if descriptor.server_streaming else call)
    # The request cannot be decoded: whoever may come in is told so, and nobody else.
    if RULES[name].scope == ANY_CALLER:
        assert reason(error) == "REQUEST_MALFORMED"
    else:
        assert (error.code(), reason(error)) == (grpc.StatusCode.PERMISSION_DENIED, "AUTH_SCOPE_MISSING")
        assert metadata(error) == {"scope": RULES[name].scope}


async def test_who_cannot_say_who_it_is_gets_nowhere_but_to_health() -> None:
    def unknown(context: Any) -> Caller:
        raise Unauthenticated("AUTH_REQUIRED", "a credential is required")

    async with serving({edges.INFO: answer}, authenticate=unknown) as edge, connect(edge) as channel:
        error = await failure(channel.unary_unary(edges.INFO)(b""))
        assert (error.code(), reason(error)) == (grpc.StatusCode.UNAUTHENTICATED, "AUTH_REQUIRED")
        assert await channel.unary_unary("/grpc.health.v1.Health/Check")(b"")


def test_control_and_what_continues_a_run_cannot_be_bounded() -> None:
    for load in (Load.CONTROL, Load.CONTINUE):
        with pytest.raises(ValueError, match="never refused"):
            Admission({load: 1})


def test_a_refused_call_takes_no_place_in_any_class() -> None:
    admission = Admission({Load.WATCH: 0})
    with pytest.raises(Exception, match="limit of 0"):
        admission.enter((Load.CREATE, Load.WATCH), LOCAL)
    assert set(admission.statistics().in_flight.values()) == {0}
