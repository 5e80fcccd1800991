"""Permission to call a tool: the operator's rules and the agent's, on names and arguments.

Within one list the last match wins; the two lists are evaluated apart and the stricter answer holds (deny, then ask,
then allow). Where no rule matches, pure tools are allowed, and agents, whose own calls are judged; others get the
definition's default. A child run is judged so by its own lists and by those of each run above it, and the strictest
answer holds.

The model writes the arguments, so rules see them in three ways, and the strictest answer holds: as they are, as they
look (`look_alikes`, keys without regard to case), and with the JSON that strings hold taken out of them. Values are
compared in one spelling: keys sorted, no blanks, no escapes, 7.0 and 70e-1 as 7.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from behest.v1.definition_pb2 import PermissionAction, PermissionRule, PermissionScope, RunDefinition
from behest.v1.tool_pb2 import SideEffect, Tool
from behestd.core import look_alikes

_STRICTNESS: dict[int, int] = {
    PermissionAction.PERMISSION_ACTION_ALLOW: 0,
    PermissionAction.PERMISSION_ACTION_ASK: 1,
    PermissionAction.PERMISSION_ACTION_DENY: 2,
}
_MAX_DEPTH = 64
"""How deep arguments may nest, the JSON in their strings included, where a rule names them."""


@dataclass(frozen=True, slots=True)
class Permission:
    """The answer: the action, the rule that gave it, and the reason to tell."""

    action: int
    rule: str
    reason: str = ""


@dataclass(frozen=True, slots=True)
class _View:
    """One way to see arguments: the texts of each, any of which a glob may match, and how keys and globs are read."""

    texts: Mapping[str, Sequence[str]]
    key: Callable[[str], str] = str
    glob: Callable[[str], str] = str


def permit(definition: RunDefinition, tool: Tool, arguments: Mapping[str, object]) -> Permission:
    """Decide on one call."""
    scopes = [
        _judge(definition, tool, ""),
        *(_judge(above, tool, "parent:") for above in definition.inherited_permissions),
    ]
    named = {_key(key) for scope in scopes for _, rules in scope.lists for _, rule in rules for key in rule.arguments}
    alike = Counter(_key(key) for key in arguments) if named else Counter[str]()
    doubled = sorted(key for key in named if alike[key] > 1)
    if doubled:
        text = f"several arguments look like {doubled[0][:64]!r}, which a rule names"
        return Permission(PermissionAction.PERMISSION_ACTION_DENY, "arguments:look-alike", text)
    try:
        views = _views(arguments, named) if named else [_View({})]
    except RecursionError:
        text = "an argument that a rule names nests too deep"
        return Permission(PermissionAction.PERMISSION_ACTION_DENY, "arguments:depth", text)
    answers = (_answer(scope, tool, view) for scope in scopes for view in views)
    return max(answers, key=lambda given: _STRICTNESS[given.action])


_Rules = Sequence[tuple[int, PermissionRule]]
"""Rules with their places in their list."""


@dataclass(frozen=True, slots=True)
class _Scope:
    """What one run's calls of a tool are judged by: its lists, each with its name, and the default."""

    lists: Sequence[tuple[str, _Rules]]
    default: Permission


def _judge(source: RunDefinition | PermissionScope, tool: Tool, prefix: str) -> _Scope:
    lists = [
        (f"{prefix}operator", _of_tool(source.operator_permissions, tool.name)),
        (f"{prefix}agent", _of_tool(source.agent_permissions, tool.name)),
    ]
    default = source.default_permission or PermissionAction.PERMISSION_ACTION_ASK
    return _Scope(lists, Permission(default, f"{prefix}default"))


def _of_tool(rules: Iterable[PermissionRule], name: str) -> _Rules:
    return [(index, rule) for index, rule in enumerate(rules) if fnmatchcase(name, rule.tool)]


def _answer(scope: _Scope, tool: Tool, view: _View) -> Permission:
    given = [answer for who, rules in scope.lists if (answer := _last_match(who, rules, view)) is not None]
    if given:
        return max(given, key=lambda answer: _STRICTNESS[answer.action])
    if tool.policy.side_effect == SideEffect.SIDE_EFFECT_PURE:
        return Permission(PermissionAction.PERMISSION_ACTION_ALLOW, "default:pure")
    if tool.agent_id:
        return Permission(PermissionAction.PERMISSION_ACTION_ALLOW, "default:agent")
    return scope.default


def _last_match(who: str, rules: _Rules, view: _View) -> Permission | None:
    for index, rule in reversed(rules):
        if all(_matches(view, key, glob) for key, glob in rule.arguments.items()):
            return Permission(rule.action, f"{who}:{index}:{rule.tool}", rule.reason)
    return None


def _matches(view: _View, key: str, glob: str) -> bool:
    return any(fnmatchcase(text, view.glob(glob)) for text in view.texts.get(view.key(key), ()))


# --- what rules see ---


def _views(arguments: Mapping[str, object], named: set[str]) -> list[_View]:
    seen = {key: value for key, value in arguments.items() if _key(key) in named}
    plain = {_key(key): look_alikes.fold(canonical(value)) for key, value in seen.items()}
    opened = {_key(key): look_alikes.fold(canonical(_opened(value, 0))) for key, value in seen.items()}
    views = [
        _View({key: (canonical(value),) for key, value in seen.items()}),
        _View({key: (text,) for key, text in plain.items()}, _key, look_alikes.fold),
    ]
    if opened != plain:
        texts = {key: (text, opened[key]) for key, text in plain.items()}
        views.append(_View(texts, _key, look_alikes.fold))
    return views


def _key(key: str) -> str:
    """How a program that is lax about keys may read one: some take no notice of case."""
    return look_alikes.fold(key).casefold()


def canonical(value: object) -> str:
    """The text of an argument that globs are matched with: a string as it is, any other value in one spelling."""
    if isinstance(value, str):
        return value
    return json.dumps(_plain(value), separators=(",", ":"), sort_keys=True, ensure_ascii=False)


def _plain(value: object) -> object:
    """A value whose numbers are whole numbers where they can be."""
    match value:
        case dict():
            return {key: _plain(inner) for key, inner in value.items()}
        case list():
            return [_plain(inner) for inner in value]
        case float() if value.is_integer():
            return int(value)
    return value


def _opened(value: object, depth: int) -> object:
    """A value with the JSON that its strings hold in their place. Raises RecursionError."""
    if depth > _MAX_DEPTH:
        raise RecursionError
    match value:
        case dict():
            return {key: _opened(inner, depth + 1) for key, inner in value.items()}
        case list():
            return [_opened(inner, depth + 1) for inner in value]
        case str() if value.lstrip()[:1] in ("{", "[", '"'):
            try:
                return _opened(json.loads(value), depth + 1)
            except ValueError:
                return value
    return value
