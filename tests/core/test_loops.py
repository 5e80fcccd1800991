"""Output that makes no sense, and models that call in circles."""

from __future__ import annotations

import pytest

from behest.v1.definition_pb2 import DoomLoop, DoomLoopAction, Limits
from behest.v1.message_pb2 import Message
from behestd.core.window import compose, is_valid
from tests.core.stage import (
    MALFORMED,
    PURE,
    Stage,
    definition,
    kinds,
    text_of,
    tool,
)

LOOK = ("look", '{"at":"sky"}')


def seen(stage: Stage, endpoint: str = "scripted/a") -> list[Message]:
    """What the open model call shows the model."""
    assert stage.run.step.open is not None
    return list(compose(stage.run, stage.givens.get("history", ()), endpoint).chat.messages)


# --- malformed turns ---


def test_the_third_malformed_answer_in_a_row_ends_the_run() -> None:
    stage = Stage()
    stage.model_breaks(MALFORMED)
    stage.model_breaks(MALFORMED)
    assert stage.state == "RUNNING"
    stage.model_breaks(MALFORMED)
    assert (stage.state, stage.reason) == ("FAILED", "PROVIDER_MALFORMED_OUTPUT")


def test_calls_that_make_no_sense_are_answered_twice_and_end_the_run_the_third_time() -> None:
    stage = Stage()
    for _ in range(2):
        assert "tool_failed" in kinds(stage.model("", ("nonsense", "{}"), LOOK))
        assert "nonsense" in str(stage.run.step.calls[0].result)
        stage.tool(1)
    stage.model("", ("nonsense", "{}"))
    assert (stage.state, stage.reason) == ("FAILED", "PROVIDER_MALFORMED_OUTPUT")
    assert is_valid(stage.run.transcript)


def test_a_well_formed_turn_resets_the_count_of_malformed_ones() -> None:
    stage = Stage()
    for _ in range(2):
        stage.model("", ("nonsense", "{}"))
        stage.model("", ("nonsense", "{}"))
        stage.model("", LOOK)
        stage.tool()
    assert stage.state == "RUNNING"


def test_several_bad_calls_of_one_turn_count_once() -> None:
    stage = Stage()
    stage.model("", *[("nonsense", "{}")] * 4)
    assert stage.run.turns.malformed == 1


@pytest.mark.parametrize("arguments", ["[]", "nonsense", '"text"', "1" * 5000, "[" * 100_000])
def test_arguments_that_are_no_object_are_an_error_result(arguments: str) -> None:
    stage = Stage()
    stage.model("", ("look", arguments))
    assert stage.last("tool_failed").reason == "TOOL_ARGUMENTS_INVALID"
    assert stage.run.step.number == 2


def test_arguments_that_break_the_schema_tell_the_model_what_is_wrong() -> None:
    stage = Stage()
    stage.givens["validate"] = lambda _tool, arguments: '{"path":"/at"}' if "bad" in arguments else ""
    stage.model("", ("look", '{"at":"bad"}'), LOOK)
    stage.tool(1)
    assert stage.result_text(0) == '{"path":"/at"}'
    assert stage.result_text(1) == "done"


def test_empty_arguments_become_an_empty_object() -> None:
    stage = Stage()
    stage.model("", ("look", "  "))
    assert stage.last("tool_started").arguments_json == "{}"


# --- doom loops ---


def doomed(repeats: int = 3, tools: int = 1, **fields: int) -> Stage:
    """A run whose model may repeat itself so often."""
    names = [tool(name) for name in "ABCDE"[:tools]]
    return Stage(definition(*names, limits=Limits(max_steps=50, doom_loop=DoomLoop(repeats=repeats, **fields))))  # type: ignore[arg-type]


def turn(stage: Stage, *calls: tuple[str, str]) -> None:
    stage.model("", *calls)
    for index in range(len(calls)):
        if stage.state == "RUNNING" and index < len(stage.run.step.calls) and stage.run.step.answered:
            stage.tool(index)


def test_three_identical_calls_end_the_run() -> None:  # C067
    stage = doomed()
    for _ in range(3):
        turn(stage, ("A", "{}"))
    assert (stage.state, stage.reason) == ("FAILED", "RUN_DOOM_LOOP")
    assert stage.last("doom_loop_detected").stopped
    assert list(stage.last("doom_loop_detected").cycle) == ["A"]
    assert is_valid(stage.run.transcript)  # C050


def test_a_doom_loop_warns_first_and_then_stops() -> None:  # C067
    stage = doomed(warnings=1)
    for _ in range(3):
        turn(stage, ("A", "{}"))
    assert not stage.last("doom_loop_detected").stopped
    assert "Do not repeat" in text_of(seen(stage)[-1])
    for _ in range(3):
        turn(stage, ("A", "{}"))
    assert stage.reason == "RUN_DOOM_LOOP"


def test_a_doom_loop_may_only_warn_or_go_unseen() -> None:  # C067
    stage = doomed(action=DoomLoopAction.DOOM_LOOP_ACTION_WARN)
    for _ in range(6):
        turn(stage, ("A", "{}"))
    assert stage.state == "RUNNING"
    assert stage.kinds.count("doom_loop_detected") == 2
    stage = doomed(action=DoomLoopAction.DOOM_LOOP_ACTION_OFF)
    for _ in range(6):
        turn(stage, ("A", "{}"))
    assert "doom_loop_detected" not in stage.kinds


def test_a_polling_tool_is_exempt() -> None:  # C067
    stage = Stage(definition(tool("poll", doom_loop_exempt=True), tool("A"), limits=Limits(max_steps=50)))
    for _ in range(6):
        turn(stage, ("poll", "{}"))
    assert stage.state == "RUNNING"
    for _ in range(3):
        turn(stage, ("A", "{}"), ("poll", "{}"))
    assert list(stage.last("doom_loop_detected").cycle) == ["A"]


def test_a_cycle_of_two_is_named() -> None:  # C068
    stage = doomed(tools=2)
    for _ in range(3):
        turn(stage, ("A", "{}"))
        turn(stage, ("B", "{}"))
    assert stage.reason == "RUN_DOOM_LOOP"
    assert list(stage.last("doom_loop_detected").cycle) == ["A", "B"]


def test_different_arguments_are_no_loop() -> None:  # C068
    stage = doomed()
    for number in range(6):
        turn(stage, ("A", f'{{"n":{number}}}'))
    assert "doom_loop_detected" not in stage.kinds


def test_equal_calls_of_one_turn_count_once() -> None:  # C067
    stage = doomed()
    turn(stage, *[("A", "{}")] * 4)
    assert stage.state == "RUNNING"


def test_the_count_of_repeated_calls_survives_a_takeover() -> None:  # C069
    stage = doomed()
    turn(stage, ("A", "{}"))
    stage.crash()
    turn(stage, ("A", "{}"))
    stage.crash()
    turn(stage, ("A", "{}"))
    assert stage.reason == "RUN_DOOM_LOOP"


def test_a_run_may_call_nothing_and_say_nothing() -> None:
    stage = Stage()
    stage.model()
    assert stage.state == "COMPLETED"
    assert stage.last("run_completed").output.text == ""


def test_five_parallel_calls_keep_the_order_of_the_model() -> None:  # C053
    for round_ in range(100):
        stage = Stage(definition(tool(), limits=Limits(max_parallel_tool_calls=5)))
        stage.model("", *[("look", f'{{"n":{number}}}') for number in range(5)])
        order = sorted(range(5), key=lambda index: (index * 7 + round_ * 3) % 5)
        for index in order:
            stage.tool(index, f"result {index}")
        assert [text_of(part.tool_result) for part in stage.run.transcript[-1].parts] == [
            f"result {index}" for index in range(5)
        ]


def test_the_provider_reuses_call_ids_and_ours_stay_unique() -> None:
    stage = Stage(definition(tool("look", PURE)))
    stage.model("", LOOK, LOOK)
    first, second = stage.run.step.calls
    assert first.call.provider_call_id == second.call.provider_call_id == "x"
    assert first.call.id != second.call.id
