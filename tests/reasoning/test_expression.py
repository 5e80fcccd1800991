"""Expressions: what can be read, what holds, and that none fails on any task."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from behest.v1.task_pb2 import (
    Fact,
    Plan,
    PlanStep,
    Provenance,
    StepStatus,
    TaskArtifact,
    TaskArtifactKind,
    TaskStep,
)
from behestd.core.task import TaskState
from behestd.reasoning.expression import MAX_BYTES, MAX_DEPTH, NAMES, Seen, Unreadable, read

DONE, PENDING = StepStatus.STEP_STATUS_COMPLETED, StepStatus.STEP_STATUS_PENDING
TASK = TaskState(
    domain="physics",
    iteration=2,
    facts=(Fact(text="a"), Fact(text="b"), Fact(text="c")),
    plan=Plan(steps=[PlanStep(status=DONE), PlanStep(status=PENDING)]),
    steps=(TaskStep(provenance=Provenance(score=0.25)), TaskStep(provenance=Provenance())),
)
ANSWERED = TaskState(artifacts=(TaskArtifact(kind=TaskArtifactKind.TASK_ARTIFACT_KIND_ANSWER),))
SEEN = Seen(TASK, "failure", 0.75, attempts=3)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("score >= 0.75", True),
        ("score > 0.75", False),
        ("score == 0.75 and iteration == 2", True),
        ("iteration < 2 or facts == 3", True),
        ("not iteration < 2", True),
        ("not (iteration == 2 and facts == 3)", False),
        ("iteration < 2 and iteration < 2 or facts == 3", True),
        ("iteration == 2 or facts == 3 and facts == 4", True),
        ("(iteration == 2 or facts == 3) and facts == 4", False),
        ("domain == 'physics'", True),
        ('domain != "chemistry"', True),
        ("domain < 'q'", True),
        ("outcome == 'failure'", True),
        ("outcome == 'failed'", False),
        ("attempts == 3", True),
        ("plan_steps == 2 and plan_done == 1", True),
        ("steps == 2 and observations == 0 and actions <= 0", True),
        ("reflections == 0 and artifacts == 0 and constraints == 0", True),
        ("goal_achieved", False),
        ("not goal_achieved", True),
        ("goal_achieved == false", True),
        ("true", True),
        ("false", False),
        ("(1 < 2) == (3 < 4)", True),
        ("-1 < 0", True),
        ("3 <= 3.0", True),
    ],
)
def test_an_expression_holds_when_what_it_says_is_so(text: str, expected: bool) -> None:  # C126
    assert read(text).holds(SEEN) is expected


@pytest.mark.parametrize("sign", ["==", "!=", "<", "<=", ">", ">="])
@pytest.mark.parametrize(
    ("left", "right"),
    [("domain", "1"), ("goal_achieved", "1"), ("'true'", "true"), ("score", "'0.75'")],
    ids=["string-number", "truth-number", "string-truth", "score-string"],
)
def test_a_comparison_of_different_kinds_is_false(left: str, sign: str, right: str) -> None:
    assert not read(f"{left} {sign} {right}").holds(SEEN)
    assert not read(f"{right} {sign} {left}").holds(SEEN)


@pytest.mark.parametrize("sign", ["<", "<=", ">", ">="])
def test_truths_are_not_less_or_greater(sign: str) -> None:
    assert not read(f"goal_achieved {sign} true").holds(SEEN)


def test_the_score_is_the_visit_s_or_what_was_judged_last() -> None:
    assert read("score == 0.25").holds(Seen(TASK, "success"))
    assert read("score == 0.5").holds(Seen(TASK, "success", 0.5))


@pytest.mark.parametrize("text", ["score < 1", "score >= 0", "score == 0", "score != 0"])
def test_a_score_that_nobody_gave_makes_every_comparison_false(text: str) -> None:
    assert not read(text).holds(Seen(TaskState(), "success"))
    assert read(f"not {text}").holds(Seen(TaskState(), "success"))


def test_a_goal_is_achieved_by_an_answer() -> None:
    assert read("goal_achieved and artifacts == 1").holds(Seen(ANSWERED, "success"))


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("", 1),
        ("score >", 8),
        ("score >= >= 1", 10),
        ("score 1", 7),
        ("scores > 1", 1),
        ("iteration < 2 and unknown", 19),
        ("score = 1", 7),
        ("1 < 2 < 3", 7),
        ("(score > 1", 11),
        ("score > 1)", 10),
        ("score", 1),
        ("domain", 1),
        ("not 1", 5),
        ("1 < 2 and 'x'", 11),
        ("score > 1 & true", 11),
        ("'open", 1),
        ("1.", 1),
        ("1e3 < 2", 1),
        ("and", 1),
        ("score >= __import__('os')", 10),
        ("len(facts) > 1", 1),
        ("facts.x > 1", 6),
        ("true \x85", 6),
        ("\u00a0true", 1),
    ],
)
def test_what_cannot_be_read_is_told_with_its_place(text: str, place: int) -> None:  # C125
    with pytest.raises(Unreadable) as caught:
        read(text)
    assert f"at {place}" in str(caught.value)


def test_size_and_depth_are_limited() -> None:
    deep = MAX_DEPTH - 1
    assert read("(" * deep + "true" + ")" * deep).holds(SEEN)
    assert read("not " * deep + "true").holds(SEEN) is (deep % 2 == 0)
    longest = "true" + " and true" * ((MAX_BYTES - 4) // 9)
    assert read(longest).holds(SEEN)
    for text in ("(" * (deep + 1) + "true" + ")" * (deep + 1), "not " * (deep + 1) + "true", longest + " and true"):
        with pytest.raises(Unreadable):
            read(text)


def test_every_name_can_be_read_and_has_its_kind() -> None:
    for name, meant in NAMES.items():
        value = meant.read(SEEN)
        assert isinstance(value, (int, float) if meant.kind is float else meant.kind), name
        assert meant.meaning


words = st.one_of(
    st.sampled_from(
        ["and", "or", "not", "(", ")", "==", "!=", "<", "<=", ">", ">=", "true", "false", "'x'", "0.5", "-3"]
    ),
    st.sampled_from(list(NAMES)),
)


@settings(max_examples=100, deadline=None)
@given(st.one_of(st.lists(words, max_size=14).map(" ".join), st.text(max_size=40)))
def test_whatever_can_be_read_has_a_truth_on_every_task(text: str) -> None:
    try:
        expression = read(text)
    except Unreadable:
        return
    for seen in (SEEN, Seen(TaskState(), "failed"), Seen(ANSWERED, "success", 1.0)):
        assert expression.holds(seen) in (True, False)
