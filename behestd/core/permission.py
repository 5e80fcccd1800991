"""Permission to call a tool: the operator's rules and the agent's, on names and arguments.

Within one list the last match wins; the two lists are evaluated apart and the stricter answer holds (deny, then ask,
then allow). Where no rule matches, pure tools are allowed and others get the definition's default.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from behest.v1.definition_pb2 import PermissionAction, PermissionRule, RunDefinition
from behest.v1.tool_pb2 import SideEffect, Tool

_STRICTNESS: dict[int, int] = {
    PermissionAction.PERMISSION_ACTION_ALLOW: 0,
    PermissionAction.PERMISSION_ACTION_ASK: 1,
    PermissionAction.PERMISSION_ACTION_DENY: 2,
}


@dataclass(frozen=True, slots=True)
class Permission:
    """The answer: the action, the rule that gave it, and the reason to tell."""

    action: int
    rule: str
    reason: str = ""


def permit(definition: RunDefinition, tool: Tool, arguments: Mapping[str, object]) -> Permission:
    """Decide on one call."""
    answers = [
        _last_match("operator", definition.operator_permissions, tool.name, arguments),
        _last_match("agent", definition.agent_permissions, tool.name, arguments),
    ]
    given = [answer for answer in answers if answer is not None]
    if given:
        return max(given, key=lambda answer: _STRICTNESS[answer.action])
    if tool.policy.side_effect == SideEffect.SIDE_EFFECT_PURE:
        return Permission(PermissionAction.PERMISSION_ACTION_ALLOW, "default:pure")
    default = definition.default_permission or PermissionAction.PERMISSION_ACTION_ASK
    return Permission(default, "default")


def _last_match(
    who: str, rules: Iterable[PermissionRule], name: str, arguments: Mapping[str, object]
) -> Permission | None:
    found = None
    for index, rule in enumerate(rules):
        if fnmatchcase(name, rule.tool) and _arguments_match(rule, arguments):
            found = Permission(rule.action, f"{who}:{index}:{rule.tool}", rule.reason)
    return found


def _arguments_match(rule: PermissionRule, arguments: Mapping[str, object]) -> bool:
    for key, pattern in rule.arguments.items():
        if key not in arguments:
            return False
        value = arguments[key]
        text = value if isinstance(value, str) else json.dumps(value, separators=(",", ":"), ensure_ascii=False)
        if not fnmatchcase(text, pattern):
            return False
    return True
