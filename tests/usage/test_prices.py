"""Prices: by the day, half a micro-dollar rounded up for each attempt, checked against sums made by hand."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from behest.v1.agent_pb2 import Agent
from behest.v1.model_pb2 import Price
from behest.v1.usage_pb2 import Usage
from behestd.config.source import ConfigInvalid, Configuration, Origin
from behestd.core.spend import priced
from behestd.core.times import SECOND
from behestd.planning import models as planning_models
from behestd.providers.catalog import snapshot
from behestd.providers.scripted import Scripted
from behestd.runtime.clock import SystemClock
from behestd.runtime.orders import price_at
from tests import daemons
from tests.daemons import Served
from tests.runs.scenes import put_agent
from tests.usage.books import MODEL, RUN, query

# input, output, cached, written, the cost in micro-dollars. At 3 $ a million tokens of input, 15 $ of output, 0.30 $ of
# what came from the cache and 3.75 $ of what went to it: 3, 15, 0.3 and 3.75 micro-dollars a token.
BY_HAND = (
    (1_000, 100, 0, 0, 3_000 + 1_500),
    (1_000, 100, 600, 0, 400 * 3 + 180 + 1_500),
    (1_000, 100, 600, 300, 100 * 3 + 180 + 1_125 + 1_500),
    (1, 0, 1, 0, 0),  # 0.3
    (2, 0, 2, 0, 1),  # 0.6
    (5, 0, 5, 0, 2),  # 1.5: half up
    (2, 0, 0, 2, 8),  # 7.5: half up
    (7, 1, 3, 1, 29),  # 9 + 0.9 + 3.75 + 15 = 28.65
    (0, 0, 0, 0, 0),
)
DATED = """
[providers.local]
kind = "openai"
base_url = "http://127.0.0.1:9/v1"
[[providers.local.models]]
name = "m"
input_micro_usd = 100
output_micro_usd = 200
[[providers.local.models.prices]]
since = 2025-03-01
input_micro_usd = 300
output_micro_usd = 400
cached_input_micro_usd = 30
[[providers.local.models.prices]]
since = "2025-02-01"
input_micro_usd = 150
output_micro_usd = 250
"""


def load(tmp_path: Path, text: str) -> Configuration:
    file = tmp_path / "behestd.toml"
    file.write_text(text)
    return Origin(file, {"HOME": "/home/someone"}, ()).load()


def at(*day: int) -> int:
    """Midnight of a day in UTC."""
    return int(datetime(*day, tzinfo=UTC).timestamp()) * SECOND


@pytest.mark.parametrize(("sent", "received", "cached", "written", "cost"), BY_HAND)
def test_the_cost_of_an_attempt_is_that_made_by_hand(  # C116
    sent: int, received: int, cached: int, written: int, cost: int
) -> None:
    price = Price(
        input_micro_usd=3_000_000,
        output_micro_usd=15_000_000,
        cached_input_micro_usd=300_000,
        cache_write_micro_usd=3_750_000,
    )
    usage = Usage(input_tokens=sent, output_tokens=received, cached_input_tokens=cached, cache_write_tokens=written)
    assert priced(usage, price).cost_micro_usd == cost


async def test_totals_are_the_sums_made_by_hand_to_the_micro_dollar(stored: Served) -> None:  # C116
    # 1 $ a million of input, 2 $ of output, 0.10 $ of cached input: a token costs 1, 2 and 0.1 micro-dollars.
    await put_agent(stored, Agent(id="paying", model="scripted/priced"))
    by_hand = {"/usage 1000 50 400": 600 + 40 + 100, "/usage 7 3 5": 2 + 1 + 6, "/usage 4 0 4": 0, "/usage 16 1 16": 4}
    costs = {}
    for said in by_hand:
        run = await stored.client.run(f"{said} /say x", agent_id="paying")
        await run.result()
        (row,) = (await query(stored, RUN, run_id=run.run_id)).rows
        costs[said] = row.usage.cost_micro_usd
    total = (await query(stored, MODEL)).total

    assert costs == by_hand
    assert total.usage.cost_micro_usd == sum(by_hand.values()) == 753


def test_the_price_of_the_day_counts(tmp_path: Path) -> None:  # C116
    resolved = planning_models.models(load(tmp_path, DATED)).resolve("local/m")
    shown = [
        price_at(resolved.model, time) for time in (at(2024, 1, 1), at(2025, 2, 1), at(2025, 2, 28), at(2025, 3, 1))
    ]

    assert [price.input_micro_usd for price in shown] == [100, 150, 150, 300]
    assert price_at(resolved.model, at(2025, 3, 1) - 1).input_micro_usd == 150
    assert [price.HasField("cached_input_micro_usd") for price in shown] == [False, False, False, True]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ('since = "tomorrow"', "no day"),
        ("since = 2025-13-01", ""),
        ("since = 2025-02-01\ninput_micro_usd = -1", "greater than or equal"),
        ("since = 2025-02-01\nprice = 1", "price"),
        ("", "since"),
        ('since = 2025-02-01\n[[providers.local.models.prices]]\nsince = "2025-02-01"', "the same day"),
    ],
)
def test_prices_that_make_no_sense_are_refused(tmp_path: Path, wrong: str, said: str) -> None:  # C116
    text = DATED[: DATED.index("since")] + wrong
    with pytest.raises(ConfigInvalid) as caught:
        load(tmp_path, text)
    assert said in str(caught.value.problems[0])


class StepClock(SystemClock):
    """A clock that can be set forward."""

    ahead_ns = 0

    def now_ns(self) -> int:
        return super().now_ns() + self.ahead_ns


async def test_a_run_keeps_the_price_of_its_creation_and_the_next_one_has_the_new_one() -> None:  # C116
    clock = StepClock()
    scripted = Scripted()
    (model,) = [model for model in scripted.models() if model.id == "scripted/priced"]
    dearer = Price(input_micro_usd=9_000_000, output_micro_usd=0)
    dearer.effective_time.FromNanoseconds(clock.now_ns() + 100 * SECOND)
    model.prices.append(dearer)
    models = snapshot([scripted], default_model="scripted/priced")
    async with daemons.serve(models=models, clock=clock) as served:
        costs = []
        for said in ("/usage 10 0 /say a", "/usage 10 0 /say b"):
            run = await served.client.run(said)
            await run.result()
            costs.append((await run.get()).usage.cost_micro_usd)
        slow = await served.client.run("/usage 10 0 /finish length /say c /next /usage 10 0 /say d")
        clock.ahead_ns = 200 * SECOND
        run = await served.client.run("/usage 10 0 /say e")
        await run.result()
        costs.append((await run.get()).usage.cost_micro_usd)
        await slow.result()
        costs.append((await slow.get()).usage.cost_micro_usd)

    assert costs == [10, 10, 90, 20]
