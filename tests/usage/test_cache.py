"""Cache statistics: one vendor counts cached tokens within its input, another beside it; the share is of all input."""

from __future__ import annotations

import pytest

from behest.v1.model_pb2 import Model, ModelCapabilities, Price
from behestd.providers.anthropic import Anthropic, AnthropicSettings
from behestd.providers.catalog import snapshot
from behestd.providers.openai import OpenAi, OpenAiSettings
from behestd.providers.secret import Secret
from tests import daemons
from tests.providers.replay import Reply, fixture, replaying
from tests.usage.books import MODEL, query

PRICE = Price(
    input_micro_usd=3_000_000,
    output_micro_usd=15_000_000,
    cached_input_micro_usd=300_000,
    cache_write_micro_usd=3_750_000,
)
CAN = ModelCapabilities(chat=True, streaming=True)


def model(provider: str) -> Model:
    return Model(id=f"{provider}/m", provider_id=provider, capabilities=CAN, prices=[PRICE])


def within() -> Reply:
    """A recorded stream whose prompt_tokens, 21, hold its cached_tokens, 16."""
    return Reply((fixture("text.sse"),))


def beside() -> Reply:
    """A recorded stream with 21 input_tokens beside 2,048 that were read from the cache and 64 written to it."""
    return Reply((fixture("anthropic/text.sse"),))


async def test_the_share_that_the_cache_answered_is_of_all_input_whatever_the_vendor_counts() -> None:  # C118
    async with replaying(within()) as one, replaying(beside()) as other:
        providers = [
            OpenAi(OpenAiSettings(id="within", base_url=one.base_url), [model("within")]),
            Anthropic(AnthropicSettings(id="beside", base_url=other.base_url, api_key=Secret("k")), [model("beside")]),
        ]
        async with daemons.serve("sqlite", models=snapshot(providers, default_model="within/m")) as served:
            for name in ("within/m", "beside/m"):
                run = await served.client.run("hi", model=name)
                await run.result()
            found = await query(served, MODEL)

    rows = {row.model: row for row in found.rows}
    assert rows["within/m"].cache_hit_ratio == pytest.approx(16 / 21)
    assert rows["beside/m"].cache_hit_ratio == pytest.approx(2_048 / (21 + 2_048 + 64))
    assert found.total.cache_hit_ratio == pytest.approx((16 + 2_048) / (21 + 21 + 2_048 + 64))
    # 5 fresh at 3, 16 cached at 0.3 and 9 of output at 15 micro-dollars: 154.8.
    assert rows["within/m"].usage.cost_micro_usd == 155
    # 21 fresh at 3, 2,048 cached at 0.3, 64 written at 3.75 and 9 of output at 15 micro-dollars: 1,052.4.
    assert rows["beside/m"].usage.cost_micro_usd == 1_052
    assert found.total.usage.cost_micro_usd == 155 + 1_052


async def test_without_input_there_is_no_share(served: daemons.Served) -> None:  # C118
    found = await query(served)
    assert not found.rows
    assert not found.total.HasField("cache_hit_ratio")
