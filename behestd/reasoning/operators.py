"""The operators that every graph has, as data: what each is for, what its model is told, where its reply goes. Pure.

Above: `prompt`, `reply`, `graph` and the service, which lists them. An operator of a graph is the same kind of value,
so nothing here is special but the names. Schemas are of the part of JSON Schema that providers with strict forms take:
every object is closed and each of its properties required. Reasons stand before what they are for, since a model that
has written its reasons judges better than one that justifies what it said.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from behest.v1.graph_pb2 import Graph
from behest.v1.operator_pb2 import Operator, ReplyTarget, ToolUse

_RESULTS = ToolUse.TOOL_USE_RESULTS
_REPORT = ToolUse.TOOL_USE_REPORT
_OPTIONAL = ToolUse.TOOL_USE_OPTIONAL

TOOL_TURNS = 4
"""Turns in which operators that look around call tools."""


def _schema(**properties: Mapping[str, Any]) -> str:
    """The schema of an object with these properties and no others."""
    schema = {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
    return json.dumps(schema, separators=(",", ":"))


def _text(description: str) -> dict[str, Any]:
    return {"type": "string", "description": description}


def _texts(description: str) -> dict[str, Any]:
    return {"type": "array", "items": {"type": "string"}, "description": description}


_VERDICT = _schema(
    problems=_texts("What is wrong, each in one sentence. Empty when nothing is."),
    passed={"type": "boolean", "description": "Whether all that matters is as it should be."},
)

OPERATORS: tuple[Operator, ...] = (
    Operator(
        name="act",
        intent="Does one thing with tools. Writes an action for each use of a tool.",
        prompt=(
            "Take the next action towards the goal: call the tool that brings it closest, with complete arguments. Call"
            " more than one only if they do not depend on each other. Do not repeat an action that is listed above,"
            " unless something has changed since."
        ),
        instructions="You act by calling tools. You do not describe what could be done: you do it.",
        target=ReplyTarget.REPLY_TARGET_ACTIONS,
        tool_use=_RESULTS,
        max_turns=1,
    ),
    Operator(
        name="analyze",
        intent="Finds out what is asked and what is known. Writes a fact.",
        prompt=(
            "Analyze the task before anybody works on it. Say what exactly is asked, what is known, what is unknown or"
            " ambiguous, what is hard about it, and what must not be overlooked. Do not solve it."
        ),
        instructions="You analyze tasks: precisely, without solving them and without repeating them.",
        target=ReplyTarget.REPLY_TARGET_FACTS,
    ),
    Operator(
        name="answer",
        intent="Gives the final answer. Writes the answer, which achieves the goal.",
        prompt=(
            "Give the final answer to the goal, for the person who set it. Rest it on what is shown above, meet every"
            " success criterion and keep the constraints. If something could not be achieved or is uncertain, say so."
            " Write the answer alone: nothing about how it came about."
        ),
        instructions="You write final answers: complete, correct and no longer than they need to be.",
        target=ReplyTarget.REPLY_TARGET_ANSWER,
    ),
    Operator(
        name="compose",
        intent="Puts parts together. Writes an artifact.",
        prompt=(
            "Put the artifacts above together into one whole that serves the goal. Leave out nothing that matters, say"
            " nothing twice, and mend the seams: order, terms and tone are those of one author."
        ),
        instructions="You compose one work out of parts. You add nothing that the parts do not support.",
        target=ReplyTarget.REPLY_TARGET_ARTIFACT,
    ),
    Operator(
        name="decompose",
        intent="Parts the goal into smaller problems. Writes the plan.",
        prompt=(
            "Part the goal into smaller problems that can be solved one after another, from the simplest to the goal"
            " itself. Each must be easier than the goal, make sense on its own, and rest on those before it alone."
            " Solved together, they achieve the goal. Do not solve them."
        ),
        instructions="You part problems into smaller ones.",
        reply_schema_json=_schema(
            rationale=_text("Why the goal is parted in this way."),
            steps=_texts("The smaller problems, in the order in which they are to be solved."),
        ),
        target=ReplyTarget.REPLY_TARGET_PLAN,
    ),
    Operator(
        name="diagnose",
        intent="Finds the cause of what went wrong. Writes a reflection, and a fact for each piece of evidence.",
        prompt=(
            "Find out why things are not as they should be. Weigh each possible cause against what is shown above, and"
            " tell causes from symptoms. Name the most likely cause, how sure you are, and what would remove it."
        ),
        instructions="You diagnose. You follow the evidence, and say so when it is not enough.",
        reply_schema_json=_schema(
            facts=_texts("The evidence that the diagnosis rests on, each piece in one sentence."),
            content=_text("The most likely cause, how sure it is, and what would remove it."),
        ),
        target=ReplyTarget.REPLY_TARGET_REFLECTION,
    ),
    Operator(
        name="evaluate",
        intent="Judges how good the latest artifact is. Writes its score, and a reflection with the reason.",
        prompt=(
            "Judge how well the latest artifact serves the goal, by the success criteria and the constraints. 0 is"
            " useless, 0.5 is half of what is needed, 1 cannot be bettered. Judge what is there, not what it could"
            " become."
        ),
        instructions="You are a strict and fair judge. Length and confidence do not impress you.",
        reply_schema_json=_schema(
            reason=_text("What speaks for the artifact and what against it."),
            score={"type": "number", "description": "From 0 to 1."},
        ),
        target=ReplyTarget.REPLY_TARGET_SCORE,
    ),
    Operator(
        name="explain",
        intent="Makes something understandable. Writes an artifact.",
        prompt=(
            "Explain what has been found or made so far, so that the person who set the goal understands it: what it"
            " is, why it is so, and what follows from it. Use plain words and, where it helps, an example."
        ),
        instructions="You explain: correctly, in plain words, from the known to the new.",
        target=ReplyTarget.REPLY_TARGET_ARTIFACT,
    ),
    Operator(
        name="generate",
        intent="Makes a candidate. Writes an artifact, of code if the reply is code alone.",
        prompt=(
            "Make one complete candidate that achieves the goal. It must stand on its own. Where there are candidates"
            " above, make one that differs from them in what matters."
        ),
        instructions="You make candidates: complete ones, not sketches. You do not comment on them.",
        target=ReplyTarget.REPLY_TARGET_ARTIFACT,
    ),
    Operator(
        name="hypothesize",
        intent="Proposes explanations. Writes an artifact of data: the hypotheses.",
        prompt=(
            "Propose hypotheses that would explain what is seen or lead to the goal. Each must be a claim that a test"
            " could refute, and each must differ from the others. Leave out what is refuted already."
        ),
        instructions="You propose hypotheses, bold ones and plain ones, and do not fall in love with any.",
        reply_schema_json=_schema(hypotheses=_texts("The hypotheses, the likeliest first.")),
        target=ReplyTarget.REPLY_TARGET_ARTIFACT,
    ),
    Operator(
        name="observe",
        intent=(
            "Looks at how things are, with tools if that helps. Writes an observation for each use of a tool; without"
            " any, one of what the task itself shows."
        ),
        prompt=(
            "Look at how things are now. If a tool can show it, call the tool. If not, say what the task above shows:"
            " what the latest actions have brought about, what was expected and did not happen, what is new. Do not"
            " judge and do not plan."
        ),
        instructions="You observe. You report what is there, not what should be there.",
        target=ReplyTarget.REPLY_TARGET_OBSERVATIONS,
        tool_use=_OPTIONAL,
        max_turns=1,
    ),
    Operator(
        name="optimize",
        intent="Makes the latest artifact better. Writes an artifact, of code if the reply is code alone.",
        prompt=(
            "Make the latest artifact better: remove what was found wrong with it, and what keeps it from the goal."
            " Keep what is good. Write it anew, whole, without a comment on what is changed."
        ),
        instructions="You improve work. Every change makes it better; nothing is changed for its own sake.",
        target=ReplyTarget.REPLY_TARGET_ARTIFACT,
    ),
    Operator(
        name="plan",
        intent="Says how the goal is to be achieved. Writes the plan.",
        prompt=(
            "Plan how the goal is to be achieved, from what is known now to the end. Each step is one piece of work"
            " with a result that can be seen, and rests on the steps before it. Take as few steps as it needs. Do not"
            " carry them out."
        ),
        instructions="You plan: few steps, each of them needed, in the right order.",
        reply_schema_json=_schema(
            rationale=_text("Why the goal is to be achieved in this way."),
            steps=_texts("The steps, in order, each in one or two sentences."),
        ),
        target=ReplyTarget.REPLY_TARGET_PLAN,
    ),
    Operator(
        name="prioritize",
        intent="Puts the steps of the plan in order. Writes their order.",
        prompt=(
            "Put the steps of the plan in the order in which they are best done: first what others rest on, then what"
            " brings the most, or tells soonest whether the plan is any good. Name each step once, by its number."
        ),
        instructions="You set priorities. You add no steps and leave none out.",
        reply_schema_json=_schema(
            reason=_text("Why in this order."),
            order={"type": "array", "items": {"type": "integer"}, "description": "The numbers of all steps, in order."},
        ),
        target=ReplyTarget.REPLY_TARGET_PLAN_ORDER,
    ),
    Operator(
        name="reason",
        intent="Thinks one step further. Writes a reflection.",
        prompt=(
            "Think one step further. Say what follows from what is shown above, step by step where it takes several,"
            " and what is best done next, and why. Do not repeat what was thought before, and do not claim what does"
            " not follow."
        ),
        instructions="You reason step by step, and check each step before you take the next.",
        target=ReplyTarget.REPLY_TARGET_REFLECTION,
    ),
    Operator(
        name="reduce",
        intent="Brings much down to what matters. Writes an artifact.",
        prompt=(
            "Bring what is shown above down to what matters for the goal. Keep every finding, number and reservation"
            " that the goal rests on; leave out the rest. Add nothing."
        ),
        instructions="You condense. What you leave out was not needed, and what you keep is unchanged in meaning.",
        target=ReplyTarget.REPLY_TARGET_ARTIFACT,
    ),
    Operator(
        name="reflect",
        intent="Looks back at the work itself. Writes a reflection.",
        prompt=(
            "Look back at the work so far. Say what went well, what went wrong and why, and what is to be done"
            " differently from now on: as advice to whoever works on it next, so concrete that it can be followed."
        ),
        instructions="You look back honestly, at the work and not at the goal alone. You draw lessons.",
        target=ReplyTarget.REPLY_TARGET_REFLECTION,
    ),
    Operator(
        name="revise",
        intent=(
            "Changes the plan after what was learnt. Writes the plan, in which steps that are done stay done, and a"
            " reflection with the reason."
        ),
        prompt=(
            "Revise the plan in the light of what was learnt. Write all its steps, in order. Repeat a step that is done"
            " word for word: it stays done. Leave out what has turned out to be needless, and replace what failed."
        ),
        instructions="You revise plans. You change what must change, and keep the rest.",
        reply_schema_json=_schema(
            rationale=_text("What was learnt, and what is changed for it."),
            steps=_texts("All steps of the revised plan, in order, those that are done word for word."),
        ),
        target=ReplyTarget.REPLY_TARGET_REVISED_PLAN,
    ),
    Operator(
        name="search",
        intent="Looks for what is not known, with tools. Writes an observation for each use of a tool, and a fact.",
        prompt=(
            "Search with the tools for what the goal needs and the task does not say yet. Try other words or another"
            " place when something is not found. Then report what you have found, and where; say too what you could not"
            " find. Report nothing that the tools have not shown."
        ),
        instructions="You search. You tell apart what was found, what is likely and what is unknown.",
        target=ReplyTarget.REPLY_TARGET_FACTS,
        tool_use=_REPORT,
        max_turns=TOOL_TURNS,
    ),
    Operator(
        name="select",
        intent="Chooses among the artifacts. Writes the chosen one anew, as the latest artifact.",
        prompt=(
            "Choose the one artifact that serves the goal best, by the success criteria and the constraints. Compare"
            " them by what they say, not by how they say it or where they stand. Where several come to the same result"
            " in different ways, that speaks for it."
        ),
        instructions="You choose. You name one, even if none is perfect.",
        reply_schema_json=_schema(
            reason=_text("Why this one and not the others."),
            choice={"type": "integer", "description": "The number of the artifact."},
        ),
        target=ReplyTarget.REPLY_TARGET_SELECTION,
    ),
    Operator(
        name="simulate",
        intent=(
            "Plays through what would happen, with tools. Writes an observation for each use of a tool, and one of what"
            " came of it."
        ),
        prompt=(
            "Play through with the tools what would happen if what has been planned or made were put to use. Vary what"
            " is uncertain. Then report what happened, step by step, and under which assumptions."
        ),
        instructions="You simulate. You report what happened in the simulation, good or bad.",
        target=ReplyTarget.REPLY_TARGET_OBSERVATIONS,
        tool_use=_REPORT,
        max_turns=TOOL_TURNS,
    ),
    Operator(
        name="solve",
        intent=(
            "Does the first step of the plan that is not done; without a plan, all of the work. Writes an artifact, of"
            " code if the reply is code alone, and completes the step."
        ),
        prompt=(
            "Do the work: produce its result in full, not a description of it. Rest on what has been made and found"
            " already."
        ),
        instructions="You solve problems, thoroughly and to the end, one at a time.",
        target=ReplyTarget.REPLY_TARGET_SOLUTION,
    ),
    Operator(
        name="synthesize",
        intent="Draws one conclusion from many findings. Writes an artifact.",
        prompt=(
            "Bring the facts, observations, reflections and artifacts above together into one new insight: what they"
            " say together that none says alone. Resolve contradictions, or name them. Say what rests on what."
        ),
        instructions="You synthesize: more than a summary, and nothing that the findings do not bear.",
        target=ReplyTarget.REPLY_TARGET_ARTIFACT,
    ),
    Operator(
        name="test",
        intent=(
            "Tries out with tools whether what was made holds. Writes an observation for each use of a tool, and a"
            " reflection unless all is well; its outcome is the verdict."
        ),
        prompt=(
            "Test with the tools whether what has been made or claimed holds. Try what is most likely to break it. Then"
            " give your verdict, on the ground of what the tools showed and of nothing else."
        ),
        instructions="You test. You try to refute, and believe only what the tools show.",
        reply_schema_json=_VERDICT,
        target=ReplyTarget.REPLY_TARGET_VERDICT,
        tool_use=_REPORT,
        max_turns=TOOL_TURNS,
    ),
    Operator(
        name="verify",
        intent=(
            "Checks what was made against the goal. Writes a reflection unless all is well; its outcome is the verdict."
        ),
        prompt=(
            "Check what has been made against the goal, each success criterion and each constraint. Work every claim"
            " and every calculation out anew, instead of reading along. A wish for something nicer is no problem;"
            " something wrong, missing or not allowed is."
        ),
        instructions="You verify. You do not trust a result because it looks finished.",
        reply_schema_json=_VERDICT,
        target=ReplyTarget.REPLY_TARGET_VERDICT,
    ),
)


_BY_NAME = {operator.name: operator for operator in OPERATORS}


def operator_of(graph: Graph, name: str) -> Operator | None:
    """The operator that a name stands for in a graph, the graph's own first. None: there is none."""
    own = (operator for operator in graph.operators if operator.name == name)
    return next(own, None) or _BY_NAME.get(name)
