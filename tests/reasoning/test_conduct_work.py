"""How nodes of graph runs work, on the stage: what models are offered, what tools do, what limits and failures end."""

from __future__ import annotations

import pytest
from google.protobuf.duration_pb2 import Duration

from behest.v1.chat_pb2 import Sampling, ToolChoiceMode
from behest.v1.definition_pb2 import Limits, PinnedModel
from behest.v1.graph_pb2 import Branch, FanInMode, GraphNode, Loop, Termination
from behest.v1.model_pb2 import ModelLimits, Price
from behest.v1.node_event_pb2 import NodeEvent
from behest.v1.operator_pb2 import Operator, ReplyTarget
from behest.v1.run_event_pb2 import ForkedFrom
from behest.v1.task_pb2 import StepStatus
from behestd.core.limits import Excess
from behestd.core.signals import CallTool, ModelBroke, ToolEnded
from behestd.core.task import TaskState
from tests.core.stage import NON_IDEMPOTENT, PERMANENT, T0, TRANSIENT, result, tool
from tests.reasoning.graph_stage import GraphStage, Reply, as_json, pinned, task
from tests.reasoning.test_conduct import FAILED, chain, edge, fan, models, node, says

AUTO = ToolChoiceMode.TOOL_CHOICE_MODE_AUTO
REQUIRED = ToolChoiceMode.TOOL_CHOICE_MODE_REQUIRED
NONE = ToolChoiceMode.TOOL_CHOICE_MODE_NONE
LOOK = (("look", '{"at": "it"}'),)
BY_TOOL = Operator(name="by_tool", tool="look", target=ReplyTarget.REPLY_TARGET_VERDICT, reply_schema_json="{}")


def task_of(stage: GraphStage, number: int = -1) -> TaskState:
    """What a visit starts from, the last one if nothing is said."""
    assert stage.run.nodes is not None
    return stage.run.nodes.visits[number].task


def alone(operator: str, **fields: object) -> GraphNode:
    return GraphNode(id="work", operator=operator, **fields)  # type: ignore[arg-type]  # fields of a node


# --- what is offered ---


def offered(stage: GraphStage) -> tuple[int | None, bool, list[str]]:
    """What the model that is asked may do: its tool choice, whether it has a form, and its tools."""
    chat = stage.window(models(stage)[0]).chat
    choice = chat.tool_choice.mode if chat.HasField("tool_choice") else None
    return choice, chat.HasField("response_format"), [one.name for one in chat.tools]


def turns_of(operator: str, replies: list[Reply], **fields: object) -> tuple[GraphStage, list[tuple[int | None, bool]]]:
    """What a node's model is offered before each of its replies, and before the node after it."""
    graph = chain(alone(operator, **fields), node("answer", "answer"))
    given = iter([*replies, "done"])
    stage = GraphStage(pinned(graph, tool("look")), lambda visit, turn: next(given))
    found = []
    while not stage.run.is_ended:
        if models(stage) and stage.visit_of(models(stage)[0]).number == 1:
            choice, form, tools = offered(stage)
            assert tools == ["look"]
            found.append((choice, form))
        stage.end(stage.effects[0])
    return stage, found


@pytest.mark.parametrize(
    ("operator", "replies", "expected"),
    [
        ("act", [LOOK], [(REQUIRED, False)]),
        ("act", ["no", LOOK], [(REQUIRED, False), (REQUIRED, False)]),
        ("observe", ["I see"], [(AUTO, False)]),
        ("observe", [LOOK, "I see"], [(AUTO, False), (NONE, False)]),
        ("search", [LOOK, LOOK[:1], "found"], [(REQUIRED, False), (AUTO, False), (AUTO, False)]),
        ("test", [LOOK, as_json(problems=[], passed=True)], [(REQUIRED, False), (AUTO, True)]),
        ("test", [LOOK, "hm", "PASS"], [(REQUIRED, False), (AUTO, True), (AUTO, True)]),
    ],
    ids=["act", "act_that_talks", "observe", "observe_with_tool", "search", "test", "test_without_form"],
)
def test_what_a_model_is_offered_in_each_turn(  # C122 C123
    operator: str, replies: list[Reply], expected: list[tuple[int, bool]]
) -> None:
    stage, found = turns_of(operator, replies)
    assert found == expected
    assert stage.state == "COMPLETED"


def test_the_last_turn_with_tools_is_followed_by_one_in_which_it_must_reply() -> None:
    stage, found = turns_of("test", [LOOK, as_json(problems=["slow"], passed=False)], max_turns=1)
    assert found == [(REQUIRED, False), (NONE, True)]
    assert stage.state == "COMPLETED"


def test_a_node_without_tools_is_offered_none_and_asked_for_its_form() -> None:
    graph = chain(node("plan", "plan"), node("answer", "answer"))
    stage = GraphStage(pinned(graph, tool("look")))
    assert offered(stage) == (None, True, [])


def test_what_a_node_says_of_its_calls_is_heeded() -> None:
    sampling = Sampling(temperature=0.25)
    work = alone("act", model="m/own", sampling=sampling, tools=["look"], timeout=Duration(seconds=7), prompt="Do it.")
    definition = pinned(
        chain(work, node("answer", "answer")),
        tool("look"),
        tool("leap"),
        models=["m/a"],
        sampling=Sampling(temperature=0.9, max_output_tokens=50),
        node_models=[PinnedModel(endpoint="m/own", limits=ModelLimits(context_window_tokens=9_000))],
    )
    stage = GraphStage(definition, says)
    effect = models(stage)[0]
    chat = stage.window(effect).chat
    assert (effect.endpoint, effect.deadline_ns - stage.now_ns) == ("m/own", 7_000_000_000)
    assert [one.name for one in chat.tools] == ["look"]
    assert (chat.sampling.temperature, chat.sampling.max_output_tokens) == (0.25, 50)
    assert "Do it." in chat.messages[-1].parts[0].text.text
    stage.end(effect)
    stage.end(stage.effects[0])
    assert models(stage)[0].endpoint == "m/a"
    assert stage.play().state == "COMPLETED"


def test_a_node_has_its_own_number_of_attempts() -> None:
    graph = chain(node("a", max_attempts=1), node("answer", "answer"))
    stage = GraphStage(pinned(graph))
    effect = models(stage)[0]
    stage.do(ModelBroke(effect.step, effect.attempt, TRANSIENT, "PROVIDER_UNAVAILABLE", "later"))
    assert (stage.state, stage.reason) == ("FAILED", "REASONING_NODE_FAILED")
    assert stage.last("node_failed").reason == "PROVIDER_UNAVAILABLE"


# --- replies and failures ---


def test_a_reply_that_is_no_json_is_read_leniently() -> None:  # C123
    graph = chain(node("plan", "plan"), node("answer", "answer"))
    stage = GraphStage(pinned(graph), lambda visit, turn: "1. begin\n2. end" if visit.number == 1 else "done").play()
    plan = task_of(stage).plan
    assert plan is not None
    assert [step.description for step in plan.steps] == ["begin", "end"]
    assert "answer_rejected" not in stage.kinds


def test_a_branch_on_failure_is_taken_after_a_node_that_failed_and_no_other() -> None:  # C126
    ends = [
        edge("a", "well", branch=Branch(condition="BRANCH_CONDITION_SUCCESS")),
        edge("a", "badly", branch=Branch(condition=FAILED)),
    ]
    graph = chain(node("a"), edges=ends)
    graph.nodes.extend([node("well", "answer"), node("badly", "answer")])
    stage = GraphStage(pinned(graph), lambda visit, turn: None if visit.number == 1 else says(visit, turn)).play()
    assert stage.visited == ["a", "badly"]
    assert [step.status for step in task_of(stage).steps] == [StepStatus.STEP_STATUS_FAILED]
    assert stage.text == "badly says 1"


def test_the_same_calls_over_and_over_fail_the_node_and_not_the_run() -> None:
    graph = chain(
        alone("search", max_turns=9),
        node("answer", "answer"),
        edges=[edge("work", "answer", branch=Branch(condition=FAILED))],
    )
    stage = GraphStage(pinned(graph, tool("look")), lambda visit, turn: LOOK if visit.number == 1 else "done").play()
    assert stage.last("node_failed").reason == "RUN_DOOM_LOOP"
    assert stage.last("doom_loop_detected").visit == 1
    assert stage.state == "COMPLETED"


# --- tools that do the work of nodes ---


def by_tool(does: str, *, side_effect: int = 1) -> GraphStage:
    graph = chain(alone("by_tool"), node("answer", "answer"), operators=[BY_TOOL])
    return GraphStage(pinned(graph, tool("look")), says, does=lambda name, arguments: does)


def test_a_tool_does_a_node_and_its_result_is_the_reply() -> None:  # C125
    stage = by_tool(as_json(passed=False, problems=["slow"]))
    assert models(stage) == []
    assert "find out" in stage.last("tool_started").arguments_json
    stage.play()
    assert [entry.content for entry in task_of(stage).reflections] == ["It did not pass:\n- slow"]
    assert stage.state == "COMPLETED"


def test_a_result_of_a_tool_without_its_form_fails_the_node() -> None:  # C125
    stage = by_tool("who knows?").play()
    assert stage.last("node_failed").reason == "REASONING_REPLY_INVALID"
    assert stage.reason == "REASONING_NODE_FAILED"


def test_an_error_of_a_tool_fails_the_node_with_what_it_said() -> None:  # C125
    stage = by_tool("")
    (call,) = stage.run.calls
    stage.do(ToolEnded(call.call.id, call.attempt, result(call, "it is broken", is_error=True)))
    failed = stage.last("node_failed")
    assert failed.reason == "TOOL_FAILED"
    assert "it is broken" in failed.delta.steps[0].output


# --- limits ---

CAUGHT = [edge("b", "answer", branch=Branch(condition=FAILED))]
BRANCHING = chain(node("a"), node("b"), node("answer", "answer"), edges=CAUGHT)


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        (Limits(max_total_tokens=170), "RUN_BUDGET"),
        (Limits(max_cost_micro_usd=160), "RUN_BUDGET"),
        (Limits(max_events=8), "RUN_HISTORY_LIMIT"),
    ],
    ids=["tokens", "cost", "events"],
)
def test_what_the_run_may_not_pass_ends_it_although_a_branch_waits_for_failures(  # C128
    limits: Limits, reason: str
) -> None:
    limits.max_steps = 100
    price = Price(input_micro_usd=1_000_000, output_micro_usd=1_000_000)
    stage = GraphStage(pinned(BRANCHING, limits=limits, prices=[price]), says).play()
    assert (stage.state, stage.reason) == ("FAILED", reason)
    assert "node_failed" not in stage.kinds


def test_a_budget_of_others_ends_the_run_and_a_fault_of_a_model_still_fails_its_node_alone() -> None:
    spent = Excess("QUOTA_EXCEEDED", "max_total_tokens", 10, 20, "namespace")
    stage = GraphStage(pinned(fan(2, 2)), says, given={"refusal": None})
    stage.end(models(stage)[0])
    stage.givens["refusal"] = spent
    effect = models(stage)[0]
    stage.do(ModelBroke(effect.step, effect.attempt, PERMANENT, "PROVIDER_REQUEST_INVALID", "no"))
    assert stage.last("node_failed").reason == "PROVIDER_REQUEST_INVALID"
    assert stage.state == "RUNNING"
    stage.end(models(stage)[0])
    assert (stage.state, stage.reason) == ("FAILED", "QUOTA_EXCEEDED")


def test_calls_beyond_their_number_end_the_run() -> None:  # C128
    graph = chain(node("a", "act"), node("b", "act"), node("answer", "answer"), edges=CAUGHT)
    stage = GraphStage(pinned(graph, tool("look"), limits=Limits(max_steps=9, max_tool_calls=1)), says).play()
    assert (stage.state, stage.reason) == ("FAILED", "RUN_BUDGET")
    assert stage.kinds.count("tool_started") == 1


def test_what_is_set_aside_for_nodes_at_work_counts_against_the_budget() -> None:
    stage = GraphStage(pinned(fan(3, 3), limits=Limits(max_steps=9, max_total_tokens=320)), says)
    stage.end(models(stage)[0])
    assert (stage.state, stage.reason) == ("FAILED", "RUN_BUDGET")
    assert stage.kinds.count("model_requested") - stage.kinds.count("model_superseded") == 1


def test_a_run_out_of_time_is_timed_out_and_all_nodes_are_stopped() -> None:  # C128
    stage = GraphStage(pinned(fan(3, 3)), says)
    stage.end(models(stage)[0])
    stage.wait(3_601)
    assert (stage.state, stage.reason) == ("TIMED_OUT", "RUN_DEADLINE_EXCEEDED")
    assert stage.kinds.count("model_superseded") == 3


def test_a_graph_begins_again_at_its_loop_start_until_there_is_an_answer() -> None:  # C128
    graph = chain(node("a"), node("b"))
    graph.nodes.append(node("answer", "answer"))
    graph.edges.append(edge("b", "answer", branch=Branch(condition=5, expression="iteration >= 3")))
    graph.loop_start = "b"
    stage = GraphStage(pinned(graph), says).play()
    assert stage.visited == ["a", "b", "b", "b", "answer"]
    assert stage.state == "COMPLETED"
    assert task_of(stage).iteration == 3


@pytest.mark.parametrize("way", ["loop", "loop_start"])
def test_more_rounds_than_the_graph_may_have_fail_the_run(way: str) -> None:  # C128
    graph = chain(node("a"), node("b"), termination=Termination(max_iterations=3))
    graph.nodes.append(node("answer", "answer"))
    graph.edges.append(edge("b", "answer", branch=Branch(condition=FAILED)))
    if way == "loop":
        graph.edges.append(edge("b", "a", loop=Loop(max_iterations=100)))
    else:
        graph.loop_start = "a"
    stage = GraphStage(pinned(graph), says).play()
    assert (stage.state, stage.reason) == ("FAILED", "REASONING_ITERATION_LIMIT")
    assert stage.visited.count("b") == 3


# --- forks ---


def forked(stage: GraphStage, events: int) -> GraphStage:
    """A fork of a run from after so many events of its log."""
    nodes = []
    for event, _ in stage.log[:events]:
        kind = event.WhichOneof("payload") or ""
        if kind.startswith("node_"):
            payload = {kind.removeprefix("node_"): getattr(event, kind)}
            nodes.append(NodeEvent(time=event.record_time, **payload))
    source = ForkedFrom(nodes=nodes)
    return GraphStage(stage.definition, stage.says, task=task(), forked_from=source)


def test_a_fork_goes_on_from_the_middle_and_does_again_what_was_at_work() -> None:  # C131
    stage = GraphStage(pinned(fan(3, 3, FanInMode.FAN_IN_MODE_ALL)), says)
    stage.end(models(stage)[0])
    stage.end(models(stage)[1])
    fork = forked(stage, len(stage.log))
    assert [fork.visit_of(effect).started.node for effect in models(fork)] == ["n0", "n2"]
    stage.play()
    fork.play()
    assert fork.text == stage.text
    assert [step.output for step in task_of(fork).steps] == [step.output for step in task_of(stage).steps]
    assert fork.kinds.count("node_started") == 1


def test_a_fork_does_the_work_of_a_tool_anew_beside_models() -> None:  # C131
    graph = fan(3, 3)
    graph.nodes[1].operator = "by_tool"
    graph.operators.append(BY_TOOL)
    does = as_json(passed=True, problems=[])
    stage = GraphStage(pinned(graph, tool("look", NON_IDEMPOTENT)), says, does=lambda name, arguments: does)
    stage.end(models(stage)[0])
    fork = forked(stage, len(stage.log))
    fork.does = stage.does
    assert len([effect for effect in fork.effects if isinstance(effect, CallTool)]) == 1
    assert fork.play(lambda effects: effects[-1]).state == "COMPLETED"


def test_times_in_a_fork_are_those_of_its_source() -> None:
    stage = GraphStage(pinned(chain(node("a"), node("answer", "answer"))), says)
    stage.end(models(stage)[0])
    fork = forked(stage, len(stage.log))
    assert fork.run.nodes is not None
    first = fork.run.nodes.visits[0]
    assert (first.start_ns, first.end_ns) == (T0, T0)
