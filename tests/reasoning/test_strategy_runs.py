"""Each strategy as a run: its model is scripted by operator, the rest is real, and its visits are known before."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
from collections.abc import Callable, Iterator, Sequence

import pytest

from behest.v1.message_pb2 import Role
from behest.v1.run_pb2 import NodeState, NodeVisit, Reasoning, Run
from behest.v1.run_state_pb2 import RunState
from behest.v1.task_pb2 import TaskArtifactKind
from behest.v1.tool_pb2 import SideEffect, ToolPolicy
from behestd.reasoning.strategies import STRATEGIES
from behestd.tools.catalog import Catalog
from behestd.tools.function import Functions
from behestd.tools.schema import Validators
from tests.daemons import serve
from tests.reasoning.mind import Says, thinking

SECONDS = 40
LOOK = '/tool look {"at": "the log"}'
PASSED, FAILED = '/json {"problems": [], "passed": true}', '/json {"problems": ["not yet"], "passed": false}'
ANALYZED: Says = {"analyze": "/say it is a sum"}


def tools(validators: Validators) -> Catalog:
    """A catalog with one tool."""

    def look(at: str) -> str:
        """Look at something."""
        return f"{at} is fine"

    catalog = Catalog(validators)
    Functions(catalog).tool(look, policy=ToolPolicy(side_effect=SideEffect.SIDE_EFFECT_PURE))
    return catalog


async def ran(says: Says, strategy: str, **numbers: int) -> Reasoning:
    """Run a strategy to its end, which must be an answer, with no more visits than those that are told."""
    async with thinking(says, tools=tools) as (served, _), asyncio.timeout(SECONDS):
        handle = served.client.stream("What is 17 + 23?", strategy=strategy, strategy_parameters=numbers)
        result = await handle.result()
        run = await handle.get()
    return checked(run, result.text)


def checked(run: Run, said: str) -> Reasoning:
    """Check what holds at the end of every strategy."""
    assert run.state == RunState.RUN_STATE_COMPLETED
    task = run.reasoning.task
    (answer,) = (made for made in task.artifacts if made.kind == TaskArtifactKind.TASK_ARTIFACT_KIND_ANSWER)
    assert answer.content == said
    assert answer.provenance.node == "answer"
    assert {visit.state for visit in run.reasoning.visits} == {NodeState.NODE_STATE_COMPLETED}
    assert [visit.started.visit for visit in run.reasoning.visits] == list(range(1, len(run.reasoning.visits) + 1))
    return run.reasoning


def nodes(reasoning: Reasoning) -> list[str]:
    """The nodes, in the order in which they began."""
    return [visit.started.node for visit in reasoning.visits]


def inputs(reasoning: Reasoning, node: str) -> set[str]:
    """The nodes whose tasks the only visit of a node started from."""
    by_number = {visit.started.visit: visit.started.node for visit in reasoning.visits}
    (visit,) = (visit for visit in reasoning.visits if visit.started.node == node)
    return {by_number[number] for number in visit.started.inputs}


def in_turn(*scripts: str) -> Callable[[str], str]:
    """One script after the other, the last one again and again."""
    left: Iterator[str] = itertools.chain(scripts, itertools.repeat(scripts[-1]))
    return lambda shown: next(left)


def planned(*steps: str) -> str:
    """A plan."""
    return f"/json {json.dumps({'rationale': 'so', 'steps': list(steps)})}"


# --- one thing after another ---


async def test_chain_of_thought_thinks_and_answers() -> None:  # C130
    says = {"reason": "/say 17 + 23 is 40", "answer": lambda shown: f"/say {'40' if '17 + 23 is 40' in shown else '?'}"}
    reasoning = await ran(says, "chain_of_thought")
    assert nodes(reasoning) == ["think", "answer"]
    assert reasoning.task.artifacts[-1].content == "40"


async def test_react_acts_until_a_thought_says_that_it_can_answer() -> None:  # C130, C122
    says = {
        "think": in_turn(FAILED, FAILED, PASSED),
        "act": LOOK,
        "observe": "/say as expected",
        "answer": "/say forty",
    }
    reasoning = await ran(says, "react")
    assert nodes(reasoning) == ["think", "act", "observe", "think", "act", "observe", "think", "answer"]
    assert [action.output for action in reasoning.task.actions] == ["the log is fine"] * 2
    assert inputs(reasoning, "answer") == {"think"}


async def test_react_answers_with_what_it_has_when_its_steps_are_used_up() -> None:
    says = {"think": FAILED, "act": LOOK, "observe": "/say nothing new", "answer": "/say I do not know"}
    reasoning = await ran(says, "react", steps=2)
    assert nodes(reasoning) == ["think", "act", "observe", "think", "act", "observe", "answer"]


async def test_plan_and_solve_carries_out_each_step_of_its_plan_once() -> None:  # C130
    says = {
        **ANALYZED,
        "plan": planned("add the tens", "add the ones", "add both"),
        "solve": in_turn("/say 30", "/say 10", "/say 40"),
        "answer": "/say 40",
    }
    reasoning = await ran(says, "plan_and_solve")
    assert nodes(reasoning) == ["understand", "plan", "solve", "solve", "solve", "answer"]
    assert [made.content for made in reasoning.task.artifacts] == ["30", "10", "40", "40"]
    assert [step.status for step in reasoning.task.plan.steps] == [3, 3, 3]


async def test_plan_and_solve_leaves_what_goes_beyond_its_steps() -> None:
    says = {**ANALYZED, "plan": planned("a", "b", "c"), "solve": "/say done", "answer": "/say partly"}
    reasoning = await ran(says, "plan_and_solve", steps=2)
    assert nodes(reasoning) == ["understand", "plan", "solve", "solve", "answer"]
    assert [step.status for step in reasoning.task.plan.steps] == [3, 3, 1]


async def test_least_to_most_solves_each_problem_with_the_solutions_of_those_before() -> None:  # C130
    says: Says = {
        "decompose": planned("the ones", "the whole"),
        "solve": lambda shown: "/say it is 40" if "it is 10" in shown else "/say it is 10",
        "answer": "/say 40",
    }
    reasoning = await ran(says, "least_to_most")
    assert nodes(reasoning) == ["decompose", "solve", "solve", "answer"]
    assert [made.content for made in reasoning.task.artifacts] == ["it is 10", "it is 40", "40"]


# --- trying again ---


async def test_reflexion_makes_its_next_attempt_with_its_reflection_in_mind() -> None:  # C130
    says: Says = {
        "solve": lambda shown: "/say 40" if "carry the ten" in shown else "/say 30",
        "verify": in_turn(FAILED, PASSED),
        "reflect": "/say carry the ten",
        "answer": "/say 40",
    }
    reasoning = await ran(says, "reflexion")
    assert nodes(reasoning) == ["attempt", "evaluate", "reflect", "attempt", "evaluate", "answer"]
    assert [made.content for made in reasoning.task.artifacts] == ["30", "40", "40"]


async def test_reflexion_answers_with_its_last_attempt_when_none_passes() -> None:
    says = {"solve": "/say 30", "verify": FAILED, "reflect": "/say look again", "answer": "/say 30, perhaps"}
    reasoning = await ran(says, "reflexion", attempts=2)
    assert nodes(reasoning) == ["attempt", "evaluate", "reflect"] * 2 + ["answer"]


async def test_a_fault_is_looked_for_again_when_its_fix_does_not_hold() -> None:  # C130, C122
    says: Says = {
        "observe": LOOK,
        "hypothesize": '/json {"hypotheses": ["the cache is stale"]}',
        "test": lambda shown: (
            f"{LOOK} /next {FAILED if 'latest fix' in shown and 'look deeper' not in shown else PASSED}"
        ),
        "diagnose": '/json {"facts": ["it is old"], "content": "the cache is stale"}',
        "solve": in_turn("/say clear it", "/say expire it"),
        "reflect": "/say look deeper",
        "answer": "/say expire it",
    }
    reasoning = await ran(says, "diagnose_and_fix")
    attempt = ["hypothesize", "experiment", "diagnose", "fix", "check"]
    assert nodes(reasoning) == ["observe", *attempt, "reflect", *attempt, "answer"]
    looked = 1 + 2 * 2
    assert sum(seen.content.endswith("the log is fine") for seen in reasoning.task.observations) == looked


# --- side by side ---


def artifacts_in(shown: str) -> list[str]:
    """The artifacts that a model is shown, in their order."""
    found: list[str] = []
    for text in re.findall(r"^\d+\. \(text, from [^)]*\) (.*)$", shown, re.MULTILINE):
        same = re.fullmatch(r"the same as artifact (\d+)", text)
        found.append(found[int(same[1]) - 1] if same else text)
    return found


async def test_self_consistency_answers_with_what_most_samples_came_to() -> None:  # C130
    def vote(shown: str) -> str:
        results = artifacts_in(shown)
        most = max(results, key=results.count)
        return f'/json {{"reason": "most", "choice": {results.index(most) + 1}}}'

    says: Says = {
        **ANALYZED,
        "solve": in_turn("/say sum 40", "/say sum 30", "/say sum 40"),
        "select": vote,
        "answer": lambda shown: f"/say {artifacts_in(shown)[-1]}",
    }
    reasoning = await ran(says, "self_consistency", samples=3)
    samples = ["sample_1", "sample_2", "sample_3"]
    assert nodes(reasoning) == ["understand", *samples, "vote", "answer"]
    assert inputs(reasoning, "vote") == set(samples)
    assert reasoning.task.artifacts[-1].content == "sum 40"


async def test_each_candidate_is_evaluated_alone_and_the_best_is_selected() -> None:  # C130
    def evaluate(shown: str) -> str:
        (candidate,) = artifacts_in(shown)
        return f'/json {{"reason": "it is {candidate}", "score": 0.{candidate.split()[1]}}}'

    def select(shown: str) -> str:
        return f'/json {{"reason": "best", "choice": {artifacts_in(shown).index("draft 7") + 1}}}'

    says: Says = {
        **ANALYZED,
        "generate": in_turn("/say draft 3", "/say draft 7", "/say draft 5"),
        "evaluate": evaluate,
        "select": select,
        "answer": lambda shown: f"/say {artifacts_in(shown)[-1]}",
    }
    reasoning = await ran(says, "generate_evaluate_select", candidates=3)
    assert sorted(nodes(reasoning)) == sorted(
        [
            "understand",
            *(f"{node}_{number}" for node in ("candidate", "evaluate") for number in (1, 2, 3)),
            "select",
            "answer",
        ]
    )
    assert inputs(reasoning, "evaluate_2") == {"candidate_2"}
    assert inputs(reasoning, "select") == {"evaluate_1", "evaluate_2", "evaluate_3"}
    assert reasoning.task.artifacts[-1].content == "draft 7"


async def test_tree_of_thought_goes_on_from_the_best_thought_of_each_level_alone() -> None:  # C130
    levels = itertools.count(1)

    def evaluate(shown: str) -> str:
        return f'/json {{"reason": "so", "score": 0.{int(artifacts_in(shown)[-1].split()[1]):02}}}'

    says: Says = {
        **ANALYZED,
        "generate": lambda shown: f"/say thought {next(levels)}",
        "evaluate": evaluate,
        "answer": lambda shown: f"/say {', '.join(artifacts_in(shown))}",
    }
    reasoning = await ran(says, "tree_of_thought", breadth=3, depth=2)
    assert len(nodes(reasoning)) == 1 + 2 * 2 * 3 + 1
    assert reasoning.task.artifacts[-1].content == "thought 3, thought 6"
    assert all(len(visit.started.inputs) == 1 for visit in visits_of(reasoning, "thought_2_"))


def visits_of(reasoning: Reasoning, prefix: str) -> Sequence[NodeVisit]:
    """The visits of the nodes whose ids begin so."""
    return [visit for visit in reasoning.visits if visit.started.node.startswith(prefix)]


async def test_debaters_answer_each_other_and_the_judge_hears_them_all() -> None:  # C130
    def speak(shown: str) -> str:
        (me,) = re.findall(r"You are debater (\d) of 2", shown)
        heard = "".join(text.split()[1] for text in artifacts_in(shown))
        return f"/say claim {me}{heard}"

    says: Says = {
        **ANALYZED,
        "generate": speak,
        "synthesize": lambda shown: f"/say heard {' and '.join(artifacts_in(shown))}",
        "answer": "/say forty",
    }
    reasoning = await ran(says, "debate", debaters=2, rounds=2)
    assert nodes(reasoning) == ["understand", "round_1_1", "round_1_2", "round_2_1", "round_2_2", "judge", "answer"]
    assert [made.content for made in reasoning.task.artifacts[:-1]] == [
        *("claim 1", "claim 2", "claim 112", "claim 212"),
        "heard claim 1 and claim 2 and claim 112 and claim 212",
    ]


# --- without a script ---


@pytest.mark.parametrize("strategy", [strategy.name for strategy in STRATEGIES])
async def test_each_strategy_comes_to_an_answer_with_the_model_that_is_built_in(strategy: str) -> None:  # C130
    async with serve(tools=tools) as served, asyncio.timeout(SECONDS):
        handle = served.client.stream("What is 17 + 23?", strategy=strategy)
        result = await handle.result()
        run = await handle.get()
    checked(run, result.text)
    assert result.message.role == Role.ROLE_ASSISTANT
