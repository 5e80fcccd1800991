"""Old logs fold to the states that they folded to when they were written (`write_golden.py`)."""

from __future__ import annotations

import json
from typing import Any

import pytest

from behest.v1.definition_pb2 import RunDefinition
from behest.v1.event_pb2 import Event
from behestd.core.run import KIND, evolve, fold, rooted
from behestd.log import frames
from tests.core.write_golden import PLACE, as_json

NAMES = sorted(path.name.removesuffix(".log.binpb") for path in PLACE.glob("*.log.binpb"))


def log_of(name: str) -> list[tuple[Event, bytes]]:
    stored = (PLACE / f"{name}.log.binpb").read_bytes()
    return [(Event.FromString(data), data) for data in frames.split(stored)]


def definition_of(name: str) -> RunDefinition:
    return RunDefinition.FromString((PLACE / f"{name}.definition.binpb").read_bytes())


def only(today: Any, then: Any) -> Any:
    """What today's state says of the fields that there were then."""
    if isinstance(then, dict) and isinstance(today, dict):
        return {key: only(value, then[key]) for key, value in today.items() if key in then}
    if isinstance(then, list) and isinstance(today, list):
        return [only(*pair) for pair in zip(today, then, strict=True)]
    return today


@pytest.mark.parametrize("name", NAMES)
def test_an_old_log_folds_to_its_state(name: str) -> None:  # I19
    run = fold("run_1", log_of(name), definition_of(name))
    today, then = json.loads(as_json(run)), json.loads((PLACE / f"{name}.state.json").read_text())
    assert only(today, then) == then


@pytest.mark.parametrize("name", NAMES)
def test_the_fold_of_any_prefix_of_an_old_log_goes_on_to_its_end(name: str) -> None:  # I19
    log, definition = log_of(name), definition_of(name)
    whole = fold("run_1", log, definition)
    run = rooted("run_1", *log[0], definition)
    for length, (event, data) in enumerate(log[1:], start=1):
        assert run == fold("run_1", log[:length], definition)
        run = evolve(run, event, data)
    assert run == whole


def test_the_corpus_holds_every_kind_of_event() -> None:
    seen = {event.WhichOneof("payload") for name in NAMES for event, _ in log_of(name)}
    assert seen == set(KIND.values())
