"""Strategies that try, see what went wrong, and try again with what was learnt. Pure.

Above: `strategies`. Below: `strategies_parts`.
"""

from __future__ import annotations

from behest.v1.graph_pb2 import Graph
from behestd.reasoning.strategies_parts import (
    FAILURE,
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

_ATTEMPT = (
    "Make an attempt at the goal, and produce the result in full. Where reflections on earlier attempts are shown"
    " above, follow them: do not make the same mistake twice."
)
_LESSON = (
    "The latest attempt did not pass. Say in a few sentences what exactly went wrong in it, why, and what the next"
    " attempt is to do differently, so concrete that it can be followed."
)
_SYMPTOMS = (
    "Look at what is wrong. If a tool can show it, call the tool, and make it happen again if that can be done. If not,"
    " say what the task above shows: what happens, what should happen, and under which conditions. Name no causes yet."
)
_HYPOTHESES = (
    "Propose hypotheses about the cause of what is wrong. For each, say what one would see if it were true that one"
    " would not see otherwise, so that a test can decide. Leave out what is refuted already."
)
_EXPERIMENT = (
    "Test the likeliest hypothesis that is not decided yet: carry out with the tools the experiment that would refute"
    " it if it were wrong. Then say whether it holds, on the ground of what the tools showed and of nothing else."
)
_FIX = (
    "Remove the cause that was diagnosed: write the fix in full, as it is to be applied. Change no more than the cause"
    " asks for. Where earlier fixes are shown above that did not hold, make one that differs from them."
)
_CHECK = (
    "Test with the tools whether the latest fix removes what was wrong, and whether it breaks anything else. Then give"
    " your verdict, on the ground of what the tools showed and of nothing else."
)
_REPORT = (
    "Give the fix, and say in a few words what was wrong, how that was found out, and whether the fix was seen to hold."
)


def _reflexion(numbers: Numbers) -> Graph:
    attempts = numbers["attempts"]
    return graph(
        [
            node("attempt", "solve", _ATTEMPT),
            node("evaluate", "verify"),
            node("reflect", "reflect", _LESSON),
            node("answer", "answer"),
        ],
        [
            *chain("attempt", "evaluate"),
            branch("evaluate", "answer", SUCCESS),
            branch("evaluate", "reflect", FAILURE),
            *again("reflect", "attempt", attempts),
            *chain("reflect", "answer"),
        ],
        rounds=attempts,
    )


def _diagnose_and_fix(numbers: Numbers) -> Graph:
    attempts = numbers["attempts"]
    return graph(
        [
            node("observe", "observe", _SYMPTOMS),
            node("hypothesize", "hypothesize", _HYPOTHESES),
            node("experiment", "test", _EXPERIMENT),
            node("diagnose", "diagnose"),
            node("fix", "solve", _FIX),
            node("check", "test", _CHECK),
            node("reflect", "reflect", _LESSON),
            node("answer", "answer", _REPORT),
        ],
        [
            *chain("observe", "hypothesize", "experiment", "diagnose", "fix", "check"),
            branch("check", "answer", SUCCESS),
            branch("check", "reflect", FAILURE),
            *again("reflect", "hypothesize", attempts),
            *chain("reflect", "answer"),
        ],
        rounds=attempts,
    )


_ATTEMPTS = "How many attempts are made at most; then it answers with the last one."

RECIPES: tuple[Recipe, ...] = (
    recipe(
        "reflexion",
        "Makes an attempt, evaluates it, reflects on what went wrong, and tries again with all reflections in mind. For"
        " tasks whose results are easier to check than to make.",
        "Shinn et al. 2023, Reflexion: Language Agents with Verbal Reinforcement Learning, arXiv:2303.11366.",
        (parameter("attempts", _ATTEMPTS, 3, 1, 50),),
        _reflexion,
    ),
    recipe(
        "diagnose_and_fix",
        "Observes what is wrong, proposes hypotheses, tests them with tools, diagnoses the cause, fixes it and checks"
        " the fix; if it does not hold, again with what was learnt. For faults whose cause is not known. Needs tools.",
        "Kang et al. 2023, Explainable Automated Debugging via Large Language Model-driven Scientific Debugging,"
        " arXiv:2304.02195; the rounds with feedback as in Chen et al. 2023, Teaching Large Language Models to"
        " Self-Debug, arXiv:2304.05128.",
        (parameter("attempts", _ATTEMPTS, 3, 1, 50),),
        _diagnose_and_fix,
    ),
)
