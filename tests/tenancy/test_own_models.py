"""Models of registered servers are those of the namespace that they were registered in, with all that is learned."""

from __future__ import annotations

import pytest

from behest.v1 import model_service_pb2 as models
from behest.v1 import registry_service_pb2 as registry
from behest.v1.model_pb2 import Model, ModelCapabilities
from behestd.core.circuit import CircuitPolicy
from behestd.providers.catalog import Catalog, ProviderNotFound, ProviderTaken, place, snapshot
from behestd.providers.failure import ProviderFailure
from behestd.providers.scripted import Scripted
from behestd.runtime.calibration import Calibration
from behestd.runtime.health import Endpoints
from behestd.runtime.model_limits import Allowance
from behestd.service.scopes import Caller
from tests.routing.test_circuit import HandClock
from tests.tenancy.callers import TENANT, Tenant, serving

DOWN = ProviderFailure("PROVIDER_UNAVAILABLE", "as the test said")
ATTACH = "/behest.v1.RegistryService/AttachServer"


def catalog() -> Catalog:
    """A catalog of the scripted provider."""
    return Catalog(snapshot([Scripted()], default_model="scripted/echo"))


def test_a_namespace_sees_its_own_providers_and_everybodys() -> None:  # S5
    held = catalog()
    first, second = Scripted("own"), Scripted("own")
    held.register(first, namespace="alpha")
    held.register(second, namespace="bravo")
    assert held.of("alpha").provider("own") is first
    assert held.of("bravo").provider("own") is second
    for stranger in (held.of("delta"), held.current):
        with pytest.raises(ProviderNotFound):
            stranger.provider("own")
    assert held.of("delta") is held.current
    assert held.of("alpha").models["own/echo"].namespace == "alpha"
    assert held.of("alpha").models["scripted/echo"].namespace == ""
    assert held.remove("own", namespace="alpha") == (first,)
    assert held.of("alpha") is held.current
    assert held.of("bravo").provider("own") is second


def test_a_reload_keeps_what_is_registered_and_its_own_names_go_first() -> None:
    held = catalog()
    own, everybodys = Scripted("own"), Scripted("own")
    held.register(own, namespace="alpha")
    with pytest.raises(ProviderTaken):
        held.register(Scripted("scripted"), namespace="alpha")
    held.swap(snapshot([Scripted(), everybodys], default_model="scripted/echo"))
    assert held.of("alpha").provider("own") is everybodys
    assert held.registered("own", "alpha") is own
    held.swap(snapshot([Scripted()], default_model="scripted/echo"))
    assert held.of("alpha").provider("own") is own


async def test_the_health_of_a_model_of_one_namespace_says_nothing_of_its_namesake() -> None:
    endpoints = Endpoints(HandClock(), CircuitPolicy(failures=1, cool_down_seconds=60.0))
    with pytest.raises(ProviderFailure):
        async with endpoints.attempt(place("alpha", "own/m"), 2**62, is_retry=False, tokens=0):
            raise DOWN
    assert "own/m" in endpoints.health("alpha").open_until_ns
    assert endpoints.health("bravo") == endpoints.health("") == type(endpoints.health(""))()
    async with endpoints.attempt(place("bravo", "own/m"), 2**62, is_retry=False, tokens=0):
        pass
    with pytest.raises(ProviderFailure):
        async with endpoints.attempt("scripted/echo", 2**62, is_retry=False, tokens=0):
            raise DOWN
    assert endpoints.health("alpha").open_until_ns.keys() == {"own/m", "scripted/echo"}
    assert endpoints.health("bravo").open_until_ns.keys() == {"scripted/echo"}


async def test_the_operators_limits_hold_in_each_namespace_apart() -> None:
    endpoints = Endpoints(HandClock(), None, {"own/m": Allowance(calls=1, wait_seconds=0)})
    async with endpoints.attempt(place("alpha", "own/m"), 2**62, is_retry=False, tokens=0):
        with pytest.raises(ProviderFailure):
            async with endpoints.attempt(place("alpha", "own/m"), 2**62, is_retry=False, tokens=0):
                pass
        async with endpoints.attempt(place("bravo", "own/m"), 2**62, is_retry=False, tokens=0):
            pass


def test_what_a_model_really_counts_is_learned_for_its_namespace() -> None:
    calibration = Calibration()
    for _ in range(8):
        calibration.note(place("alpha", "own/m"), 1_000, 4_000)
    assert calibration.ratios("alpha")["own/m"] == 4_000
    assert "own/m" not in calibration.ratios("bravo")


async def _attach(tenant: Tenant, shown: str) -> None:
    model = Model(id="m", display_name=shown, capabilities=ModelCapabilities(chat=True))
    hello = registry.AttachHello(server_name="own", models=[model])
    await tenant.one(ATTACH, registry.AttachServerRequest(hello=hello))


async def test_two_namespaces_have_servers_and_models_of_the_same_name() -> None:  # S5
    callers = [Caller(name, name, TENANT) for name in ("alpha", "bravo", "delta")]
    async with serving(callers) as (served, (alpha, bravo, delta)):
        await _attach(alpha, "of alpha")
        await _attach(bravo, "of bravo")
        asked = models.GetModelRequest(model="own/m")
        for tenant, shown in ((alpha, "of alpha"), (bravo, "of bravo")):
            found = await tenant.one("/behest.v1.ModelService/GetModel", asked)
            assert found.model.display_name == shown
        outcome = await delta.call("/behest.v1.ModelService/GetModel", asked)
        assert outcome.reason == "PROVIDER_MODEL_NOT_FOUND"
        listed = await delta.one("/behest.v1.ModelService/ListProviders", models.ListProvidersRequest())
        assert [provider.id for provider in listed.providers] == ["scripted"]
        assert "own" not in served.daemon.house.models.current.providers
