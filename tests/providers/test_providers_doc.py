"""What docs/providers.md shows is so: each configuration is one, and its models are there."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from behestd.config_source import Origin
from behestd.planning import models
from behestd.providers.failure import CLASSES

GUIDE = (Path(__file__).resolve().parents[2] / "docs" / "providers.md").read_text()
SHOWN = re.findall(r"^```toml\n(.*?)^```", GUIDE, re.MULTILINE | re.DOTALL)
KEYS = {"OPENAI_API_KEY": "not-a-real-key", "ANTHROPIC_API_KEY": "not-a-real-key"}


@pytest.mark.parametrize("text", SHOWN, ids=lambda text: str(tomllib.loads(text)["models"]["default"]))
def test_each_shown_configuration_gives_the_models_that_it_names(text: str, tmp_path: Path) -> None:
    file = tmp_path / "behestd.toml"
    file.write_text(text)
    found = models(Origin(file, {"HOME": str(tmp_path), **KEYS}, ()).load())
    for provider_id, provider in tomllib.loads(text)["providers"].items():
        assert found.provider(provider_id).describe().adapter == provider["kind"]
        for model in provider["models"]:
            name = model if isinstance(model, str) else model["name"]
            assert found.resolve(f"{provider_id}/{name}").model.capabilities.chat
    assert found.resolve("").model.is_default


def test_the_reasons_named_are_those_of_the_contract() -> None:
    named = set(re.findall(r"\bPROVIDER_[A-Z_]+", GUIDE))
    assert len(named) > 8
    assert named <= set(CLASSES)
