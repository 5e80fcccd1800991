"""The operators that every graph has: each of the 25 writes exactly what its row says, and the rows are well made."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

import pytest

from behest.v1.graph_pb2 import Graph, GraphNode
from behest.v1.node_event_pb2 import NodeOutcome
from behest.v1.operator_pb2 import Operator, ReplyTarget, ToolUse
from behest.v1.task_pb2 import (
    Action,
    ArtifactScore,
    Fact,
    Goal,
    Observation,
    ObservationSource,
    Plan,
    PlanStep,
    PlanStepChange,
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
from behestd.core.task import of_message
from behestd.reasoning import prompt, reply
from behestd.reasoning.operators import OPERATORS, operator_of
from behestd.reasoning.reply import Result, Use
from behestd.tools.schema import Validators

PENDING = StepStatus.STEP_STATUS_PENDING
COMPLETED = StepStatus.STEP_STATUS_COMPLETED
CODE = TaskArtifactKind.TASK_ARTIFACT_KIND_CODE
TEXT = TaskArtifactKind.TASK_ARTIFACT_KIND_TEXT
DATA = TaskArtifactKind.TASK_ARTIFACT_KIND_DATA
ANSWER = TaskArtifactKind.TASK_ARTIFACT_KIND_ANSWER
TOOL = ObservationSource.OBSERVATION_SOURCE_TOOL
ENVIRONMENT = ObservationSource.OBSERVATION_SOURCE_ENVIRONMENT
SELF_INSPECTION = ObservationSource.OBSERVATION_SOURCE_SELF_INSPECTION
SUCCESS = NodeOutcome.NODE_OUTCOME_SUCCESS
FAILURE = NodeOutcome.NODE_OUTCOME_FAILURE

GOAL = "Cross the river."
START = of_message(
    Task(
        goal=Goal(description=GOAL),
        plan=Plan(
            rationale="It is deep.",
            steps=[
                PlanStep(description="Find wood.", status=COMPLETED),
                PlanStep(description="Build a raft."),
                PlanStep(description="Row."),
            ],
        ),
        artifacts=[
            TaskArtifact(kind=CODE, title="Find wood.", content="find()", provenance=Provenance(visit=1, score=0.25)),
            TaskArtifact(kind=TEXT, content="Logs are best."),
        ],
    )
)
LOOK = Use("look", '{"at": "river"}', "It is wide.")
SLIP = Use("swim", "{}", "too cold", is_error=True)
SEEN = Observation(source=TOOL, content='look({"at": "river"}): It is wide.')
SLIPPED = Observation(source=TOOL, content="swim({}) failed: too cold")


@dataclass(frozen=True)
class Case:
    """What an operator's model replies and its tools did, and what comes of it, the step's operator and reply apart."""

    name: str
    reply: str
    adds: dict[str, Any]
    about: str = GOAL
    uses: tuple[Use, ...] = ()
    output: str = ""
    """What the step says. Empty: the reply."""
    outcome: int = SUCCESS
    score: float | None = None
    id: str = ""


def made(kind: int, content: str, title: str = "") -> dict[str, Any]:
    """What is added by something that was made."""
    return {"artifacts": [TaskArtifact(kind=kind, title=title, content=content)]}  # type: ignore[arg-type]  # a kind


def learnt(content: str, *facts: str) -> dict[str, Any]:
    """What is added by something that was learnt."""
    return {"reflections": [Reflection(content=content)], "facts": [Fact(text=fact) for fact in facts]}


def pending(*steps: str) -> list[PlanStep]:
    """Steps of a plan that nobody has begun."""
    return [PlanStep(description=step, status=PENDING) for step in steps]


PLAN = json.dumps({"rationale": "It is short.", "steps": ["Build a bridge.", " Walk."]})
SOLVED = {"plan_changes": [PlanStepChange(index=1, status=COMPLETED)]}
VERDICT = json.dumps({"problems": ["It leaks.", "It sinks."], "passed": False})
LEAKS = "It did not pass:\n- It leaks.\n- It sinks."

CASES = (
    Case(
        "act",
        "",
        {
            "actions": [
                Action(tool="look", input_json='{"at": "river"}', output="It is wide."),
                Action(tool="swim", input_json="{}", output="too cold", is_error=True),
            ]
        },
        uses=(LOOK, SLIP),
        output='look({"at": "river"}): It is wide.\nswim({}) failed: too cold',
    ),
    Case(
        "act",
        "",
        {"actions": [Action(tool="swim", input_json="{}", output="too cold", is_error=True)]},
        uses=(SLIP,),
        output="swim({}) failed: too cold",
        outcome=FAILURE,
        id="act-in-vain",
    ),
    Case(
        "analyze", " The river is wide. \n", {"facts": [Fact(text="The river is wide.")]}, output="The river is wide."
    ),
    Case("answer", "By raft.", made(ANSWER, "By raft.")),
    Case("compose", "Logs, then a raft.", made(TEXT, "Logs, then a raft.")),
    Case(
        "decompose",
        PLAN,
        {"plan": Plan(rationale="It is short.", steps=pending("Build a bridge.", "Walk."))},
    ),
    Case(
        "diagnose",
        json.dumps({"facts": ["Water is in the raft."], "content": "It has a hole."}),
        learnt("It has a hole.", "Water is in the raft."),
    ),
    Case(
        "evaluate",
        json.dumps({"reason": "Logs float.", "score": 0.75}),
        {
            "artifact_scores": [ArtifactScore(index=1, score=0.75)],
            "reflections": [Reflection(content="Score 0.75: Logs float.")],
        },
        about="artifact 2",
        score=0.75,
    ),
    Case("explain", "A raft floats.", made(TEXT, "A raft floats.")),
    Case("generate", "Take a boat.", made(TEXT, "Take a boat.")),
    Case("generate", "```python\nrow()\n```", made(CODE, "row()\n"), id="generate-code"),
    Case(
        "hypothesize",
        '{"hypotheses":["There is a ford."]}',
        made(DATA, '{"hypotheses":["There is a ford."]}'),
    ),
    Case(
        "observe",
        "I see a river.",
        {"observations": [SEEN, SLIPPED]},
        uses=(LOOK, SLIP),
    ),
    Case(
        "observe",
        "No raft is built yet.",
        {"observations": [Observation(source=SELF_INSPECTION, content="No raft is built yet.")]},
        id="observe-without-tools",
    ),
    Case("optimize", "Dry logs are best.", made(TEXT, "Dry logs are best.")),
    Case("optimize", "```\nfind(dry=True)\n```", made(CODE, "find(dry=True)\n"), id="optimize-code"),
    Case("plan", PLAN, {"plan": Plan(rationale="It is short.", steps=pending("Build a bridge.", "Walk."))}),
    Case(
        "prioritize",
        json.dumps({"reason": "Rowing takes long.", "order": [1, 3, 2]}),
        {"plan_order": [0, 2, 1]},
        about="the plan of 3 steps",
    ),
    Case("reason", "Wood floats, so a raft does.", learnt("Wood floats, so a raft does.")),
    Case("reduce", "Raft.", made(TEXT, "Raft.")),
    Case("reflect", "We lost time.", learnt("We lost time.")),
    Case(
        "revise",
        json.dumps({"rationale": "Rafts are slow.", "steps": ["Find wood.", "Build a boat.", "Row."]}),
        {
            "plan": Plan(
                rationale="Rafts are slow.",
                steps=[PlanStep(description="Find wood.", status=COMPLETED), *pending("Build a boat.", "Row.")],
            ),
            "reflections": [Reflection(content="Rafts are slow.", revised_plan=True)],
        },
        about="the plan of 3 steps",
    ),
    Case(
        "search",
        "There is a bridge.",
        {"observations": [SEEN], "facts": [Fact(text="There is a bridge.")]},
        uses=(LOOK,),
    ),
    Case(
        "select",
        json.dumps({"reason": "It runs.", "choice": 1}),
        {
            "artifacts": [
                TaskArtifact(kind=CODE, title="Find wood.", content="find()", provenance=Provenance(score=0.25))
            ]
        },
        about="artifacts 1 to 2",
    ),
    Case(
        "simulate",
        "The raft tips over.",
        {"observations": [SEEN, Observation(source=ENVIRONMENT, content="The raft tips over.")]},
        uses=(LOOK,),
    ),
    Case("solve", "Tie logs.", {**made(TEXT, "Tie logs.", "Build a raft."), **SOLVED}, about="Build a raft."),
    Case(
        "solve",
        "```python\ntie()\n```",
        {**made(CODE, "tie()\n", "Build a raft."), **SOLVED},
        about="Build a raft.",
        id="solve-code",
    ),
    Case("synthesize", "Wood and water go together.", made(TEXT, "Wood and water go together.")),
    Case(
        "test",
        VERDICT,
        {"observations": [SEEN, SLIPPED], "reflections": [Reflection(content=LEAKS)]},
        about="artifact 2",
        uses=(LOOK, SLIP),
        outcome=FAILURE,
    ),
    Case(
        "test",
        json.dumps({"problems": [], "passed": True}),
        {"observations": [SEEN]},
        about="artifact 2",
        uses=(LOOK,),
        id="test-passed",
    ),
    Case("verify", VERDICT, {"reflections": [Reflection(content=LEAKS)]}, about="artifact 2", outcome=FAILURE),
    Case("verify", json.dumps({"problems": [], "passed": True}), {}, about="artifact 2", id="verify-passed"),
)


def validate(tool: Tool, text: str) -> str:
    """Check as the daemon does."""
    return Validators().arguments(tool, text)


def own(name: str) -> Operator:
    """An operator that every graph has."""
    found = operator_of(Graph(), name)
    assert found is not None
    return found


# C121
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id or case.name)
def test_an_operator_writes_exactly_what_it_is_for(case: Case) -> None:
    operator = own(case.name)
    if operator.tool_use == ToolUse.TOOL_USE_RESULTS:
        read = reply.read_uses(operator, "", case.uses, validate, START)
    else:
        read = reply.read(operator, prompt.schema(operator, GraphNode()), case.reply, validate, START)
    assert read.problem == ""
    step = TaskStep(operator=case.name, input=case.about, output=case.output or case.reply, status=COMPLETED)
    expected = Result(TaskDelta(steps=[step], **case.adds), case.outcome, case.score)  # type: ignore[arg-type]
    assert reply.result(operator, START, read, case.uses) == expected


# C121
def test_each_of_the_25_operators_has_a_case() -> None:
    assert len(OPERATORS) == 25
    assert {case.name for case in CASES} == {operator.name for operator in OPERATORS}


def test_solve_without_a_plan_does_the_whole_work_and_completes_no_step() -> None:
    bare = of_message(Task(goal=Goal(description=GOAL)))
    operator = own("solve")
    read = reply.read(operator, "", "Swim.", validate, bare)
    step = TaskStep(operator="solve", input=GOAL, output="Swim.", status=COMPLETED)
    assert reply.result(operator, bare, read, ()).delta == TaskDelta(steps=[step], **made(TEXT, "Swim."))


def test_operators_are_in_order_and_each_is_told_what_it_is_for() -> None:
    names = [operator.name for operator in OPERATORS]
    assert names == sorted(set(names))
    for operator in OPERATORS:
        assert re.fullmatch(r"[a-z0-9_]{1,64}", operator.name)
        assert operator.target != ReplyTarget.REPLY_TARGET_UNSPECIFIED
        assert " Writes " in operator.intent
        for text in (operator.intent, operator.prompt, operator.instructions):
            assert text.endswith(".")
            assert "  " not in text
        assert not operator.tool


def test_only_answer_answers() -> None:
    terminal = [operator.name for operator in OPERATORS if operator.target == ReplyTarget.REPLY_TARGET_ANSWER]
    assert terminal == ["answer"]


def test_five_operators_use_tools() -> None:
    uses = {operator.name: operator.tool_use for operator in OPERATORS if operator.tool_use}
    assert uses == {
        "act": ToolUse.TOOL_USE_RESULTS,
        "observe": ToolUse.TOOL_USE_OPTIONAL,
        "search": ToolUse.TOOL_USE_REPORT,
        "simulate": ToolUse.TOOL_USE_REPORT,
        "test": ToolUse.TOOL_USE_REPORT,
    }
    assert {operator.name for operator in OPERATORS if operator.HasField("max_turns")} == set(uses)


def test_the_operators_with_a_schema_are_these_and_each_is_strict() -> None:
    schemas = {operator.name: operator.reply_schema_json for operator in OPERATORS if operator.reply_schema_json}
    expected = "decompose diagnose evaluate hypothesize plan prioritize revise select test verify"
    assert sorted(schemas) == expected.split()
    for name, text in schemas.items():
        schema = json.loads(text)
        assert schema["additionalProperties"] is False
        assert schema["required"] == list(schema["properties"])
        assert all(of["description"] for of in schema["properties"].values())
        Validators().check_answer(name, text)


def test_a_graphs_own_operator_stands_before_one_of_the_same_name() -> None:
    mine = Operator(name="plan", prompt="Mine.", target=ReplyTarget.REPLY_TARGET_STEP)
    graph = Graph(operators=[mine])
    assert operator_of(graph, "plan") == mine
    assert operator_of(graph, "solve") == own("solve")
    assert operator_of(graph, "none") is None
