"""The guide: each snippet of configuration is one, and what it shows of the command line is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from behest.cli.usage import usage
from behestd.config.source import Configuration, Origin
from behestd.core.times import nanoseconds
from behestd.planning import models as planning_models
from behestd.planning import plan as planning

GUIDE = (Path(__file__).resolve().parent.parent.parent / "docs" / "usage.md").read_text()
SNIPPETS = re.findall(r"^```toml\n(.*?)^```", GUIDE, re.MULTILINE | re.DOTALL)
COMMANDS = re.findall(r"^behest usage (.*)$", GUIDE, re.MULTILINE)


def loaded(tmp_path: Path, number: int) -> Configuration:
    """The configuration of a snippet, with the provider that it leaves out."""
    file = tmp_path / "behestd.toml"
    provider = "[providers.local]\nkind = 'openai'\nbase_url = 'http://127.0.0.1:9/v1'\n"
    file.write_text((provider if "providers" in SNIPPETS[number] else "") + SNIPPETS[number])
    return Origin(file, {"HOME": "/home/someone"}, ()).load()


def test_the_prices_of_the_guide_are_prices(tmp_path: Path) -> None:  # C116
    model = planning_models.models(loaded(tmp_path, 0)).resolve("local/qwen3-8b").model

    assert [price.input_micro_usd for price in model.prices] == [100_000, 80_000]
    assert [nanoseconds(price.effective_time) > 0 for price in model.prices] == [False, True]


def test_the_budgets_of_the_guide_are_budgets(tmp_path: Path) -> None:  # N10
    rules = planning.plan(loaded(tmp_path, 1)).budgets
    one, other = rules.of("default"), rules.of("team")
    assert one is not None
    assert other is not None
    assert (one.period, one.budget.max_calls, one.budget.HasField("max_cost_micro_usd")) == ("total", 100_000, False)
    assert (other.period, other.budget.max_cost_micro_usd) == ("month", 50_000_000)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_commands_of_the_guide_are_understood(command: str) -> None:  # C117
    context = usage.make_context("usage", command.replace("SESSION", "ses_1").split())
    assert context.params["by"]


def test_every_snippet_is_tested() -> None:
    assert len(SNIPPETS) == 2
    assert len(COMMANDS) == 3
