"""Runs that change hands, owners that vanish, and what every ending leaves behind."""

from __future__ import annotations

from typing import Any

import pytest

from behest.v1.definition_pb2 import PermissionRule
from behest.v1.model_event_pb2 import SupersedeReason
from behest.v1.run_event_pb2 import ClaimReason
from behestd.core.decide import claim_count
from behestd.core.signals import Cancel, Claim, Condemn, Input, Release, Start, Wake
from behestd.core.state import Phase
from behestd.core.times import SECOND
from behestd.core.wanted import alarm_ns, wanted
from behestd.core.window import is_valid
from behestd.errors import RunEnding
from tests.core.stage import (
    ASK,
    GRACE_NS,
    IDEMPOTENT,
    NO,
    NON_IDEMPOTENT,
    PURE,
    QUERYABLE,
    TRANSIENT,
    Stage,
    definition,
    kinds,
    said,
    tool,
)

ACT = ("act", "{}")


def called(side_effect: Any = IDEMPOTENT, **fields: Any) -> Stage:
    """A run with one call in flight."""
    stage = Stage(definition(tool("act", side_effect)), **fields)
    stage.model("", ACT)
    return stage


# --- owners ---


def test_a_takeover_makes_a_new_attempt_of_a_model_call() -> None:
    stage = Stage()
    assert kinds(stage.crash()) == ["run_claimed", "model_superseded", "model_requested"]
    assert stage.last("model_superseded").reason == SupersedeReason.SUPERSEDE_REASON_CRASH
    assert stage.last("model_requested").attempt == 2
    stage = Stage()
    stage.release()
    assert stage.last("model_superseded").reason == SupersedeReason.SUPERSEDE_REASON_RELEASE


def test_a_release_is_all_that_its_commit_holds() -> None:
    stage = called(PURE)
    stage.tool_breaks()
    stage.now_ns += 60 * SECOND
    assert kinds(stage.do(Release())) == ["run_released"]


def test_a_draining_daemon_begins_nothing() -> None:
    stage = called()
    stage.givens["is_draining"] = True
    assert kinds(stage.tool()) == ["tool_completed"]
    assert stage.run.step.number == 1
    assert wanted(stage.run) == ()
    stage.givens.clear()
    stage.release()
    assert stage.run.step.number == 2


def test_the_third_owner_in_a_row_that_vanishes_condemns_the_run() -> None:  # N09
    stage = Stage()
    for count in (1, 2):
        assert claim_count(stage.run) == count
        stage.crash()
    assert claim_count(stage.run) == 3
    assert kinds(stage.crash()) == ["run_claimed", "model_superseded", "run_failed"]
    assert (stage.state, stage.reason) == ("FAILED", "RUN_RECOVERY_LIMIT")


def test_a_condemned_run_says_what_was_in_flight() -> None:
    stage = called()
    for _ in range(3):
        stage.crash()
    assert stage.state == "RUNNING"
    assert kinds(stage.crash()) == ["run_claimed", "tool_outcome_unknown", "run_failed"]


def test_an_owner_that_brings_the_run_forward_or_lets_go_is_not_counted() -> None:
    stage = Stage(definition(tool(), models=["m/a"]))
    for _ in range(2):
        stage.crash()
    stage.model_breaks(TRANSIENT)
    stage.crash()
    assert claim_count(stage.run) == 1
    stage.wait_for_alarm()
    stage.release()
    assert claim_count(stage.run) == 1
    assert stage.state == "RUNNING"


def test_a_failed_attempt_of_a_tool_brings_the_run_forward() -> None:
    stage = called(PURE)
    stage.crash()
    stage.tool_breaks()
    assert claim_count(stage.run) == 0


def test_a_waiting_run_is_never_condemned() -> None:
    stage = Stage(definition(tool("act"), agent_permissions=[PermissionRule(tool="act", action=ASK)]))
    stage.model("", ACT)
    for _ in range(10):
        stage.crash()
    assert stage.state == "WAITING"
    assert claim_count(stage.run) == 0


def test_a_queued_run_is_claimed_without_more() -> None:
    stage = Stage(begun=False)
    for _ in range(5):
        assert kinds(stage.crash()) == ["run_claimed"]
    assert stage.state == "QUEUED"


@pytest.mark.parametrize(
    ("moment", "state"),
    [("queued", "TIMED_OUT"), ("model", "FAILED"), ("asked", "FAILED"), ("cancelling", "CANCELLED")],
)
def test_a_fault_of_the_daemon_ends_the_run_as_its_state_allows(moment: str, state: str) -> None:
    stage = called() if moment == "cancelling" else MOMENTS[moment]()  # type: ignore[no-untyped-call]
    if moment == "cancelling":
        stage.cancel()
    stage.do(Condemn("RUNTIME_INTERNAL", "a fault"))
    assert (stage.state, stage.reason) == (state, "RUNTIME_INTERNAL")


def test_a_run_that_is_condemned_while_it_is_cancelled_ends_as_it_was_due() -> None:
    stage = called(QUERYABLE)
    stage.cancel()
    for _ in range(3):
        stage.crash()
    assert stage.state == "CANCELLING"
    stage.crash()
    assert (stage.state, stage.reason) == ("CANCELLED", "RUN_RECOVERY_LIMIT")


def test_an_ended_run_takes_no_signal() -> None:
    stage = Stage()
    stage.model("bye")
    for signal in (Claim(ClaimReason.CLAIM_REASON_RECOVERY), Start(1), Release(), Wake(), Cancel(1, 1)):
        assert stage.do(signal) == []
    with pytest.raises(RunEnding):
        stage.do(Input("in_9", said("x")))
    assert alarm_ns(stage.run, GRACE_NS) == 0


# --- every ending leaves a history that any provider takes (C050) and one end (C049) ---

MOMENTS = {
    "queued": lambda: Stage(begun=False),
    "model": lambda: Stage(),
    "tool": called,
    "tools": lambda: mixed(),
    "asked": lambda: mixed(ASK),
    "backoff": lambda: backing_off(),
}


def mixed(permission: Any = 1) -> Stage:
    """A run with a call of each class."""
    tools = [tool(name, side_effect) for name, side_effect in zip("abcd", (1, 2, 3, 4), strict=True)]  # type: ignore[arg-type]
    stage = Stage(definition(*tools, default_permission=permission))
    stage.model("", *[(name, "{}") for name in "abcd"])
    stage.tool(0)
    stage.say("meanwhile")
    return stage


def backing_off() -> Stage:
    stage = called(PURE)
    stage.tool_breaks()
    assert stage.call().phase is Phase.BACKOFF
    return stage


ENDINGS = {
    "cancel": lambda stage: stage.cancel(),
    "force": lambda stage: stage.cancel(force=True),
    "deadline": lambda stage: stage.wait(10**6),
    "crash and cancel": lambda stage: (stage.crash(), stage.cancel()),
    "cancel and crash": lambda stage: (stage.cancel(), stage.crash()),
    "condemned": lambda stage: [stage.crash() for _ in range(4)],
}


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("moment", MOMENTS)
def test_every_ending_leaves_one_end_and_a_valid_history(moment: str, ending: str) -> None:  # C049 C050
    stage = MOMENTS[moment]()  # type: ignore[no-untyped-call]
    ENDINGS[ending](stage)  # type: ignore[no-untyped-call]
    for _ in range(20):
        if alarm_ns(stage.run, GRACE_NS):
            stage.wait_for_alarm()
    assert stage.run.is_ended
    assert is_valid(stage.run.transcript)


def test_a_proof_that_nothing_was_executed_outlives_the_cancel() -> None:
    stage = called(NON_IDEMPOTENT)
    stage.cancel()
    stage.tool_breaks(executed=NO)
    assert list(stage.last("run_cancelled").receipts) == []
