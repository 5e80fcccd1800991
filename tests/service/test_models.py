"""The catalog of models over a real channel: lists, filters, pages, health."""

from __future__ import annotations

import pytest

from behest.errors import RunFailedError
from behest.v1.model_pb2 import ModelCapabilities, ModelHealthState
from behest.v1.model_service_pb2 import ListModelsRequest, ListProvidersRequest
from behestd.core.circuit import CircuitPolicy
from behestd.core.times import nanoseconds
from behestd.providers.catalog import snapshot
from behestd.providers.failure import ProviderFailure
from behestd.providers.scripted import Scripted
from tests.daemons import Served, refused, serve
from tests.service.edges import failure, metadata, reason

ALL = [f"scripted/{name}" for name in ("echo", "embed", "priced", "small", "text-only", "unpriced")]


async def test_models_are_listed_with_what_they_can_and_what_they_cost(served: Served) -> None:
    models = {model.id: model async for model in served.client.models.list()}
    assert list(models) == ALL
    assert models["scripted/echo"].is_default
    assert models["scripted/priced"].prices[0].output_micro_usd == 2_000_000
    assert models["scripted/echo"].limits.context_window_tokens == 1_000_000
    assert not models["scripted/text-only"].capabilities.tools
    assert {model.health.state for model in models.values()} == {ModelHealthState.MODEL_HEALTH_STATE_HEALTHY}


async def test_models_are_filtered_by_what_they_can_and_by_provider(served: Served) -> None:
    wanted = ListModelsRequest(capabilities=ModelCapabilities(embeddings=True))
    assert [model.id async for model in served.client.models.list(wanted)] == ["scripted/embed"]
    assert [model.id async for model in served.client.models.list(ListModelsRequest(provider_id="other"))] == []


async def test_models_come_in_pages(served: Served) -> None:
    first = await served.client.stubs.models.ListModels(ListModelsRequest(page_size=2))
    assert [model.id for model in first.models] == ALL[:2]
    found = [model.id async for model in served.client.models.list(ListModelsRequest(page_size=2))]
    assert found == ALL
    other = ListModelsRequest(page_token=first.next_page_token, provider_id="scripted")
    error = await failure(served.client.stubs.models.ListModels(other))
    assert (reason(error), metadata(error)["field"]) == ("REQUEST_PAGE_TOKEN_INVALID", "page_token")
    error = await failure(served.client.stubs.models.ListModels(ListModelsRequest(page_size=-1)))
    assert metadata(error)["field"] == "page_size"


async def test_a_model_is_found_by_id_by_alias_and_as_the_default() -> None:
    models = snapshot([Scripted()], aliases={"fast": "scripted/text-only"}, default_model="scripted/priced")
    async with serve(models=models) as served:
        assert (await served.client.models.get("scripted/echo")).id == "scripted/echo"
        assert (await served.client.models.get("fast")).id == "scripted/text-only"
        assert (await served.client.models.get("")).id == "scripted/priced"
        error = await refused(served.client.models.get("nobody/none"))
        assert (error.reason, error.metadata["model"]) == ("PROVIDER_MODEL_NOT_FOUND", "nobody/none")
        await refused(served.client.models.get("x" * 300))


async def test_providers_are_listed_by_id() -> None:
    async with serve(models=snapshot([Scripted("b"), Scripted("a")], default_model="a/echo")) as served:
        providers = [provider async for provider in served.client.models.providers()]
        assert [(provider.id, provider.adapter) for provider in providers] == [("a", "scripted"), ("b", "scripted")]
        page = await served.client.stubs.models.ListProviders(ListProvidersRequest(page_size=1))
        assert [provider.id for provider in page.providers] == ["a"]
        assert page.next_page_token


@pytest.mark.parametrize(("broken", "state"), [(["echo"], "DEGRADED"), ([name.split("/")[1] for name in ALL], "OPEN")])
async def test_an_open_circuit_shows_in_the_health_of_model_and_provider(broken: list[str], state: str) -> None:  # C020
    async with serve(circuits=CircuitPolicy(failures=1, cool_down_seconds=60.0)) as served:
        house, models = served.daemon.house, served.client.models
        begun_ns = house.clock.now_ns()
        for name in broken:
            failure = ProviderFailure("PROVIDER_TIMEOUT", "nothing came")
            house.endpoints.fail(f"scripted/{name}", failure, is_probe=False)
        model = await models.get("scripted/echo")
        assert model.health.state == ModelHealthState.MODEL_HEALTH_STATE_OPEN
        assert (model.health.reason, model.health.failures) == ("PROVIDER_TIMEOUT", 1)
        assert nanoseconds(model.health.retry_time) >= begun_ns + 60_000_000_000
        (provider,) = [provider async for provider in models.providers()]
        assert ModelHealthState.Name(provider.health.state) == f"MODEL_HEALTH_STATE_{state}"


async def test_a_model_that_fails_now_and_then_is_degraded_until_it_succeeds(served: Served) -> None:  # C020
    with pytest.raises(RunFailedError):
        await (await served.client.run("/fail UNAVAILABLE 1 /fail REQUEST_INVALID")).result()
    health = (await served.client.models.get("scripted/echo")).health
    assert health.state == ModelHealthState.MODEL_HEALTH_STATE_DEGRADED
    assert (health.reason, health.failures) == ("PROVIDER_UNAVAILABLE", 1)
    assert not health.HasField("success_time")
    assert (await served.client.daemon.status()).unhealthy_models == ["scripted/echo"]
    await (await served.client.run("hello")).result()
    health = (await served.client.models.get("scripted/echo")).health
    assert health.state == ModelHealthState.MODEL_HEALTH_STATE_HEALTHY
    assert (health.reason, health.failures) == ("", 0)
    assert health.HasField("success_time")
    assert not (await served.client.daemon.status()).unhealthy_models
