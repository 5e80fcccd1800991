"""Runs that are summarised while anything may happen: crashes, failures, refusals, inputs, in any order."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as some

from behest.v1.message_pb2 import Message, Part, Role, TextPart
from behestd.core.compaction import Circuit, is_summary
from behestd.core.compaction_turn import asked_for
from behestd.core.signals import Summarise
from behestd.core.wanted import wanted
from behestd.core.window import compose, is_valid
from tests.compaction.test_decisions import HISTORY, TOO_LONG, breaks, stage, summarised
from tests.core.stage import AMBIGUOUS, PERMANENT, T0, TRANSIENT, Stage

STEPS = some.lists(
    some.sampled_from(
        ["calls", "calls", "calls", "calls", "ends", "breaks", "refused", "crash", "release", "say", "wait"]
    ),
    min_size=8,
    max_size=30,
)
_ENDS = {"model_completed", "model_failed", "model_superseded", "context_compacted", "context_compaction_failed"}


def play(scene: Stage, step: str, number: int) -> None:
    """Let one thing happen, if it can now."""
    match step:
        case "crash":
            scene.crash()
        case "release":
            scene.release()
        case "say":
            scene.say(f"input {number} " + "word " * 30, f"in_{number}")
        case "wait":
            scene.wait(1)
        case _ if scene.run.compaction.open is not None:
            summary_comes(scene, step, number)
        case _ if scene.run.step.open is not None:
            answer_comes(scene, step, number)
        case _ if scene.run.step.calls:
            scene.tool(text="r" * 300)


def summary_comes(scene: Stage, step: str, number: int) -> None:
    """The call for a summary ends in some way."""
    if step in ("breaks", "refused"):
        breaks(scene, TRANSIENT if step == "breaks" else AMBIGUOUS)
    else:
        summarised(scene, f"notes {number}")


def answer_comes(scene: Stage, step: str, number: int) -> None:
    """The model call ends in some way."""
    if step == "breaks":
        scene.model_breaks(TRANSIENT)
    elif step == "refused":
        scene.model_breaks(PERMANENT, TOO_LONG)
    elif step == "ends":
        scene.model("fine")
    else:
        scene.model("", ("look", f'{{"n": {number}}}'))


def check(scene: Stage) -> None:
    """What holds after each step: calls are whole and recomposed alike, nothing is said twice, all is counted."""
    run = scene.run
    if run.compaction.open is not None:
        assert run.step.open is None
        assert [type(effect) for effect in wanted(run)] == [Summarise]
        assert asked_for(run, scene.givens["history"]) == asked_for(run, scene.givens["history"])
    if run.step.open is not None:
        said = compose(run, scene.givens["history"], run.step.open.endpoint).chat.messages
        assert is_valid(said)
        assert sum(map(is_summary, said)) <= 1
        assert not any(map(is_summary, said[1:]))
        ids = [message.id for message in said if message.id]
        assert len(ids) == len(set(ids))
    ends = [event for event, _ in scene.log if event.WhichOneof("payload") in _ENDS]
    used = [getattr(event, event.WhichOneof("payload") or "").usage for event in ends]
    assert run.spend.input_tokens == sum(usage.input_tokens for usage in used)
    assert run.spend.attempts == sum(usage.attempts for usage in used)


@settings(max_examples=80, deadline=None)
@given(
    STEPS,
    some.sampled_from([0, 3, 14, 20, 20]),
    some.sampled_from([0, 700, 1000, 1000, 4000]),
    some.integers(0, 2),
    some.booleans(),
)
def test_whatever_happens_calls_stay_whole_and_everything_is_counted(
    steps: list[str], messages: int, window: int, failures: int, has_writer: bool
) -> None:  # C070 C071 C074
    circuit = Circuit(failures, T0 if failures else 0, "PROVIDER_UNAVAILABLE" if failures else "")
    earlier = Message(
        id="msg_notes", role=Role.ROLE_USER, parts=[Part(text=TextPart(text="notes"))], summary_upto_message_id="msg_1"
    )
    history = (*HISTORY[:messages], earlier) if messages > 2 else HISTORY[:messages]
    model = {"model": "scripted/other"} if has_writer else {}
    scene = stage(history=history, window=window, given={"circuit": circuit}, **model)
    check(scene)
    for number, step in enumerate(steps):
        if scene.run.is_ended:
            break
        play(scene, step, number)
        check(scene)
