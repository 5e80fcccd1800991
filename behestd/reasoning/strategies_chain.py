"""Strategies that do one thing after another: think, act, plan, solve. Pure.

Above: `strategies`. Below: `strategies_parts`.
"""

from __future__ import annotations

import json

from behest.v1.graph_pb2 import Graph
from behest.v1.operator_pb2 import Operator, ReplyTarget
from behestd.reasoning.strategies_parts import (
    FAILURE,
    PLAN_DONE,
    SUCCESS,
    Numbers,
    Recipe,
    again,
    branch,
    chain,
    graph,
    node,
    parameter,
    recipe,
)

_STEP_BY_STEP = (
    "Think about the goal step by step: one inference at a time, each from what is given or from the steps before it,"
    " with every calculation written out. Go on until nothing is left between you and the answer."
)
_THINK = Operator(
    name="think",
    intent=(
        "Thinks one step further, and says whether that is enough to answer. Writes the thought as a reflection while"
        " it is not; its outcome is whether it is."
    ),
    prompt=(
        "Think one step further. Say what follows from what has been done and observed so far, what is still missing,"
        " and which one action would bring it. If nothing is missing, the goal can be answered: then pass."
    ),
    instructions="You take turns between thinking and acting. You do not guess what an action could show.",
    reply_schema_json=json.dumps(
        {
            "type": "object",
            "properties": {
                "problems": {
                    "type": "array",
                    "items": {"type": "string"},
                    "description": "The thought: what follows, what is missing, what to do next. Empty when it passes.",
                },
                "passed": {"type": "boolean", "description": "Whether the goal can be answered from what is known."},
            },
            "required": ["problems", "passed"],
            "additionalProperties": False,
        },
        separators=(",", ":"),
    ),
    target=ReplyTarget.REPLY_TARGET_VERDICT,
)
_VARIABLES = (
    "Understand the problem before anybody plans. Take out of it every variable that matters with its value and unit,"
    " the relations between them, and what exactly is asked for. Do not solve it."
)
_LEAST = (
    "Give the answer to the goal. The last of the problems that were solved is the goal itself, or leads straight to"
    " it: rest on the solutions, and solve nothing anew. Write the answer alone."
)


def _chain_of_thought(_: Numbers) -> Graph:
    return graph([node("think", "reason", _STEP_BY_STEP), node("answer", "answer")], chain("think", "answer"))


def _react(numbers: Numbers) -> Graph:
    steps = numbers["steps"]
    made = graph(
        [node("think", "think"), node("act", "act"), node("observe", "observe"), node("answer", "answer")],
        [
            branch("think", "answer", SUCCESS),
            branch("think", "act", FAILURE),
            *chain("act", "observe"),
            *again("observe", "think", steps),
            *chain("observe", "answer"),
        ],
        rounds=steps,
    )
    return Graph(nodes=made.nodes, edges=made.edges, termination=made.termination, operators=[_THINK])


def _plan_and_solve(numbers: Numbers) -> Graph:
    steps = numbers["steps"]
    return graph(
        [
            node("understand", "analyze", _VARIABLES),
            node("plan", "plan"),
            node("solve", "solve"),
            node("answer", "answer"),
        ],
        [
            *chain("understand", "plan", "solve"),
            *again("solve", "solve", steps, until=PLAN_DONE),
            *chain("solve", "answer"),
        ],
        rounds=steps,
    )


def _least_to_most(numbers: Numbers) -> Graph:
    problems = numbers["problems"]
    return graph(
        [node("decompose", "decompose"), node("solve", "solve"), node("answer", "answer", _LEAST)],
        [
            *chain("decompose", "solve"),
            *again("solve", "solve", problems, until=PLAN_DONE),
            *chain("solve", "answer"),
        ],
        rounds=problems,
    )


RECIPES: tuple[Recipe, ...] = (
    recipe(
        "chain_of_thought",
        "Thinks step by step, then answers. For tasks that take a few inferences and no tools.",
        "Wei et al. 2022, Chain-of-Thought Prompting Elicits Reasoning in Large Language Models, arXiv:2201.11903;"
        " without examples as in Kojima et al. 2022, Large Language Models are Zero-Shot Reasoners, arXiv:2205.11916.",
        (),
        _chain_of_thought,
    ),
    recipe(
        "react",
        "Thinks, acts with a tool, observes what came of it, and again, until a thought says that the goal can be"
        " answered. For tasks whose facts have to be found out. Needs tools.",
        "Yao et al. 2022, ReAct: Synergizing Reasoning and Acting in Language Models, arXiv:2210.03629.",
        (parameter("steps", "How often it thinks at most; then it answers with what it has.", 8, 1, 100),),
        _react,
    ),
    recipe(
        "plan_and_solve",
        "Understands the problem, plans, carries out the plan step by step, then answers. For tasks of several parts"
        " that can be foreseen.",
        "Wang et al. 2023, Plan-and-Solve Prompting: Improving Zero-Shot Chain-of-Thought Reasoning by Large Language"
        " Models, arXiv:2305.04091.",
        (parameter("steps", "How many steps of the plan are carried out at most.", 10, 1, 100),),
        _plan_and_solve,
    ),
    recipe(
        "least_to_most",
        "Parts the goal into smaller problems and solves them from the simplest to the goal, each with the solutions of"
        " those before it. For tasks that are harder than any example of their kind.",
        "Zhou et al. 2022, Least-to-Most Prompting Enables Complex Reasoning in Large Language Models,"
        " arXiv:2205.10625.",
        (parameter("problems", "How many of the smaller problems are solved at most.", 10, 1, 100),),
        _least_to_most,
    ),
)
