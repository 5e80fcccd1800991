"""What docs/routing.md shows is so: its configurations are taken, and its numbers are the defaults."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from behestd.config.source import Configuration, Origin
from behestd.core.circuit import CircuitPolicy
from behestd.core.route import RoutePolicy
from behestd.planning import plan as planning
from behestd.providers.catalog import Weighted
from behestd.runtime.model_limits import Allowance

GUIDE = (Path(__file__).resolve().parents[2] / "docs" / "routing.md").read_text()
SHOWN = re.findall(r"^```toml\n(.*?)^```", GUIDE, re.MULTILINE | re.DOTALL)


def load(text: str, home: Path) -> Configuration:
    file = home / "behestd.toml"
    file.write_text(text)
    return Origin(file, {"HOME": str(home)}, ()).load()


def test_the_aliases_fallbacks_and_limits_that_are_shown_are_taken(tmp_path: Path) -> None:
    plan = planning.plan(load(SHOWN[0], tmp_path))
    assert plan.models.weighted["fast"] == (Weighted("local/small", 9), Weighted("local/other", 1))
    assert plan.models.aliases["best"] == "local/large"
    assert plan.models.models["local/small"].model.is_default
    assert plan.fallbacks["best"] == ("local/other", "scripted/echo")
    assert plan.model_limits == {"local/large": Allowance(60, 100_000, 4, 10.0)}


def test_the_numbers_that_are_shown_are_the_defaults(tmp_path: Path) -> None:
    assert set(tomllib.loads(SHOWN[1])["models"]) == {"retries", "breaker"}
    shown, bare = (planning.plan(load(text, tmp_path)) for text in (SHOWN[1], ""))
    assert shown.retries == bare.retries == RoutePolicy(())
    assert shown.circuits == bare.circuits == CircuitPolicy()


def test_an_alias_may_name_several_models_by_their_names_alone(tmp_path: Path) -> None:
    text = '[models]\naliases = { fast = ["scripted/echo", "scripted/priced"] }\n'
    plan = planning.plan(load(text, tmp_path))
    assert plan.models.weighted["fast"] == (Weighted("scripted/echo"), Weighted("scripted/priced"))
