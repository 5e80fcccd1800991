"""What a vendor's prompt cache sees of a session: the requests of its turns, as they came over the wire."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from itertools import pairwise
from typing import Any

import pytest

from behest.v1.model_pb2 import Model, ModelCapabilities, ModelLimits
from behest.v1.session_pb2 import Session
from behestd.providers.anthropic import Anthropic, AnthropicSettings
from behestd.providers.anthropic_models import MAX_CACHE_MARKERS
from behestd.providers.catalog import snapshot
from behestd.providers.openai import OpenAi, OpenAiSettings
from behestd.providers.provider import Provider
from tests.daemons import Served, serve
from tests.providers.replay import Replay, replaying, stream

TURNS = 6
ABLE = {"chat": True, "streaming": True, "tools": True}


def anthropic(url: str, markers: int) -> Provider:
    able = ModelCapabilities(**ABLE, prompt_cache_markers=markers > 0)
    limits = ModelLimits(max_output_tokens=100, max_prompt_cache_markers=markers)
    return Anthropic(
        AnthropicSettings(id="v", base_url=url), [Model(id="v/m", provider_id="v", capabilities=able, limits=limits)]
    )


def openai(url: str, markers: int, **settings: Any) -> Provider:
    able = ModelCapabilities(**ABLE, prompt_cache_markers=markers > 0)
    return OpenAi(
        OpenAiSettings(id="v", base_url=url, **settings), [Model(id="v/m", provider_id="v", capabilities=able)]
    )


@asynccontextmanager
async def talking(vendor: str, markers: int) -> AsyncIterator[tuple[Served, Replay]]:
    """Serve with one model, that of a vendor whose answers are replayed."""
    folder = {"openai": "", "anthropic": "anthropic/", "responses": "responses/"}[vendor]
    async with replaying(stream(f"{folder}text.sse")) as replay:
        made = {
            "openai": partial(openai, interface="chat_completions"),
            "responses": partial(openai, interface="responses"),
            "anthropic": anthropic,
        }[vendor](replay.base_url, markers)
        models = snapshot([made], default_model="v/m")
        async with serve(models=models) as served:
            yield served, replay


async def bodies(vendor: str, markers: int) -> list[dict[str, Any]]:
    """Hold a conversation of some turns and give the requests that arrived."""
    async with talking(vendor, markers) as (served, replay):
        await served.client.sessions.create(Session(id="one"))
        for turn in range(TURNS):
            await served.client.stream(f"turn {turn}", session_id="one").result()
        return [asked.body for asked in replay.asked]


def without_markers(value: Any) -> Any:
    """Take the markers out, which move along with the conversation and are no part of what is cached."""
    if isinstance(value, dict):
        return {name: without_markers(each) for name, each in value.items() if name != "cache_control"}
    return [without_markers(each) for each in value] if isinstance(value, list) else value


@pytest.mark.parametrize("vendor", ["anthropic", "openai", "responses"])
async def test_each_turn_s_request_begins_with_the_bytes_of_the_one_before(vendor: str) -> None:  # C119
    sent = [without_markers(body) for body in await bodies(vendor, MAX_CACHE_MARKERS)]
    assert len(sent) == TURNS
    heads = {json.dumps([body.get("tools"), body.get("system")]) for body in sent}
    assert len(heads) == 1
    said = [json.dumps(body.get("messages") or body["input"]) for body in sent]
    for earlier, later in pairwise(said):
        assert len(later) > len(earlier)
        assert later.startswith(earlier[:-1])


@pytest.mark.parametrize("markers", [0, 1, 2, 4, 9])
async def test_markers_are_as_many_as_the_model_takes_and_none_when_it_takes_none(markers: int) -> None:  # C119
    counts = [json.dumps(body).count("cache_control") for body in await bodies("anthropic", markers)]
    assert max(counts) <= min(markers, MAX_CACHE_MARKERS)
    assert all(count > 0 for count in counts) == (markers > 0)


@pytest.mark.parametrize("vendor", ["openai", "responses"])
async def test_an_interface_without_markers_gets_none(vendor: str) -> None:  # C119
    assert "cache" not in json.dumps(await bodies(vendor, MAX_CACHE_MARKERS))
