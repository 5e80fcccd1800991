"""How much work a JSON Schema can make, counted before it is ever applied. Pure.

Above it `schema`. Validators follow every path: `$ref` in `allOf` twice, twenty times nested, is a million checks of
one value, from a schema of a kilobyte. So the paths that can meet at one place of a document are counted, by depth of
the document: `Cost.paths(depth)` is an upper bound. In-place keywords (`allOf`, `$ref`, …) add up at one place; those
for children (`properties`, `items`, …) go one level down, where of several named properties only one can apply.
"""

from __future__ import annotations

import graphlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

MAX_NODES = 2_000
_MANY = 10**12
"""Counts stop growing here."""

_LISTS_IN_PLACE = ("allOf", "anyOf", "oneOf")
_IN_PLACE = ("not", "if", "then", "else")
_MAPS_IN_PLACE = ("dependentSchemas", "dependencies")
_RECHECKING = ("unevaluatedProperties", "unevaluatedItems")
_REFUSED = ("$dynamicRef", "$recursiveRef", "$dynamicAnchor", "$recursiveAnchor", "$anchor")
_DEFINITIONS = ("$defs", "definitions")

Schema = dict[str, Any]


class SchemaRefused(ValueError):
    """Raised when a schema is not one that is taken. The text of the error names the problem."""


@dataclass(frozen=True, slots=True)
class Cost:
    """The work that a schema can make at one place of a document."""

    by_depth: tuple[int, ...]

    def paths(self, depth: int) -> int:
        """How many subschemas at most meet at one place of a document that nests so deep."""
        return self.by_depth[min(depth, len(self.by_depth) - 1)]


@dataclass(slots=True)
class _Node:
    """One subschema: what applies to the same value, and what applies to its children."""

    weight: int
    in_place: list[int]
    one_of_children: list[int]
    """Named properties: at most one applies to a child."""
    one_of_items: list[int]
    every_property: list[int]
    every_item: list[int]


def measure(schema: Schema, max_depth: int, max_nodes: int = MAX_NODES) -> Cost:
    """Count the paths of a schema for documents of depth 0 to `max_depth`.

    Raises SchemaRefused when it has too many subschemas, refers to what is not in it, or to itself without end.
    """
    nodes = _collect(schema, max_nodes)
    try:
        order = list(graphlib.TopologicalSorter({n: node.in_place for n, node in enumerate(nodes)}).static_order())
    except graphlib.CycleError as exc:
        raise SchemaRefused("it refers to itself without end") from exc
    here = [0] * len(nodes)
    for number in order:
        node = nodes[number]
        here[number] = min(node.weight * (1 + sum(here[n] for n in node.in_place)), _MANY)
    by_depth = [here[0]]
    worst = here
    for _ in range(max_depth):
        deeper = _one_level(nodes, order, worst)
        grown = [max(pair) for pair in zip(here, deeper, strict=True)]
        by_depth.append(grown[0])
        if grown == worst:
            break
        worst = grown
    return Cost(tuple(by_depth))


def _one_level(nodes: list[_Node], order: list[int], worst: list[int]) -> list[int]:
    """Count, for each node, the paths at the worst place below it, given those of its children and below them."""
    deeper = [0] * len(nodes)
    for number in order:
        node = nodes[number]
        properties = _most(worst, node.one_of_children) + sum(worst[n] for n in node.every_property)
        items = _most(worst, node.one_of_items) + sum(worst[n] for n in node.every_item)
        paths = max(properties, items) + sum(deeper[n] for n in node.in_place)
        deeper[number] = min(node.weight * paths, _MANY)
    return deeper


def _most(paths: list[int], numbers: list[int]) -> int:
    return max((paths[number] for number in numbers), default=0)


def _collect(root: Schema, max_nodes: int) -> list[_Node]:
    """Find every subschema that can apply, by following keywords and references from the root."""
    found = _Found(max_nodes)
    found.number(root)
    nodes: list[_Node] = []
    for schema in _growing(found.schemas):
        _refuse_unknown(root, schema)
        tuple_items = [*_list(schema.get("items")), *_list(schema.get("prefixItems"))]
        nodes.append(
            _Node(
                weight=2 ** sum(keyword in schema for keyword in _RECHECKING),
                in_place=found.all(_in_place(root, schema)),
                one_of_children=found.all(_map(schema.get("properties"))),
                one_of_items=found.all(tuple_items),
                every_property=found.all(_every_property(schema)),
                every_item=found.all(_every_item(schema)),
            )
        )
        for keyword in _DEFINITIONS:
            found.all(_map(schema.get(keyword)))
    return nodes


class _Found:
    """The subschemas found so far, numbered in the order in which they were."""

    def __init__(self, max_nodes: int) -> None:
        self._max_nodes = max_nodes
        self.schemas: list[Schema] = []
        self._numbers: dict[int, int] = {}

    def number(self, schema: Schema) -> int:
        """Give the number of a subschema, a new one when it is new. Raises SchemaRefused when there are too many."""
        if id(schema) not in self._numbers:
            if len(self.schemas) >= self._max_nodes:
                raise SchemaRefused(f"more than {self._max_nodes} subschemas")
            self._numbers[id(schema)] = len(self.schemas)
            self.schemas.append(schema)
        return self._numbers[id(schema)]

    def all(self, parts: Iterable[object]) -> list[int]:
        """Number those of the parts that are subschemas with something in them."""
        return [self.number(part) for part in parts if isinstance(part, dict)]


def _refuse_unknown(root: Schema, schema: Schema) -> None:
    if "$id" in schema and schema is not root:
        raise SchemaRefused("an $id within the schema is not taken")
    for keyword in _REFUSED:
        if keyword in schema:
            raise SchemaRefused(f"{keyword} is not taken; refer by #/$defs/NAME")


def _growing(schemas: list[Schema]) -> Iterator[Schema]:
    """Yield the entries of a list that grows meanwhile."""
    position = 0
    while position < len(schemas):
        yield schemas[position]
        position += 1


def _in_place(root: Schema, schema: Schema) -> Iterator[object]:
    for keyword in _LISTS_IN_PLACE:
        yield from _list(schema.get(keyword))
    for keyword in _IN_PLACE:
        yield schema.get(keyword)
    for keyword in _MAPS_IN_PLACE:
        yield from _map(schema.get(keyword))
    if "$ref" in schema:
        yield _resolve(root, schema["$ref"])


def _every_property(schema: Schema) -> Iterator[object]:
    yield from _map(schema.get("patternProperties"))
    for keyword in ("additionalProperties", "propertyNames", "unevaluatedProperties"):
        yield schema.get(keyword)


def _every_item(schema: Schema) -> Iterator[object]:
    for keyword in ("items", "additionalItems", "contains", "unevaluatedItems"):
        yield schema.get(keyword)


def _list(value: object) -> list[object]:
    return value if isinstance(value, list) else []


def _map(value: object) -> list[object]:
    return list(value.values()) if isinstance(value, dict) else []


def _resolve(root: Schema, reference: object) -> object:
    """Find what a reference names within the schema: `#` or `#/a/json/pointer`."""
    if not isinstance(reference, str) or (reference != "#" and not reference.startswith("#/")):
        raise SchemaRefused("a $ref that is not #/… within the schema is not taken")
    found: object = root
    for word in reference[2:].split("/") if reference != "#" else ():
        key = _unescaped(word)
        if isinstance(found, dict) and key in found:
            found = found[key]
        elif isinstance(found, list) and key.isdecimal() and int(key) < len(found):
            found = found[int(key)]
        else:
            raise SchemaRefused(f"{reference[:128]} names nothing in the schema")
    return found


def _unescaped(word: str) -> str:
    if "%" in word:
        raise SchemaRefused("a $ref with % is not taken")
    return word.replace("~1", "/").replace("~0", "~")
