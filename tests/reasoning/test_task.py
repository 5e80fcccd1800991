"""The task as a value: read and written, what visits add, what parallel visits add together, and its limits."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given as drawn
from hypothesis import settings
from hypothesis import strategies as st

from behest.v1.task_pb2 import (
    Action,
    ArtifactScore,
    Constraint,
    ConstraintStrength,
    Fact,
    Goal,
    Observation,
    Plan,
    PlanStep,
    PlanStepChange,
    Provenance,
    Reflection,
    StepStatus,
    Task,
    TaskArtifact,
    TaskArtifactKind,
    TaskContext,
    TaskDelta,
    TaskMetadata,
    TaskStep,
)
from behest.v1.usage_pb2 import Usage
from behestd.core.state import replace
from behestd.core.task import TaskState, extended, given, merged, message, of_message
from behestd.core.task_limits import (
    ARTIFACT_BYTES,
    CONSTRAINTS,
    CRITERIA,
    ENTRIES,
    LIST_BYTES,
    PLAN_BYTES,
    PLAN_STEPS,
    STEP_BYTES,
    TEXT_BYTES,
    cut,
)
from tests.reasoning.task_worlds import DELTAS, TASKS, families, unset, visited

PENDING = StepStatus.STEP_STATUS_PENDING
COMPLETED = StepStatus.STEP_STATUS_COMPLETED
FAILED = StepStatus.STEP_STATUS_FAILED
ANSWER = TaskArtifactKind.TASK_ARTIFACT_KIND_ANSWER
TEXT = TaskArtifactKind.TASK_ARTIFACT_KIND_TEXT
USAGE = Usage(
    input_tokens=9,
    output_tokens=4,
    cached_input_tokens=2,
    cache_write_tokens=3,
    reasoning_tokens=1,
    cost_micro_usd=70,
    attempts=1,
)
SOURCE = Provenance(node="inner/solve", visit=7, time=Timestamp(seconds=5, nanos=6), usage=USAGE, score=0.5)

WHOLE = Task(
    goal=Goal(description="Win.", success_criteria=["It is won."]),
    constraints=[Constraint(text="Fairly.", strength=ConstraintStrength.CONSTRAINT_STRENGTH_SOFT)],
    context=TaskContext(
        facts=[Fact(text="It is a game.", provenance=SOURCE)], domain="chess", input="e4", domain_provenance=SOURCE
    ),
    plan=Plan(rationale="So.", steps=[PlanStep(description="Open.", status=COMPLETED)], provenance=SOURCE),
    steps=[TaskStep(operator="solve", input="Open.", output="d4", status=COMPLETED, provenance=SOURCE)],
    observations=[Observation(source=1, content="e5", sequence=4, provenance=SOURCE)],
    actions=[Action(tool="move", input_json="{}", output="no", is_error=True, provenance=SOURCE)],
    reflections=[Reflection(content="Think.", revised_plan=True, provenance=SOURCE)],
    artifacts=[TaskArtifact(kind=ANSWER, title="t", content="c", artifact_id="art_1", provenance=SOURCE)],
    metadata=TaskMetadata(iteration=2, omitted=3),
)


def texts(state: TaskState) -> list[str]:
    """The facts of a task."""
    return [fact.text for fact in state.facts]


def saying(*facts: str, **fields: Any) -> TaskDelta:
    """What a visit adds that learnt these facts."""
    return TaskDelta(facts=[Fact(text=fact) for fact in facts], steps=[TaskStep(operator="reason")], **fields)


def planning(*steps: str, status: StepStatus.ValueType = PENDING) -> TaskDelta:
    """What a visit adds that made a plan."""
    return saying(plan=Plan(steps=[PlanStep(description=step, status=status) for step in steps]))


def statuses(state: TaskState) -> list[tuple[str, int]]:
    """The steps of a task's plan."""
    return [(step.description, step.status) for step in state.plan.steps] if state.plan is not None else []


BASE = of_message(Task(goal=Goal(description="Win.")))

# --- read and written ---


# C120
def test_every_field_of_a_task_comes_back() -> None:
    assert unset(WHOLE) == []
    assert message(of_message(WHOLE)) == WHOLE


# C120
@settings(max_examples=25, deadline=None, derandomize=True, database=None)
@drawn(TASKS)
def test_a_task_comes_back_as_it_was_written(task: Task) -> None:
    state = of_message(task)
    written = message(state)
    assert of_message(Task.FromString(written.SerializeToString())) == state
    numbers = [observation.sequence for observation in state.observations]
    assert numbers == sorted(set(numbers))
    assert all(number > 0 for number in numbers)
    assert state.iteration >= 1
    assert [seen.content for seen in written.observations] == [seen.content for seen in task.observations]


def test_observations_are_numbered_from_1_or_from_where_those_end_that_were_left_out() -> None:
    def numbers(*given_ones: int, omitted: int = 0) -> list[int]:
        seen = [Observation(sequence=number) for number in given_ones]
        state = of_message(Task(observations=seen, metadata=TaskMetadata(omitted=omitted)))
        return [observation.sequence for observation in state.observations]

    assert numbers(0, 0) == [1, 2]
    assert numbers(3, 1, omitted=2) == [3, 4]
    assert numbers(3, 4, omitted=1) == [1, 2]
    assert numbers(2**63 - 1) == [1]


def test_what_a_run_is_given_comes_from_none_of_its_visits() -> None:
    state = given(WHOLE)
    assert state.plan is not None
    assert state.domain_provenance is None
    held = (*state.facts, *state.steps, *state.observations, *state.actions, *state.reflections, state.plan)
    assert not any(entry.HasField("provenance") for entry in held)
    assert [artifact.provenance for artifact in state.artifacts] == [Provenance(score=0.5)]
    assert [fact.text for fact in state.facts] == ["It is a game."]
    many = Task(context=TaskContext(facts=[Fact(text=str(number)) for number in range(ENTRIES + 1)]))
    assert (len(given(many).facts), given(many).omitted) == (ENTRIES, 1)
    bare = Task(artifacts=[TaskArtifact(content="c")], context=TaskContext(facts=[Fact(text="f")]))
    assert given(bare) == of_message(bare)


def test_a_goal_is_achieved_by_an_answer_and_by_nothing_else() -> None:
    text = extended(BASE, saying(artifacts=[TaskArtifact(kind=TEXT, content="42")]), SOURCE)
    assert (text.is_achieved, text.answer) == (False, None)
    first = extended(text, saying(artifacts=[TaskArtifact(kind=ANSWER, content="42")]), SOURCE)
    last = extended(first, saying(artifacts=[TaskArtifact(kind=ANSWER, content="43")]), SOURCE)
    assert last.is_achieved
    assert last.answer is not None
    assert last.answer.content == "43"


# --- what a visit adds ---


# C120
def test_what_a_visit_adds_carries_where_it_comes_from() -> None:
    delta = TaskDelta(
        facts=[Fact(text="f")],
        domain="law",
        plan=Plan(rationale="r", steps=[PlanStep(description="s")]),
        steps=[TaskStep(operator="plan", input="i", output="o", status=COMPLETED)],
        observations=[Observation(source=2, content="seen")],
        actions=[Action(tool="t", input_json="{}", output="done", is_error=True)],
        reflections=[Reflection(content="so", revised_plan=True)],
        artifacts=[TaskArtifact(kind=TEXT, title="t", content="c", artifact_id="a")],
    )
    mark = Provenance(node=SOURCE.node, visit=SOURCE.visit, time=SOURCE.time)
    state = extended(BASE, delta, SOURCE)
    assert state == replace(
        BASE,
        facts=(Fact(text="f", provenance=mark),),
        domain="law",
        domain_provenance=mark,
        plan=Plan(rationale="r", steps=[PlanStep(description="s")], provenance=mark),
        # The usage and what the visit judged stand at its step alone, so that sums over a task are right.
        steps=(TaskStep(operator="plan", input="i", output="o", status=COMPLETED, provenance=SOURCE),),
        observations=(Observation(source=2, content="seen", sequence=1, provenance=mark),),
        actions=(Action(tool="t", input_json="{}", output="done", is_error=True, provenance=mark),),
        reflections=(Reflection(content="so", revised_plan=True, provenance=mark),),
        artifacts=(TaskArtifact(kind=TEXT, title="t", content="c", artifact_id="a", provenance=mark),),
    )
    assert state.score == 0.5
    assert message(BASE) == message(of_message(Task(goal=Goal(description="Win."))))


def test_what_says_itself_where_it_comes_from_keeps_that() -> None:
    own = Provenance(node="inner/look", visit=3, score=0.25)
    delta = TaskDelta(
        facts=[Fact(text="f", provenance=own)],
        plan=Plan(provenance=own),
        steps=[TaskStep(operator="o", provenance=own)],
        observations=[Observation(content="seen", provenance=own)],
        actions=[Action(tool="t", provenance=own)],
        reflections=[Reflection(content="so", provenance=own)],
        artifacts=[TaskArtifact(kind=TEXT, provenance=own)],
    )
    state = extended(BASE, delta, SOURCE)
    lists = (state.facts, state.steps, state.observations, state.actions, state.reflections, state.artifacts)
    assert [held[0].provenance for held in lists] == [own] * 6
    assert state.plan is not None
    assert state.plan.provenance == own


def test_criteria_and_constraints_are_added_once() -> None:
    fair = Constraint(text="Fairly.", strength=ConstraintStrength.CONSTRAINT_STRENGTH_HARD)
    soft = Constraint(text="Fairly.", strength=ConstraintStrength.CONSTRAINT_STRENGTH_SOFT)
    once = extended(BASE, TaskDelta(constraints=[fair], success_criteria=["a", "b"]), SOURCE)
    twice = extended(once, TaskDelta(constraints=[fair, soft], success_criteria=["b", "c"]), SOURCE)
    assert twice.constraints == (fair, soft)
    assert twice.goal == Goal(description="Win.", success_criteria=["a", "b", "c"])


def test_a_plan_is_replaced_then_changed_then_ordered() -> None:
    state = visited(BASE, planning("a", "b", "c"), 1)
    assert statuses(state) == [("a", PENDING), ("b", PENDING), ("c", PENDING)]
    assert state.next_step == 0
    changes = [PlanStepChange(index=0, status=COMPLETED), PlanStepChange(index=1, status=FAILED)]
    changed = visited(state, saying(plan_changes=changes, plan_order=[2, 0, 1]), 2)
    assert statuses(changed) == [("c", PENDING), ("a", COMPLETED), ("b", FAILED)]
    assert changed.next_step == 0
    done = visited(changed, saying(plan_changes=[PlanStepChange(index=0, status=COMPLETED)]), 3)
    assert done.next_step == 2
    assert visited(done, saying(plan_changes=[PlanStepChange(index=2, status=COMPLETED)]), 4).next_step is None
    assert statuses(visited(done, planning("d"), 5)) == [("d", PENDING)]


def test_changes_of_what_is_not_there_change_nothing() -> None:
    odd = saying(
        plan_changes=[PlanStepChange(index=9, status=COMPLETED), PlanStepChange(index=-1, status=COMPLETED)],
        plan_order=[7, 1, 1, -1],
        artifact_scores=[ArtifactScore(index=4, score=1)],
    )
    assert visited(BASE, odd, 1).plan is None
    state = visited(visited(BASE, planning("a", "b"), 1), odd, 2)
    assert statuses(state) == [("b", PENDING), ("a", PENDING)]
    assert state.artifacts == ()


def test_an_artifact_is_scored_in_its_place_and_a_new_one_keeps_its_score() -> None:
    two = [TaskArtifact(kind=TEXT, content="a"), TaskArtifact(kind=TEXT, content="b", provenance=Provenance(score=0.2))]
    state = visited(BASE, saying(artifacts=two), 1)
    scored = visited(state, saying(artifact_scores=[ArtifactScore(index=0, score=0.75)]), 2)
    assert [artifact.provenance.score for artifact in scored.artifacts] == [0.75, 0.2]
    assert [artifact.provenance.visit for artifact in scored.artifacts] == [1, 1]
    assert not state.artifacts[0].provenance.HasField("score")


def test_the_score_of_a_task_is_what_was_judged_last() -> None:
    assert BASE.score is None
    first = extended(BASE, saying(), Provenance(visit=1, score=0.25))
    assert extended(first, saying(), Provenance(visit=2)).score == 0.25
    assert extended(first, saying(), Provenance(visit=2, score=0.0)).score == 0.0


@settings(max_examples=25, deadline=None, derandomize=True, database=None)
@drawn(TASKS, st.lists(DELTAS, min_size=1, max_size=4))
def test_a_task_that_grows_keeps_what_it_has_and_numbers_observations_strictly(
    task: Task, deltas: list[TaskDelta]
) -> None:
    state = of_message(task)
    for visit, delta in enumerate(deltas, start=1):
        before, state = state, visited(state, delta, visit)
        assert state.facts[: len(before.facts)] == before.facts
        assert len(state.steps) == len(before.steps) + len(delta.steps)
        numbers = [observation.sequence for observation in state.observations]
        assert numbers == sorted(set(numbers))
        assert of_message(message(state)) == state


# --- what parallel visits add together ---


# C120
@settings(max_examples=25, deadline=None, derandomize=True, database=None)
@drawn(families())
def test_bringing_together_is_deterministic_and_changes_nothing_that_is_alone(family: list[TaskState]) -> None:
    together = merged(family)
    assert merged(family) == together
    assert merged([of_message(message(state)) for state in family]) == together
    for state in family:
        assert merged([state]) == state
        assert merged([state, state]) == state
        assert merged([state, of_message(message(state))]) == state


# C120
@settings(max_examples=25, deadline=None, derandomize=True, database=None)
@drawn(families())
def test_what_is_brought_together_holds_all_that_each_has_in_its_order(family: list[TaskState]) -> None:
    together = merged(family)
    numbers = [observation.sequence for observation in together.observations]
    assert numbers == sorted(set(numbers))
    for state in family:
        for name in ("facts", "steps", "actions", "reflections"):
            assert is_within(getattr(state, name), getattr(together, name))
        assert is_within(
            [seen.content for seen in state.observations], [seen.content for seen in together.observations]
        )
        assert set(state.goal.success_criteria) <= set(together.goal.success_criteria)
        assert together.iteration >= state.iteration
        # What has been brought in is there already.
        assert merged([together, state]) == together


@settings(max_examples=25, deadline=None, derandomize=True, database=None)
@drawn(families(most=4))
def test_bringing_together_at_once_or_one_by_one_is_the_same(family: list[TaskState]) -> None:
    one_by_one = family[0]
    for state in family[1:]:
        one_by_one = merged([one_by_one, state])
    assert merged(family) == one_by_one


def is_within(part: Any, whole: Any) -> bool:
    """Whether all of a part is in a whole, in its order."""
    rest = iter(whole)
    return all(any(held == other for other in rest) for held in part)


def test_the_order_is_that_of_the_first_then_what_the_second_has_beside_it() -> None:
    base = visited(BASE, saying("base"), 1)
    left, right = visited(base, saying("left"), 3), visited(base, saying("right"), 2)
    assert texts(merged([left, right])) == ["base", "left", "right"]
    assert texts(merged([right, left])) == ["base", "right", "left"]


def test_what_stands_before_something_in_both_stays_before_it() -> None:
    base = visited(visited(BASE, saying("old"), 1), saying("middle"), 2)
    without = replace(visited(base, saying("left"), 3), facts=visited(base, saying("left"), 3).facts[1:], omitted=1)
    right = visited(base, saying("right"), 4)
    together = merged([without, right])
    assert texts(together) == ["old", "middle", "left", "right"]
    assert together.omitted == 1


def test_the_same_words_of_two_visits_are_two_entries_and_of_one_visit_as_many_as_it_wrote() -> None:
    twice = visited(BASE, saying("same", "same"), 1)
    assert texts(merged([twice, visited(BASE, saying("same"), 2)])) == ["same"] * 3
    assert texts(merged([twice, replace(twice)])) == ["same"] * 2


def test_observations_that_meet_are_numbered_anew() -> None:
    base = visited(BASE, saying(observations=[Observation(content="base")]), 1)
    left = visited(base, saying(observations=[Observation(content="l1"), Observation(content="l2")]), 2)
    right = visited(base, saying(observations=[Observation(content="r")]), 3)
    found = [(seen.sequence, seen.content) for seen in merged([left, right]).observations]
    assert found == [(1, "base"), (2, "l1"), (3, "l2"), (4, "r")]


def test_the_plan_holds_that_took_the_place_of_the_other_whatever_the_order() -> None:
    base = visited(BASE, planning("old"), 1)
    revised, other = visited(base, planning("new"), 2), visited(base, saying("fact"), 3)
    assert statuses(merged([revised, other])) == statuses(merged([other, revised])) == [("new", PENDING)]
    unplanned = visited(BASE, saying("fact"), 4)
    assert statuses(merged([unplanned, revised])) == statuses(merged([revised, unplanned])) == [("new", PENDING)]


def test_of_plans_that_know_nothing_of_each_other_the_last_holds() -> None:
    base = visited(BASE, planning("old"), 1)
    left, right = visited(base, planning("left"), 3), visited(base, planning("right"), 2)
    assert statuses(merged([left, right])) == [("right", PENDING)]
    assert statuses(merged([right, left])) == [("left", PENDING)]


def test_no_step_of_a_plan_is_behind_what_another_says_of_it() -> None:
    base = visited(BASE, planning("a", "b", "c"), 1)
    first = visited(base, saying(plan_changes=[PlanStepChange(index=0, status=COMPLETED)]), 2)
    second = visited(base, saying(plan_changes=[PlanStepChange(index=1, status=FAILED)]), 3)
    assert statuses(merged([first, second])) == [("a", COMPLETED), ("b", FAILED), ("c", PENDING)]
    # Another order is another plan; what is done in the old one is done in it.
    ordered = visited(base, saying(plan_order=[2, 1, 0]), 4)
    assert statuses(merged([first, second, ordered])) == [("c", PENDING), ("b", PENDING), ("a", COMPLETED)]


def test_steps_of_the_same_words_are_told_by_their_order() -> None:
    base = visited(BASE, planning("again", "again"), 1)
    second = visited(base, saying(plan_changes=[PlanStepChange(index=1, status=COMPLETED)]), 2)
    assert statuses(merged([base, second])) == [("again", PENDING), ("again", COMPLETED)]


def test_a_failed_step_that_a_newer_plan_takes_up_again_is_not_failed() -> None:
    base = visited(BASE, planning("a", status=FAILED), 1)
    assert statuses(merged([visited(base, planning("a"), 2), visited(base, saying("x"), 3)])) == [("a", PENDING)]


def test_the_domain_holds_that_took_the_place_of_the_other() -> None:
    given_one = replace(BASE, domain="games")
    found = visited(given_one, saying(domain="chess"), 1)
    other = visited(given_one, saying("x"), 2)
    assert [merged(pair).domain for pair in ([found, other], [other, found])] == ["chess", "chess"]


def test_of_the_scores_of_an_artifact_the_highest_holds() -> None:
    base = visited(BASE, saying(artifacts=[TaskArtifact(kind=TEXT, content="a")]), 1)
    low = visited(base, saying(artifact_scores=[ArtifactScore(index=0, score=0.25)]), 2)
    high = visited(base, saying(artifact_scores=[ArtifactScore(index=0, score=0.75)]), 3)
    for family in ([low, high, base], [base, high, low]):
        assert [artifact.provenance.score for artifact in merged(family).artifacts] == [0.75]


# --- limits ---


def test_texts_that_are_too_long_are_cut_and_say_so() -> None:
    long = "ö" * ARTIFACT_BYTES
    delta = TaskDelta(
        facts=[Fact(text=long)],
        domain=long,
        constraints=[Constraint(text=long)],
        success_criteria=[long],
        plan=Plan(rationale=long, steps=[PlanStep(description=long)]),
        steps=[TaskStep(input=long, output=long)],
        observations=[Observation(content=long)],
        actions=[Action(input_json=long, output=long)],
        reflections=[Reflection(content=long)],
        artifacts=[TaskArtifact(kind=TEXT, title=long, content=long), TaskArtifact(kind=ANSWER, content=long)],
    )
    state = extended(BASE, delta, SOURCE)
    assert state.plan is not None
    sizes = {
        state.facts[0].text: TEXT_BYTES,
        state.constraints[0].text: PLAN_BYTES,
        state.goal.success_criteria[0]: PLAN_BYTES,
        state.plan.rationale: PLAN_BYTES,
        state.plan.steps[0].description: PLAN_BYTES,
        state.steps[0].input: STEP_BYTES,
        state.steps[0].output: STEP_BYTES,
        state.observations[0].content: TEXT_BYTES,
        state.actions[0].input_json: TEXT_BYTES,
        state.actions[0].output: TEXT_BYTES,
        state.reflections[0].content: TEXT_BYTES,
        state.artifacts[0].content: ARTIFACT_BYTES,
    }
    assert all(most - 8 <= len(text.encode()) <= most for text, most in sizes.items())
    assert state.facts[0].text.endswith(f"\n[{len(long.encode())} bytes, cut here]")
    # An answer is what the run gives.
    assert state.artifacts[1].content == long


@pytest.mark.parametrize("text", ["", "a" * 99, "a" * 100, "a" * 101, "ö" * 60, "\U0001f600" * 50])
def test_a_text_that_is_cut_fits_and_is_not_cut_again(text: str) -> None:
    once = cut(text, 100)
    assert len(once.encode()) <= 100
    assert (once == text) == (len(text.encode()) <= 100)
    assert cut(once, 100) == once


def test_of_a_list_that_is_too_long_the_newest_stay_and_the_others_are_counted() -> None:
    state = extended(BASE, saying(*(str(number) for number in range(ENTRIES + 5))), SOURCE)
    assert texts(state) == [str(number) for number in range(5, ENTRIES + 5)]
    assert state.omitted == 5
    again = extended(state, saying("last"), SOURCE)
    assert (texts(again)[0], texts(again)[-1], again.omitted) == ("6", "last", 6)


def test_of_a_list_whose_texts_are_too_long_together_the_newest_stay() -> None:
    each = LIST_BYTES // TEXT_BYTES
    long = "a" * TEXT_BYTES
    state = extended(BASE, saying(*([long] * (each + 2))), SOURCE)
    assert (len(state.facts), state.omitted) == (each, 2)


def test_observations_keep_their_numbers_when_older_ones_are_left_out() -> None:
    seen = [Observation(content=str(number)) for number in range(1, ENTRIES + 2)]
    state = extended(BASE, saying(observations=seen), SOURCE)
    assert [(first.sequence, first.content) for first in state.observations[:1]] == [(2, "2")]
    more = extended(state, saying(observations=[Observation(content="new")]), SOURCE)
    assert (more.observations[0].sequence, more.observations[-1].sequence) == (3, ENTRIES + 2)


def test_the_goal_constraints_the_plan_and_answers_are_never_left_out() -> None:
    answer = TaskArtifact(kind=ANSWER, content="a" * (LIST_BYTES + 1))
    steps = [PlanStep(description="s")] * (PLAN_STEPS + 1)
    many = [Constraint(text=str(number)) for number in range(CONSTRAINTS + 1)]
    criteria = [str(number) for number in range(CRITERIA + 1)]
    delta = saying(artifacts=[answer], plan=Plan(steps=steps), constraints=many, success_criteria=criteria)
    state = extended(BASE, delta, SOURCE)
    later = extended(state, saying(artifacts=[TaskArtifact(kind=TEXT, content="t")] * (ENTRIES + 1)), SOURCE)
    assert later.answer is not None
    assert later.answer.content == answer.content
    assert (len(later.artifacts), later.omitted) == (ENTRIES + 1, 1)
    # Of these the first stay, which those that follow were added to.
    assert [constraint.text for constraint in later.constraints] == [str(number) for number in range(CONSTRAINTS)]
    assert (later.plan is not None, len(later.goal.success_criteria)) == (True, CRITERIA)
    assert len(statuses(later)) == PLAN_STEPS


def test_what_is_brought_together_keeps_the_limits() -> None:
    base = extended(BASE, saying(*(f"base {number}" for number in range(ENTRIES))), Provenance(visit=1))
    left = extended(base, saying("l"), Provenance(visit=2))
    right = extended(base, saying("r"), Provenance(visit=3))
    together = merged([left, right])
    assert len(together.facts) == ENTRIES
    assert texts(together)[-2:] == ["l", "r"]
    assert together.omitted == 2
