"""Strategies that go several ways side by side, and bring them together: by votes, scores, choice or argument. Pure.

Above: `strategies`. Below: `strategies_parts`. Their candidates differ by chance alone where the papers have it so: a
run whose sampling leaves no chance gets the same candidate each time.
"""

from __future__ import annotations

from behest.v1.graph_pb2 import Graph, GraphEdge, GraphNode
from behestd.reasoning.strategies_parts import (
    ALL,
    BEST,
    Numbers,
    Recipe,
    chain,
    fan_in,
    fan_out,
    graph,
    node,
    parallelism,
    parameter,
    recipe,
)

_SAMPLE = (
    "Solve the task step by step, with every inference and calculation written out, and end with the result on a line"
    " of its own."
)
_VOTE = (
    "The artifacts above are solutions that were found independently of each other. Find the result of each, and count"
    " how many come to which: results that mean the same are the same, however they are put. Choose a solution with"
    " the result that most have come to, the first of them; of results with as many, the one that comes first. Do not"
    " judge which is better."
)
_MAJORITY = "Give the result of the artifact that was chosen last. Write the answer alone."
_THOUGHT = (
    "Propose one next step towards the goal: a thought that goes on from those above, if there are any, and brings the"
    " solution nearer, with what follows from it worked out. One step, not the whole solution. Others propose steps"
    " beside you: take the one that you find most promising, not the nearest at hand."
)
_PROMISE = (
    "Judge how promising the latest thought is: how sure the goal can be reached from here, by what is worked out so"
    " far. 0 means that it cannot be reached this way, 1 that it is reached or surely will be. Look a few steps ahead"
    " before you judge."
)
_LAST_THOUGHT = (
    "Give the answer to the goal, on the ground of the thoughts above, which go on from each other. Where a last step"
    " is missing, take it. Write the answer alone."
)
_CHOICE = (
    "Choose the one candidate that serves the goal best. Rest on what its judges have said about each, and check what"
    " speaks against the one that you choose."
)
_CHOSEN = "Give the candidate that was chosen last, whole, mended where its judges found small faults. Write it alone."
_OPENING = (
    "You are debater {number} of {count}. Come to your own answer to the goal, step by step, and argue for it. Others"
    " do the same beside you, and you will read each other."
)
_REBUTTAL = (
    "You are debater {number} of {count}. Read the latest statement of each debater above, your own too. Say where"
    " others are wrong and why, and where they have convinced you. Then state your answer anew: changed if the"
    " arguments ask for it, defended if they do not. Do not give in for the sake of agreement."
)
_JUDGE = (
    "You are the judge of the debate above. Weigh the arguments of all debaters, above all those of the last round:"
    " not how many hold an answer, but what it rests on. Say which answer holds and why, and what remains in doubt."
)
_JUDGED = "Give the answer that the judge has come to. Write the answer alone."


def _self_consistency(numbers: Numbers) -> Graph:
    at_once = numbers["parallelism"]
    samples = _numbered("sample", numbers["samples"])
    return graph(
        [
            node("understand", "analyze"),
            *(node(sample, "solve", _SAMPLE) for sample in samples),
            node("vote", "select", _VOTE),
            node("answer", "answer", _MAJORITY),
        ],
        [*fan_out("understand", samples, at_once), *fan_in(samples, "vote", ALL), *chain("vote", "answer")],
        at_once=at_once,
    )


def _generate_evaluate_select(numbers: Numbers) -> Graph:
    at_once = numbers["parallelism"]
    candidates = _numbered("candidate", numbers["candidates"])
    judges = _numbered("evaluate", numbers["candidates"])
    return graph(
        [
            node("understand", "analyze"),
            *(node(candidate, "generate") for candidate in candidates),
            *(node(judge, "evaluate") for judge in judges),
            node("select", "select", _CHOICE),
            node("answer", "answer", _CHOSEN),
        ],
        [
            *fan_out("understand", candidates, at_once),
            *_pairs(candidates, judges),
            *fan_in(judges, "select", ALL),
            *chain("select", "answer"),
        ],
        at_once=at_once,
    )


def _tree_of_thought(numbers: Numbers) -> Graph:
    at_once = numbers["parallelism"]
    nodes: list[GraphNode] = [node("understand", "analyze")]
    edges: list[GraphEdge] = []
    judges: list[str] = []
    for level in range(1, numbers["depth"] + 1):
        thoughts = _numbered(f"thought_{level}", numbers["breadth"])
        before, judges = judges, _numbered(f"evaluate_{level}", numbers["breadth"])
        edges += fan_out("understand", thoughts, at_once) if level == 1 else _all_to_all(before, thoughts, best=True)
        edges += _pairs(thoughts, judges)
        nodes += (node(thought, "generate", _THOUGHT) for thought in thoughts)
        nodes += (node(judge, "evaluate", _PROMISE) for judge in judges)
    nodes += [node("answer", "answer", _LAST_THOUGHT)]
    edges += fan_in(judges, "answer", BEST)
    return graph(nodes, edges, at_once=at_once)


def _debate(numbers: Numbers) -> Graph:
    at_once, count = numbers["parallelism"], numbers["debaters"]
    nodes: list[GraphNode] = [node("understand", "analyze")]
    edges: list[GraphEdge] = []
    speakers: list[str] = []
    for number in range(1, numbers["rounds"] + 1):
        before, speakers = speakers, _numbered(f"round_{number}", count)
        edges += fan_out("understand", speakers, at_once) if number == 1 else _all_to_all(before, speakers, best=False)
        prompt = _OPENING if number == 1 else _REBUTTAL
        nodes += (
            node(speaker, "generate", prompt.format(number=place, count=count))
            for place, speaker in enumerate(speakers, start=1)
        )
    nodes += [node("judge", "synthesize", _JUDGE), node("answer", "answer", _JUDGED)]
    edges += [*fan_in(speakers, "judge", ALL), *chain("judge", "answer")]
    return graph(nodes, edges, at_once=at_once)


def _numbered(name: str, count: int) -> list[str]:
    return [f"{name}_{number}" for number in range(1, count + 1)]


def _pairs(sources: list[str], targets: list[str]) -> list[GraphEdge]:
    """Let each of the targets follow the source beside it."""
    return [edge for pair in zip(sources, targets, strict=True) for edge in chain(*pair)]


def _all_to_all(sources: list[str], targets: list[str], *, best: bool) -> list[GraphEdge]:
    """Let each target follow all sources, with what all have added or the best alone."""
    return [edge for target in targets for edge in fan_in(sources, target, BEST if best else ALL)]


RECIPES: tuple[Recipe, ...] = (
    recipe(
        "self_consistency",
        "Solves the task several times side by side and answers with the result that most came to. For tasks with one"
        " right result that can be reached in several ways. The run's temperature must leave room for chance.",
        "Wang et al. 2022, Self-Consistency Improves Chain of Thought Reasoning in Language Models, arXiv:2203.11171.",
        (parameter("samples", "How many solutions are found.", 5, 2, 64), parallelism()),
        _self_consistency,
    ),
    recipe(
        "generate_evaluate_select",
        "Makes several candidates side by side, evaluates each and selects the best. For tasks whose results differ in"
        " quality. The run's temperature must leave room for chance.",
        "Cobbe et al. 2021, Training Verifiers to Solve Math Word Problems, arXiv:2110.14168, with a model as the"
        " judge as in Zheng et al. 2023, Judging LLM-as-a-Judge with MT-Bench and Chatbot Arena, arXiv:2306.05685.",
        (parameter("candidates", "How many candidates are made.", 4, 2, 32), parallelism()),
        _generate_evaluate_select,
    ),
    recipe(
        "tree_of_thought",
        "Proposes several next thoughts side by side, evaluates each, goes on from the best, level by level, then"
        " answers: the paper's breadth-first search with one thought kept. For tasks in which an early wrong turn"
        " costs everything.",
        "Yao et al. 2023, Tree of Thoughts: Deliberate Problem Solving with Large Language Models, arXiv:2305.10601.",
        (
            parameter("breadth", "How many thoughts are proposed on each level.", 3, 2, 8),
            parameter("depth", "How many levels there are.", 3, 1, 7),
            parallelism(),
        ),
        _tree_of_thought,
    ),
    recipe(
        "debate",
        "Lets several debaters answer side by side, read each other and answer again, round by round; then a judge"
        " weighs their arguments. For questions on which a single answer is often sure and wrong.",
        "Du et al. 2023, Improving Factuality and Reasoning in Language Models through Multiagent Debate,"
        " arXiv:2305.14325; the judge as in Liang et al. 2023, Encouraging Divergent Thinking in Large Language Models"
        " through Multi-Agent Debate, arXiv:2305.19118.",
        (
            parameter("debaters", "How many debaters there are.", 3, 2, 8),
            parameter("rounds", "How often each debater speaks.", 2, 1, 8),
            parallelism(),
        ),
        _debate,
    ),
)
