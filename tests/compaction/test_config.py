"""The operator's settings for long conversations: what they become, and which make no sense."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from behestd.config.source import ConfigInvalid, Configuration, Origin
from behestd.core import compaction, pruning
from behestd.core.times import duration_ns
from behestd.planning import plan as planning

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "compaction.md"


def load(tmp: Path, text: str) -> Configuration:
    """Load a configuration of a text."""
    file = tmp / "behestd.toml"
    file.write_text(text)
    return Origin(file, {"HOME": "/home/someone"}, ()).load()


def test_unset_settings_are_the_defaults_of_the_core(tmp_path: Path) -> None:
    operator = planning.operator(load(tmp_path, "").settings)

    assert operator.compaction == compaction.DEFAULTS
    assert operator.pruning == pruning.DEFAULTS


def test_the_settings_in_the_guide_become_the_operators_policies(tmp_path: Path) -> None:
    (text,) = re.findall(r"```toml\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    operator = planning.operator(load(tmp_path, text).settings)

    assert (operator.compaction.threshold, operator.compaction.tail_messages) == (0.7, 30)
    assert duration_ns(operator.compaction.timeout) == 60_000_000_000
    assert operator.pruning.keep_turns == 10
    assert not operator.compaction.HasField("tail_tokens")


def test_a_model_for_summaries_must_be_there(tmp_path: Path) -> None:
    assert planning.plan(load(tmp_path, '[compaction]\nmodel = "scripted/small"')).operator.compaction.model
    for model in ("scripted/none", "nobody/small"):
        with pytest.raises(ConfigInvalid) as caught:
            planning.plan(load(tmp_path, f'[compaction]\nmodel = "{model}"'))
        assert "compaction.model" in str(caught.value.problems[0])


@pytest.mark.parametrize(
    "text",
    [
        "[compaction]\nthreshold = 0.0",
        "[compaction]\nthreshold = 1.5",
        "[compaction]\nfailures = 0",
        "[pruning]\nblock_turns = 0",
    ],
)
def test_settings_that_make_no_sense_are_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigInvalid):
        load(tmp_path, text)
