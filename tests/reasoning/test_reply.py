"""Replies: what is in its form, what is nearly, what could mean two things, and what becomes of each."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from behest.v1.graph_pb2 import Graph
from behest.v1.node_event_pb2 import NodeOutcome
from behest.v1.operator_pb2 import Operator, ReplyTarget, ToolUse
from behest.v1.task_pb2 import (
    Action,
    Constraint,
    ConstraintStrength,
    Fact,
    Goal,
    Observation,
    ObservationSource,
    Plan,
    PlanStep,
    Provenance,
    Reflection,
    StepStatus,
    Task,
    TaskArtifact,
    TaskArtifactKind,
    TaskDelta,
    TaskStep,
)
from behest.v1.tool_pb2 import Tool
from behestd.core.task import extended, of_message
from behestd.core.task_limits import ARTIFACT_BYTES, PLAN_STEPS, STEP_BYTES, TEXT_BYTES
from behestd.reasoning import reply
from behestd.reasoning.operators import OPERATORS, operator_of
from behestd.reasoning.reply import Read, Use
from behestd.tools.schema import Validators

COMPLETED = StepStatus.STEP_STATUS_COMPLETED
FAILED = StepStatus.STEP_STATUS_FAILED
TEXT = TaskArtifactKind.TASK_ARTIFACT_KIND_TEXT
CODE = TaskArtifactKind.TASK_ARTIFACT_KIND_CODE
ANSWER = TaskArtifactKind.TASK_ARTIFACT_KIND_ANSWER
START = of_message(
    Task(
        goal=Goal(description="Win."),
        plan=Plan(steps=[PlanStep(description=text) for text in ("a", "b", "c")]),
        artifacts=[TaskArtifact(kind=TEXT, content=str(number)) for number in range(1, 4)],
    )
)
BARE = of_message(Task(goal=Goal(description="Win.")))
VALIDATORS = Validators()
ANY = '{"type": "object"}'


def validate(tool: Tool, text: str) -> str:
    """Check as the daemon does."""
    return VALIDATORS.arguments(tool, text)


def own(name: str) -> Operator:
    """An operator that every graph has."""
    found = operator_of(Graph(), name)
    assert found is not None
    return found


def read(name: str, text: str) -> Read:
    """Read the reply of an operator that every graph has."""
    operator = own(name)
    return reply.read(operator, operator.reply_schema_json, text, validate, START)


def custom(target: str, schema_json: str = "", **fields: Any) -> Operator:
    """An operator of a graph."""
    kind = ReplyTarget.Value(f"REPLY_TARGET_{target}")
    return Operator(name="own", prompt="Do.", target=kind, reply_schema_json=schema_json, **fields)


def written(operator: Operator, text: str, *uses: Use) -> TaskDelta:
    """What an operator of a graph writes, its step apart."""
    found = reply.read(operator, operator.reply_schema_json, text, validate, START)
    assert found.problem == ""
    delta = reply.result(operator, START, found, uses).delta
    assert [(step.operator, step.status) for step in delta.steps] == [("own", COMPLETED)]
    fields = {field.name: value for field, value in delta.ListFields() if field.name != "steps"}
    return TaskDelta(**fields)


# --- what means one thing ---

READ: list[tuple[str, str, Any]] = [
    ("plan", '```json\n{"rationale": "r", "steps": ["a", "b"]}\n```', {"rationale": "r", "steps": ["a", "b"]}),
    ("plan", 'So be it: {"rationale": "r", "steps": ["a"]} Good?', {"rationale": "r", "steps": ["a"]}),
    ("plan", '{"steps": ["a"]}', {"rationale": "", "steps": ["a"]}),
    ("plan", '["a", "b"]', {"rationale": "", "steps": ["a", "b"]}),
    ("plan", '{"steps": [{"step": 1, "description": "a"}, {"title": "b"}]}', {"rationale": "", "steps": ["a", "b"]}),
    ("plan", '{"rationale": "r", "steps": ["a"], "note": "more"}', {"rationale": "r", "steps": ["a"]}),
    ("plan", "1. a\n2. b", {"rationale": "", "steps": ["a", "b"]}),
    ("plan", "Because.\n\n1) a\n2) b\n\nThat is all.", {"rationale": "Because.", "steps": ["a", "b"]}),
    ("plan", "- a\n- b\n  - detail\n\n- c", {"rationale": "", "steps": ["a", "b\n- detail", "c"]}),
    ("plan", "**1. Look.** Well.\n**2. Leap.**", {"rationale": "", "steps": ["Look. Well.", "Leap."]}),
    ("plan", "### Step 1: Look\nWell.\n\n### Step 2: Leap", {"rationale": "", "steps": ["Look\nWell.", "Leap"]}),
    (
        "plan",
        "It takes\n3.14 hours:\n1.Look\n2.Leap",
        {"rationale": "It takes\n3.14 hours:", "steps": ["Look", "Leap"]},
    ),
    ("plan", "1. a\n- detail\n2. b\n- more", {"rationale": "", "steps": ["a\n- detail", "b\n- more"]}),
    (
        "plan",
        "1. a\n\nMore.\n\n2. b\n\n  Indented.\n\nEnd.",
        {"rationale": "", "steps": ["a\n\nMore.", "b\n\nIndented."]},
    ),
    ("plan", "- a\n- b\nThat is all.", {"rationale": "", "steps": ["a", "b"]}),
    ("plan", "1. a\n1. b", {"rationale": "", "steps": ["a", "b"]}),
    ("decompose", "* a\n* b", {"rationale": "", "steps": ["a", "b"]}),
    ("revise", "• a", {"rationale": "", "steps": ["a"]}),
    ("prioritize", '{"reason": "r", "order": [3, 1, 2]}', {"reason": "r", "order": [3, 1, 2]}),
    ("prioritize", '{"order": ["3", "step 1", 2.0]}', {"reason": "", "order": [3, 1, 2]}),
    ("prioritize", "[2, 1, 3]", {"reason": "", "order": [2, 1, 3]}),
    ("prioritize", "3, 1, 2", {"reason": "3, 1, 2", "order": [3, 1, 2]}),
    ("prioritize", "Order: 3 > 1 > 2.", {"reason": "Order: 3 > 1 > 2.", "order": [3, 1, 2]}),
    ("prioritize", "Step 2, then step 1 and 3", {"reason": "Step 2, then step 1 and 3", "order": [2, 1, 3]}),
    (
        "prioritize",
        "1. Step 2: b\n2. Step 3: c\n3. Step 1: a",
        {"reason": "1. Step 2: b\n2. Step 3: c\n3. Step 1: a", "order": [2, 3, 1]},
    ),
    ("select", '{"reason": "r", "choice": "2"}', {"reason": "r", "choice": 2}),
    ("select", '{"choice": "artifact 3"}', {"reason": "", "choice": 3}),
    ("select", "2", {"reason": "", "choice": 2}),
    ("select", "I pick #2!", {"reason": "I pick #2!", "choice": 2}),
    ("select", "I choose 2.", {"reason": "I choose 2.", "choice": 2}),
    ("select", "It runs.\n\nArtifact 2.", {"reason": "It runs.\n\nArtifact 2.", "choice": 2}),
    ("select", "Artifact 2.", {"reason": "Artifact 2.", "choice": 2}),
    ("select", "I choose artifact 2 over artifact 1.", {"reason": "I choose artifact 2 over artifact 1.", "choice": 2}),
    ("select", "1 is weak.\n\n**Choice: 3**", {"reason": "1 is weak.\n\n**Choice: 3**", "choice": 3}),
    ("evaluate", '{"reason": "r", "score": 1}', {"reason": "r", "score": 1}),
    ("evaluate", '{"reason": "r", "score": 85}', {"reason": "r", "score": 0.85}),
    ("evaluate", '{"score": "8/10"}', {"reason": "", "score": 0.8}),
    ("evaluate", "0.5", {"reason": "", "score": 0.5}),
    ("evaluate", "**0.5**", {"reason": "**0.5**", "score": 0.5}),
    ("evaluate", "Score: 0.5. Fair.", {"reason": "Score: 0.5. Fair.", "score": 0.5}),
    ("evaluate", "Solid.\n\n7/10", {"reason": "Solid.\n\n7/10", "score": 0.7}),
    ("evaluate", "Score: 0.8 (0 to 1)", {"reason": "Score: 0.8 (0 to 1)", "score": 0.8}),
    ("evaluate", "Rating - 80 percent", {"reason": "Rating - 80 percent", "score": 0.8}),
    ("evaluate", "I give it 4 out of 5.", {"reason": "I give it 4 out of 5.", "score": 0.8}),
    ("evaluate", "**Score:** 90%", {"reason": "**Score:** 90%", "score": 0.9}),
    ("evaluate", "100", {"reason": "", "score": 1.0}),
    ("verify", '{"passed": "yes"}', {"problems": [], "passed": True}),
    ("verify", '{"verdict": "FAIL", "problems": ["p"]}', {"problems": ["p"], "passed": False}),
    ("verify", "true", {"problems": [], "passed": True}),
    ("verify", "Passed: no", {"problems": [], "passed": False}),
    ("verify", "PASS", {"problems": [], "passed": True}),
    ("verify", "**Passed.** All is well.", {"problems": [], "passed": True}),
    ("verify", "FAIL: it leaks", {"problems": ["FAIL: it leaks"], "passed": False}),
    ("verify", "- it leaks\n- it sinks\n\nVerdict: no", {"problems": ["it leaks", "it sinks"], "passed": False}),
    ("verify", "It leaks.\n\nFailed", {"problems": ["It leaks."], "passed": False}),
    ("test", "Result: PASS.", {"problems": [], "passed": True}),
    ("hypothesize", "1. a\n2. b", {"hypotheses": ["a", "b"]}),
    ("hypothesize", '["a"]', {"hypotheses": ["a"]}),
    ("diagnose", "It is the cable.", {"facts": [], "content": "It is the cable."}),
]


# C123
@pytest.mark.parametrize(("name", "text", "value"), READ, ids=lambda value: repr(value)[:48])
def test_what_means_one_thing_is_read(name: str, text: str, value: Any) -> None:
    found = read(name, text)
    assert found.problem == ""
    assert found.value == value
    assert json.loads(found.text) == value


# --- what does not ---

UNREAD = [
    ("plan", ""),
    ("plan", " \n"),
    ("plan", "I would look, then leap."),
    ("plan", '{"rationale": "r", "steps": []}'),
    ("plan", '{"rationale": "r", "steps": ["a", " "]}'),
    ("plan", '{"rationale": "r", "steps": ["a",]}'),
    ("plan", '{"rationale": "r", "steps": "a"}'),
    ("plan", '{"steps": [1]}'),
    ("plan", '{"steps": [{"number": 1}]}'),
    ("plan", "1. a\n3. b"),
    ("plan", "1. a\n2. b\n\nOr:\n\n1. c\n2. d"),
    ("plan", "1. a\n2."),
    ("plan", "Thoughts:\n- x\n- y\n\nPlan:\n1. a\n2. b"),
    ("plan", "1. a\n2. b\n\nRisks:\n- x"),
    ("plan", "- a\n- b\n\nRisks:\n- x"),
    ("plan", "- a\n- b\nRisks:\n- x"),
    ("plan", "1. x\n2. y\n\nPlan:\n1. a\n2. b"),
    ("plan", "\n".join(f"{number}. s" for number in range(1, PLAN_STEPS + 2))),
    ("plan", '{"steps": ["a"], "steps": ["b"]}'),
    ("prioritize", "1, 2"),
    ("prioritize", "1, 2, 2"),
    ("prioritize", "1, 2, 3, 4"),
    ("prioritize", '{"order": [1, 2, true]}'),
    ("prioritize", '{"order": "first"}'),
    ("prioritize", '{"order": 1}'),
    ("prioritize", "First b, then a."),
    ("prioritize", "1. b\n2. a\n3. c"),
    ("select", "Artifact 1 or artifact 2."),
    ("select", "Artifact 2 is worse."),
    ("select", "I would not choose artifact 2."),
    ("select", "I choose 1 or 2."),
    ("select", "I choose artifact 1 and artifact 2."),
    ("select", "I select 2 of them."),
    ("select", "None."),
    ("select", "4"),
    ("select", "0"),
    ("select", "1.5"),
    ("select", '{"choice": 1.5}'),
    ("select", '{"choice": true}'),
    ("select", '{"choice": 1e999}'),
    ("select", '{"choice": 1' + "0" * 5000 + "}"),
    ("select", '{"reason": "r", "choice": 9}'),
    ("evaluate", "8"),
    ("evaluate", "Score: 5"),
    ("evaluate", "-1"),
    ("evaluate", "120%"),
    ("evaluate", "101"),
    ("evaluate", "It is 20% faster and passes 9/10 tests."),
    ("evaluate", "Score (0-1): high"),
    ("evaluate", "Score: 0-1"),
    ("evaluate", "On a score of 1 to 10: good"),
    ("evaluate", "Score: -1"),
    ("evaluate", "Score: 6/10\nScore: 8/10"),
    ("evaluate", "Score: 7/3"),
    ("evaluate", "11/10"),
    ("evaluate", "On 3/4/2026 it was good."),
    ("evaluate", "Good."),
    ("evaluate", '{"reason": "r", "score": NaN}'),
    ("evaluate", '{"reason": "r", "score": true}'),
    ("evaluate", '{"reason": "r", "score": null}'),
    ("verify", "Maybe."),
    ("verify", "Yes, there are problems."),
    ("verify", "No problems found."),
    ("verify", "PASS\nFAIL"),
    ("verify", "Fail? No, it passed."),
    ("verify", "Result: no problems"),
    ("verify", '{"passed": true, "passed": false}'),
    ("verify", '{"passed": true, "verdict": "FAIL"}'),
    ("verify", '{"passed": 1}'),
    ("verify", '{"passed": true'),
    ("verify", '{"problems": [""], "passed": false}'),
    ("hypothesize", "There may be a ford."),
    ("hypothesize", '{"hypotheses": "There is a ford."}'),
    ("diagnose", '{"content": "c", "facts": ['),
    ("diagnose", '{"content": " ", "facts": []}'),
    ("answer", " "),
    ("reason", ""),
    ("plan", "[" * 100_000),
]


# C123
@pytest.mark.parametrize(("name", "text"), UNREAD, ids=lambda value: repr(value)[:48])
def test_what_is_malformed_or_could_mean_two_things_is_a_problem(name: str, text: str) -> None:
    found = read(name, text)
    assert found.value is None
    assert found.problem


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(
    st.sampled_from([operator for operator in OPERATORS if operator.tool_use != ToolUse.TOOL_USE_RESULTS]),
    st.text() | st.from_regex(r'[{\["]?[a-z0-9 ,.:/%#*-]{0,20}[\]}"]?\n?[-1-9. a-z]{0,20}', fullmatch=True),
)
def test_whatever_is_replied_is_read_or_told(operator: Operator, text: str) -> None:
    found = reply.read(operator, operator.reply_schema_json, text, validate, START)
    assert (found.value is None) == bool(found.problem)
    if not found.problem:
        extended(START, reply.result(operator, START, found, ()).delta, Provenance(node="n", visit=1))


def test_json_that_is_not_strict_is_a_problem_without_a_schema_too() -> None:
    for text in ('{"passed": false, "problems": ["\\ud800"]}', '{"passed": false, "n": 1' + "0" * 5000 + "}"):
        found = reply.read(custom("VERDICT"), "", text, validate, START)
        assert found.value is None
        assert found.problem


def test_an_artifact_is_not_chosen_and_steps_are_not_ordered_where_there_are_none() -> None:
    for name, text in (("select", '{"reason": "r", "choice": 1}'), ("prioritize", '{"reason": "r", "order": []}')):
        operator = own(name)
        found = reply.read(operator, operator.reply_schema_json, text, validate, BARE)
        assert found.value is None
        assert "there is no" in found.problem


def test_what_is_wrong_with_a_reply_is_told_by_its_place() -> None:
    assert "/score" in read("evaluate", '{"reason": "r", "score": "good"}').problem
    assert "0 to 1" in read("evaluate", '{"reason": "r", "score": 7}').problem
    assert "from 1 to 3" in read("select", '{"reason": "r", "choice": 9}').problem


# --- operators of graphs ---


# C124
@pytest.mark.parametrize(
    ("target", "text", "needed"),
    [
        ("PLAN", "1. a\n2. b", ""),
        ("PLAN", '{"steps": ["a"]}', ""),
        ("PLAN", "a", "numbered list"),
        ("REVISED_PLAN", "a", "numbered list"),
        ("PLAN_ORDER", "b", "2, 1, 3"),
        ("SELECTION", "none", "one artifact"),
        ("SCORE", "good", "0 to 1"),
        ("VERDICT", "good", "PASS or FAIL"),
        ("FACTS", "good", ""),
    ],
)
def test_without_a_schema_the_text_must_say_what_the_target_needs(target: str, text: str, needed: str) -> None:
    found = reply.read(custom(target), "", text, validate, START)
    assert (needed in found.problem) if needed else not found.problem


# C124
def test_each_target_takes_text_of_an_operator_of_a_graph() -> None:
    assert written(custom("STEP"), "Said.") == TaskDelta()
    assert written(custom("FACTS"), "- a\n- b") == TaskDelta(facts=[Fact(text="- a\n- b")])
    plan = Plan(rationale="r", steps=[PlanStep(description="x", status=StepStatus.STEP_STATUS_PENDING)])
    assert written(custom("PLAN"), "r\n1. x") == TaskDelta(plan=plan)
    revised = TaskDelta(
        plan=Plan(steps=plan.steps), reflections=[Reflection(content="The plan was revised.", revised_plan=True)]
    )
    assert written(custom("REVISED_PLAN"), "1. x") == revised
    assert written(custom("PLAN_ORDER"), "3, 2, 1") == TaskDelta(plan_order=[2, 1, 0])
    assert written(custom("REFLECTION"), "So.") == TaskDelta(reflections=[Reflection(content="So.")])
    assert written(custom("SELECTION"), "2") == TaskDelta(artifacts=[TaskArtifact(kind=TEXT, content="2")])
    passed = written(custom("VERDICT"), "PASS")
    assert passed == TaskDelta()
    failed = reply.read(custom("VERDICT"), "", "FAIL", validate, START)
    result = reply.result(custom("VERDICT"), START, failed, ())
    assert [reflection.content for reflection in result.delta.reflections] == ["It did not pass."]
    assert result.outcome == NodeOutcome.NODE_OUTCOME_FAILURE
    assert written(custom("ANSWER"), "```\n42\n```").artifacts[0].content == "```\n42\n```"


# C124
def test_each_target_takes_json_of_an_operator_of_a_graph() -> None:
    facts = {
        "facts": ["f"],
        "domain": "law",
        "success_criteria": ["c"],
        "constraints": ["hard", {"text": "soft", "strength": "soft"}, {"text": "bare"}],
    }
    assert written(custom("FACTS", ANY), json.dumps(facts)) == TaskDelta(
        facts=[Fact(text="f")],
        domain="law",
        success_criteria=["c"],
        constraints=[
            Constraint(text="hard", strength=ConstraintStrength.CONSTRAINT_STRENGTH_HARD),
            Constraint(text="soft", strength=ConstraintStrength.CONSTRAINT_STRENGTH_SOFT),
            Constraint(text="bare", strength=ConstraintStrength.CONSTRAINT_STRENGTH_HARD),
        ],
    )
    assert written(custom("FACTS", ANY), '{"facts": []}') == TaskDelta()
    assert written(custom("REFLECTION", ANY), '{"content": "So.", "facts": ["f"]}') == TaskDelta(
        reflections=[Reflection(content="So.")], facts=[Fact(text="f")]
    )
    data = '{"any": [1]}'
    assert written(custom("STEP", ANY), data) == TaskDelta()
    artifact = TaskArtifact(kind=TaskArtifactKind.TASK_ARTIFACT_KIND_DATA, content=data)
    assert written(custom("ARTIFACT", ANY), data) == TaskDelta(artifacts=[artifact])
    assert written(custom("ANSWER", ANY), data) == TaskDelta(artifacts=[TaskArtifact(kind=ANSWER, content=data)])
    seen = Observation(source=ObservationSource.OBSERVATION_SOURCE_SELF_INSPECTION, content=data)
    assert written(custom("OBSERVATIONS", ANY), data) == TaskDelta(observations=[seen])
    solution = written(custom("SOLUTION", ANY), data)
    assert [(made.kind, made.title) for made in solution.artifacts] == [(artifact.kind, "a")]


# C124
@pytest.mark.parametrize(
    ("target", "text"),
    [
        ("FACTS", '{"known": ["f"]}'),
        ("FACTS", '{"facts": [1]}'),
        ("FACTS", '{"facts": [], "domain": 1}'),
        ("FACTS", '{"facts": [], "constraints": "c"}'),
        ("FACTS", '{"facts": [], "constraints": [{"text": "c", "strength": "very"}]}'),
        ("FACTS", '{"facts": [], "success_criteria": [""]}'),
        ("REFLECTION", '{"facts": []}'),
        ("PLAN", "{}"),
        ("PLAN_ORDER", "{}"),
        ("SELECTION", "{}"),
        ("SCORE", "{}"),
        ("VERDICT", "{}"),
        ("ANSWER", "[1]"),
        ("ANSWER", "text"),
        ("STEP", "{"),
    ],
)
def test_a_schema_that_asks_for_less_than_the_target_needs_does_not_let_it_pass(target: str, text: str) -> None:
    found = reply.read(custom(target), ANY, text, validate, START)
    assert found.value is None
    assert found.problem


def test_lists_are_read_into_the_only_list_that_a_schema_asks_for() -> None:
    ideas = {"ideas": {"type": "array", "items": {"type": "string"}}}
    one = json.dumps({"type": "object", "properties": ideas, "required": ["ideas"]})
    found = reply.read(custom("ARTIFACT"), one, "- a\n- b", validate, START)
    assert found.value == {"ideas": ["a", "b"]}
    two = json.dumps({"type": "object", "properties": ideas | {"more": ideas["ideas"]}, "required": ["ideas"]})
    assert reply.read(custom("ARTIFACT"), two, "- a\n- b", validate, START).value is None
    assert reply.read(custom("FACTS"), ANY, "- a\n- b", validate, START).value == {"facts": ["a", "b"]}
    assert reply.read(custom("FACTS"), ANY, '["a"]', validate, START).value == {"facts": ["a"]}
    assert reply.read(custom("FACTS"), ANY, "a", validate, START).value == {"facts": ["a"]}


@pytest.mark.parametrize(
    "schema",
    [
        '{"type": ["object", "null"], "properties": {"steps": true, "note": {"type": ["string", "null"]}}}',
        '{"properties": {"steps": {"type": "array", "items": true}}, "required": ["steps"]}',
    ],
)
def test_unusual_schemas_are_read_as_well(schema: str) -> None:
    assert reply.read(custom("PLAN"), schema, "- a", validate, START).value == {"steps": ["a"]}
    assert reply.read(custom("ARTIFACT"), schema, "- a", validate, START).value is None


# C124
def test_what_a_tool_does_that_is_the_operator_goes_where_its_target_says() -> None:
    acted = written(custom("ACTIONS", tool="robot"), "done")
    assert acted == TaskDelta(actions=[Action(tool="robot", output="done")])
    seen = written(custom("OBSERVATIONS", tool="camera"), "a river")
    source = ObservationSource.OBSERVATION_SOURCE_TOOL
    assert seen == TaskDelta(observations=[Observation(source=source, content="a river")])
    assert written(custom("ACTIONS"), "nothing") == TaskDelta()


def test_results_of_tools_are_read_where_their_target_is_not_what_tools_did() -> None:
    uses = [Use("look", "{}", "1. a"), Use("look", "{}", "2. b")]
    operator = custom("PLAN", tool_use=ToolUse.TOOL_USE_RESULTS)
    assert reply.read_uses(operator, "", uses, validate, START).value == {"rationale": "", "steps": ["a", "b"]}
    assert reply.read_uses(operator, "", uses[1:], validate, START).problem
    assert reply.read_uses(custom("ACTIONS"), "", uses, validate, START) == Read("")


# --- what is written ---


def test_a_failed_visit_leaves_the_failed_step_alone() -> None:
    delta = reply.failure(own("plan"), START, "I would look.", "not in its form")
    step = TaskStep(operator="plan", input="Win.", output="not in its form\nI would look.", status=FAILED)
    assert delta == TaskDelta(steps=[step])
    assert reply.failure(own("plan"), START, "", "no model").steps[0].output == "no model"


def test_what_is_written_keeps_the_limits_of_a_task() -> None:
    long = "ö" * ARTIFACT_BYTES
    use = Use("look", long, long)
    acted = reply.result(own("act"), START, Read(""), [use]).delta
    searched = written(custom("FACTS", tool_use=ToolUse.TOOL_USE_REPORT), long, use)
    made = written(custom("ARTIFACT"), long)
    failed = reply.failure(own("plan"), START, long, "why")
    texts = [
        (acted.actions[0].input_json, TEXT_BYTES),
        (acted.actions[0].output, TEXT_BYTES),
        (acted.steps[0].output, STEP_BYTES),
        (searched.observations[0].content, TEXT_BYTES),
        (searched.facts[0].text, TEXT_BYTES),
        (made.artifacts[0].content, ARTIFACT_BYTES),
        (failed.steps[0].output, STEP_BYTES),
    ]
    assert all(len(text.encode()) <= most for text, most in texts)
    assert written(custom("ANSWER"), long).artifacts[0].content == long


@pytest.mark.parametrize(
    ("text", "kind", "content"),
    [
        ("```python\na\n```", CODE, "a\n"),
        ("````\n```\na\n```\n````", CODE, "```\na\n```\n"),
        ("```markdown\n# a\n```", TEXT, "# a\n"),
        ("```python\na\n```\nDone.", TEXT, None),
        ("```\na\n```\n```\nb\n```", TEXT, None),
        ("a", TEXT, None),
    ],
)
def test_one_fence_of_code_alone_is_code(text: str, kind: int, content: str | None) -> None:
    made = written(custom("ARTIFACT"), text).artifacts[0]
    assert (made.kind, made.content) == (kind, text if content is None else content)


def test_an_answer_that_is_chosen_is_no_answer() -> None:
    task = of_message(Task(artifacts=[TaskArtifact(kind=ANSWER, content="42", artifact_id="art_1")]))
    operator = own("select")
    found = reply.read(operator, "", "1", validate, task)
    artifacts = reply.result(operator, task, found, ()).delta.artifacts
    assert list(artifacts) == [TaskArtifact(kind=TEXT, content="42", artifact_id="art_1")]


def test_a_score_without_an_artifact_is_that_of_the_visit_alone() -> None:
    operator = own("evaluate")
    found = reply.read(operator, "", '{"score": 0.5}', validate, BARE)
    result = reply.result(operator, BARE, found, ())
    assert result.score == 0.5
    assert not result.delta.artifact_scores
    assert not result.delta.reflections


def test_a_verdict_that_passes_with_problems_tells_them() -> None:
    found = read("verify", '{"problems": ["p"], "passed": true}')
    result = reply.result(own("verify"), START, found, ())
    assert result.outcome == NodeOutcome.NODE_OUTCOME_SUCCESS
    assert [reflection.content for reflection in result.delta.reflections] == ["It passed:\n- p"]


def test_looking_with_tools_that_all_fail_has_the_outcome_failure() -> None:
    use = Use("look", "{}", "dark", is_error=True)
    result = reply.result(own("observe"), START, Read("Dark."), [use])
    assert result.outcome == NodeOutcome.NODE_OUTCOME_FAILURE
    # What is found out without them is no failure of the search.
    search = reply.result(own("search"), START, Read("Nothing."), [use])
    assert search.outcome == NodeOutcome.NODE_OUTCOME_SUCCESS
