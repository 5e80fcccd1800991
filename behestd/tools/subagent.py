"""Agents as tools: what a model is told of an agent that it may call, and how its order and answer are put.

Above: the runtime, which offers such tools to runs and executes calls of them as child runs. No catalog holds them: an
agent names others by their ids, and what they are called here follows from that.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from fnmatch import fnmatchcase

from behest.v1.agent_pb2 import Agent
from behest.v1.chat_pb2 import ResponseFormatKind
from behest.v1.message_pb2 import JsonPart, Part, TextPart
from behest.v1.run_state_pb2 import RunOutput
from behest.v1.tool_pb2 import SideEffect, Tool, ToolPolicy
from behestd.tools import builtin
from behestd.tools.catalog import tool_hash
from behestd.tools.tool import Answer, answer

PREFIX = "agent_"
MAX_ID = 64 - len(PREFIX)
"""Characters of an id that makes a name of a tool."""

_ORDER = "order"
_SCHEMA = {
    "type": "object",
    "properties": {
        _ORDER: {
            "type": "string",
            "minLength": 1,
            "description": "What to do, with everything needed for it: nothing else of this conversation is passed on.",
        },
    },
    "required": [_ORDER],
    "additionalProperties": False,
}


def tool_of(agent: Agent, policy: ToolPolicy | None) -> Tool:
    """Make the tool that an agent is. `policy` is what the operator says of tools of its name.

    Its class is always idempotent: the child run of a key is made once.
    """
    made = Tool(
        name=PREFIX + agent.id,
        description=agent.description or f"Have the agent {agent.display_name or agent.id} do something.",
        input_schema_json=json.dumps(_SCHEMA, separators=(",", ":")),
        output_schema_json=_answer_schema(agent),
        agent_id=agent.id,
        policy=policy,
    )
    made.policy.side_effect = SideEffect.SIDE_EFFECT_IDEMPOTENT
    made.hash = tool_hash(made)
    return made


def _answer_schema(agent: Agent) -> str:
    is_json = agent.response_format.kind == ResponseFormatKind.RESPONSE_FORMAT_KIND_JSON_SCHEMA
    return agent.response_format.schema_json if is_json else ""


def is_in(name: str, scope: Collection[str]) -> bool:
    """Whether a tool's name is in a scope: one of its names, or matched by a glob, which no built-in tool is."""
    return name in scope or (name not in builtin.TOOLS and any(fnmatchcase(name, pattern) for pattern in scope))


def order_of(arguments_json: str) -> str:
    """The order in the arguments of a call, which keep the schema."""
    return str(json.loads(arguments_json)[_ORDER])


def answer_of(output: RunOutput) -> Answer:
    """What an agent answered: JSON where it was to answer in JSON, else its text."""
    if output.json:
        return answer([Part(json=JsonPart(json=output.json))])
    return answer([Part(text=TextPart(text=output.text))])
