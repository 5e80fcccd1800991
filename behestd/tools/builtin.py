"""Tools that the daemon has of its own. An agent gets one by listing its name; no glob reaches it.

Above: the catalog. `ask_user` has no executor: the core puts the question and takes the next input for its answer.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import MappingProxyType

from behest.v1.tool_pb2 import SideEffect, Tool, ToolPolicy
from behestd.core.questions import ASK_USER

_ASK_USER_SCHEMA = {
    "type": "object",
    "properties": {
        "question": {"type": "string", "minLength": 1, "description": "What to ask."},
        "options": {"type": "array", "items": {"type": "string"}, "description": "Answers to choose from, if any."},
    },
    "required": ["question"],
    "additionalProperties": False,
}

TOOLS: Mapping[str, Tool] = MappingProxyType(
    {
        ASK_USER: Tool(
            name=ASK_USER,
            description="Ask the user a question and wait for the answer, which is the result.",
            input_schema_json=json.dumps(_ASK_USER_SCHEMA, separators=(",", ":")),
            policy=ToolPolicy(side_effect=SideEffect.SIDE_EFFECT_PURE),
        )
    }
)
"""The tools, by name; their hashes are the catalog's to make."""
