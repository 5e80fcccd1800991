"""Which models a run may use: names, aliases with weights, fallbacks, and what a model can do."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from behest.v1.agent_pb2 import Agent
from behest.v1.chat_pb2 import ResponseFormat, ResponseFormatKind
from behest.v1.message_pb2 import ImagePart, Part, TextPart
from behest.v1.model_pb2 import ModelCapabilities
from behestd.core.route import RoutePolicy
from behestd.errors import BehestError
from behestd.providers.catalog import CapabilityMissing, Snapshot, Weighted, snapshot
from behestd.providers.scripted import Scripted
from tests import daemons
from tests.daemons import refused, writes
from tests.routing.vendor import DOWN, vendor
from tests.runs.scenes import PURE, events_of, kinds, only, put_agent, tools

QUICK = RoutePolicy((), base_seconds=0.001)
TALKS = ModelCapabilities(chat=True, streaming=True)
PICTURE = Part(image=ImagePart(media_type="image/png", data=b"\x89PNG"))
OBJECT = ResponseFormat(kind=ResponseFormatKind.RESPONSE_FORMAT_KIND_JSON_OBJECT)


def look_up(key: str) -> str:
    """Look a thing up."""
    return key


# --- the catalog ---


def catalogued(**fields: Any) -> Snapshot:
    return snapshot([Scripted("a"), Scripted("b")], default_model="a/echo", **fields)


def chosen(models: Snapshot, name: str, needs: tuple[str, ...] = ("chat",), steps: int = 100) -> Counter[str]:
    return Counter(models.choose(name, needs, step / steps).model.id for step in range(steps))


def test_an_alias_of_several_models_is_chosen_from_by_weight() -> None:
    models = catalogued(aliases={"fast": [Weighted("a/echo", 3), Weighted("b/echo", 1)]})
    assert chosen(models, "fast") == {"a/echo": 75, "b/echo": 25}
    assert models.resolve("fast").model.id == "a/echo"
    assert chosen(models, "b/echo") == {"b/echo": 100}


def test_only_models_that_can_do_what_is_needed_are_chosen() -> None:
    models = catalogued(aliases={"fast": [Weighted("a/text-only", 9), Weighted("b/echo"), Weighted("gone/m", 9)]})
    assert chosen(models, "fast", ("chat", "tools")) == {"b/echo": 100}
    assert set(chosen(models, "fast")) == {"a/text-only", "b/echo"}
    with pytest.raises(CapabilityMissing):
        models.candidates("fast", (), ("embeddings",), 0.5)


def test_a_default_may_be_an_alias_of_several_models() -> None:
    models = snapshot(
        [Scripted("a")], aliases={"fast": [Weighted("a/echo"), Weighted("a/priced")]}, default_model="fast"
    )
    assert chosen(models, "") == {"a/echo": 50, "a/priced": 50}
    assert models.models["a/echo"].model.is_default


@pytest.mark.parametrize("steps", [1, 2, 7, 100])
def test_a_chance_that_is_rounded_chooses_as_often(steps: int) -> None:
    models = catalogued(aliases={"fast": [Weighted("a/echo", steps), Weighted("b/echo", 1)]})
    rounded = Counter(models.choose("fast", (), models.chance_of("fast", part / 1000)).model.id for part in range(1000))
    assert abs(rounded["b/echo"] - 1000 / (steps + 1)) <= 1
    assert len({models.chance_of("fast", part / 1000) for part in range(1000)}) == steps + 1
    assert models.chance_of("a/echo", 0.7) == 0.0


def test_candidates_are_in_order_without_repeats_and_without_those_that_cannot() -> None:
    models = catalogued(aliases={"other": "b/echo"})
    others = ["a/echo", "b/text-only", "gone/m", "other", "b/echo", "b/priced"]
    found = models.candidates("a/echo", others, ("chat", "tools"), 0.0)
    assert [each.model.id for each in found] == ["a/echo", "b/echo", "b/priced"]


@pytest.mark.parametrize(("name", "reason"), [("gone/m", "PROVIDER_NOT_FOUND"), ("gone", "PROVIDER_MODEL_NOT_FOUND")])
def test_an_unknown_first_model_is_refused_by_its_reason(name: str, reason: str) -> None:  # C002
    with pytest.raises(BehestError) as caught:
        catalogued().candidates(name, ["b/echo"], ("chat",), 0.0)
    assert caught.value.reason == reason


# --- runs ---


async def test_fallbacks_of_the_configuration_are_tried_by_runs_after_those_of_the_agent() -> None:  # C019
    async with vendor() as at:
        at.says(DOWN)
        providers = [at.provider("first"), at.provider("second"), Scripted()]
        models = snapshot(providers, aliases={"best": "first/m"}, default_model="best")
        fallbacks = {"best": ["scripted/text-only", "scripted/echo"], "first/m": ["scripted/priced"]}
        async with daemons.serve(models=models, fallbacks=fallbacks, retries=QUICK) as served:
            await put_agent(served, Agent(id="pair", model="best", fallback_models=["second/m"]))
            events = await events_of(await served.client.run("/say by another", agent_id="pair"))
            alone = await events_of(await served.client.run("/say by another", model="first/m"))
    asked = ["first/m"] * 3 + ["second/m"] * 2
    assert [each.endpoint for each in only(events, "model_requested")] == asked
    assert [each.endpoint for each in only(alone, "model_requested")] == ["first/m"] * 3 + ["scripted/priced"]
    assert only(alone, "run_completed")[0].output.text == "by another"


async def test_the_model_of_an_alias_is_chosen_once_for_a_run_and_stays() -> None:
    models = snapshot(
        [Scripted("a"), Scripted("b")],
        aliases={"fast": [Weighted("a/echo", 1), Weighted("b/echo", 1)]},
        default_model="fast",
    )
    used: Counter[str] = Counter()
    async with daemons.serve(models=models, tools=tools((look_up, PURE))) as served:
        for _ in range(40):
            said = '/tool look_up {"key": "a"} /next /say done'
            events = await events_of(await served.client.run(said))
            endpoints = {each.endpoint for each in only(events, "model_requested")}
            assert len(endpoints) == 1
            used.update(endpoints)
    # All forty from one side is one chance in 2^39.
    assert set(used) == {"a/echo", "b/echo"}


REQUESTS = [
    ({"said": ["look", PICTURE]}, "image_input"),
    ({"said": "hi", "response_format": OBJECT}, "json_object"),
    ({"said": "hi", "output_schema_json": "{}"}, "json_schema"),
    ({"said": "hi"}, "tools"),
]


@pytest.mark.parametrize(("order", "capability"), REQUESTS, ids=[capability for _, capability in REQUESTS])
async def test_a_run_that_needs_more_than_its_model_can_is_refused_and_leaves_no_trace(
    order: dict[str, Any], capability: str
) -> None:  # C003
    async with vendor() as at:
        models = snapshot([at.provider(capabilities=TALKS), Scripted()], aliases={"best": "scripted/echo"})
        fallbacks = {"best": ["v/m", "scripted/priced"]}
        served_tools = tools((look_up, PURE)) if capability == "tools" else tools()
        async with daemons.serve(models=models, fallbacks=fallbacks, retries=QUICK, tools=served_tools) as served:
            before = writes(served)
            said = order["said"]
            fields = {name: value for name, value in order.items() if name != "said"}
            error = await refused(served.client.run(said, model="v/m", **fields))
            assert error.reason == "PROVIDER_CAPABILITY_MISSING"
            assert (error.metadata["model"], error.metadata["capability"]) == ("v/m", capability)
            assert writes(served) == before
            # As a fallback it is left out.
            script = Part(text=TextPart(text="/fail UNAVAILABLE"))
            parts = [script, PICTURE] if capability == "image_input" else [script]
            events = await events_of(await served.client.run(parts, model="best", **fields))
            assert {each.endpoint for each in only(events, "model_requested")} == {"scripted/echo", "scripted/priced"}
        assert at.requests == 0


async def test_an_unknown_model_of_a_run_is_refused_by_its_reason() -> None:  # C002
    async with daemons.serve() as served:
        assert (await refused(served.client.run("hi", model="scripted/none"))).reason == "PROVIDER_MODEL_NOT_FOUND"
        assert (await refused(served.client.run("hi", model="nobody/none"))).reason == "PROVIDER_NOT_FOUND"
        assert (await refused(served.client.models.get("nobody/none"))).reason == "PROVIDER_MODEL_NOT_FOUND"


async def test_a_provider_that_is_replaced_serves_the_next_run_and_one_that_left_is_not_found() -> None:  # C002
    async with vendor() as at:
        async with daemons.serve(models=snapshot([Scripted()], default_model="scripted/echo")) as served:
            house = served.daemon.house
            house.models.register(at.provider("new"))
            assert kinds(await events_of(await served.client.run("hi", model="new/m")))[-1] == "run_completed"
            house.models.register(at.provider("new", "other"), replace=True)
            assert (await refused(served.client.run("hi", model="new/m"))).reason == "PROVIDER_MODEL_NOT_FOUND"
            assert kinds(await events_of(await served.client.run("hi", model="new/other")))[-1] == "run_completed"
            listed = [provider.id async for provider in served.client.models.providers()]
            assert listed == ["new", "scripted"]
            house.models.remove("new")
            assert (await refused(served.client.run("hi", model="new/other"))).reason == "PROVIDER_NOT_FOUND"
        assert at.requests == 2
