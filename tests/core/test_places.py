"""Where attempts go when several servers offer a tool, and calls that are joined instead of being recovered."""

from __future__ import annotations

from typing import Any

import pytest

from behest.v1.tool_pb2 import Tool
from behestd.core.places import Place
from behestd.core.state import Phase
from tests.core.stage import IDEMPOTENT, NO, NON_IDEMPOTENT, PURE, QUERYABLE, UNKNOWN, Stage, definition, tool


class Servers:
    """Two servers: the one that is not to be avoided, and whether calls can be joined."""

    def __init__(self, *, rejoins: bool = False) -> None:
        self._rejoins = rejoins

    def place(self, namespace: str, tool: Tool, key: str, *, avoid: str = "", stay: str = "") -> Place:
        chosen = stay or ("two" if avoid == "one" else "one")
        return Place(chosen, f"lease-{chosen}")

    def rejoins(self, namespace: str, server_id: str) -> bool:
        return self._rejoins and server_id == "one"


def called(side_effect: Any, *, rejoins: bool = False) -> Stage:
    """A run with a call in flight at the first of two servers."""
    stage = Stage(definition(tool("act", side_effect)))
    stage.givens["places"] = Servers(rejoins=rejoins)
    stage.model("", ("act", "{}"))
    return stage


def endpoints(stage: Stage) -> list[str]:
    return [event.tool_started.endpoint for event, _ in stage.log if event.HasField("tool_started")]


def test_an_attempt_records_the_server_that_was_chosen_and_its_attachment() -> None:
    stage = called(NON_IDEMPOTENT)
    started = stage.last("tool_started")
    assert (started.endpoint, started.lease_id) == ("one", "lease-one")


@pytest.mark.parametrize("side_effect", [PURE, IDEMPOTENT, QUERYABLE, NON_IDEMPOTENT])
def test_what_was_not_executed_goes_to_another_server(side_effect: Any) -> None:
    stage = called(side_effect)
    stage.tool_breaks(executed=NO)
    stage.wait_for_alarm()
    assert endpoints(stage) == ["one", "two"]


@pytest.mark.parametrize(("side_effect", "expected"), [(PURE, "two"), (IDEMPOTENT, "one")])
def test_what_may_have_been_executed_goes_to_another_server_only_without_an_effect(
    side_effect: Any, expected: str
) -> None:
    stage = called(side_effect)
    stage.tool_breaks(executed=UNKNOWN)
    stage.wait_for_alarm()
    assert endpoints(stage) == ["one", expected]
    stage.tool_breaks(executed=NO)
    stage.wait_for_alarm()
    assert endpoints(stage)[2:] == ["one"]


@pytest.mark.parametrize(("side_effect", "expected"), [(PURE, "two"), (IDEMPOTENT, "one")])
def test_a_takeover_sends_again_to_the_same_server_what_has_an_effect(side_effect: Any, expected: str) -> None:
    stage = called(side_effect)
    stage.crash()
    assert endpoints(stage) == ["one", expected]


@pytest.mark.parametrize("side_effect", [PURE, IDEMPOTENT, QUERYABLE, NON_IDEMPOTENT])
def test_a_call_whose_server_can_be_joined_stays_in_flight_over_a_takeover(side_effect: Any) -> None:  # C025
    stage = called(side_effect, rejoins=True)
    stage.crash()
    assert stage.call().phase is Phase.STARTED
    assert stage.call().attempt == 1
    assert stage.call().epoch < stage.run.head.epoch
    stage.tool(0, "it was done")
    assert stage.last("tool_completed").attempt == 1
    assert len(endpoints(stage)) == 1


def test_a_call_that_could_not_be_joined_is_settled_by_its_class() -> None:
    stage = called(NON_IDEMPOTENT, rejoins=True)
    stage.crash()
    stage.tool_breaks(executed=UNKNOWN)
    assert stage.call().phase is Phase.UNKNOWN


def test_a_run_that_is_being_cancelled_joins_nothing_when_it_is_taken_over() -> None:
    stage = called(NON_IDEMPOTENT, rejoins=True)
    stage.cancel()
    stage.crash()
    assert stage.state == "CANCELLED"
