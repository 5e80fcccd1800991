"""Strategies: known ways of reasoning, each a function from a few numbers to a graph. Pure.

Above: the service, which lists them, and what pins a run's graph. Below: the families of strategies. What is made is a
graph as anybody could write it, valid for all parameters within their ranges, so it can be stored, changed and drawn.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from behest.v1.graph_pb2 import Graph, Strategy, StrategyChoice, StrategyParameter
from behestd.errors import InvalidRequest, StrategyNotFound
from behestd.reasoning import strategies_chain, strategies_learning, strategies_parallel
from behestd.reasoning.strategies_parts import Recipe

_NUMBER = re.compile(r"\d{1,9}", re.ASCII)
_RECIPES: Mapping[str, Recipe] = {
    recipe.strategy.name: recipe
    for recipe in sorted(
        (*strategies_chain.RECIPES, *strategies_learning.RECIPES, *strategies_parallel.RECIPES),
        key=lambda recipe: recipe.strategy.name,
    )
}

STRATEGIES: tuple[Strategy, ...] = tuple(recipe.strategy for recipe in _RECIPES.values())
"""All strategies, in alphabetical order."""


def make(choice: StrategyChoice) -> Graph:
    """Make the graph of a strategy.

    Raises: StrategyNotFound, InvalidRequest for a parameter that the strategy has not or that is out of its range.
    """
    recipe = _RECIPES.get(choice.name)
    if recipe is None:
        raise StrategyNotFound(choice.name)
    known = {parameter.name: parameter for parameter in recipe.strategy.parameters}
    for name in sorted(choice.parameters):
        if name not in known:
            there_are = f"it has {', '.join(known)}" if known else "it has none"
            raise InvalidRequest(_field(name), f"is no parameter of the strategy {choice.name}: {there_are}")
    made = recipe.make({name: _number(known[name], choice.parameters) for name in known})
    return Graph(
        display_name=choice.name,
        description=recipe.strategy.description,
        nodes=made.nodes,
        edges=made.edges,
        start=made.nodes[0].id,
        termination=made.termination,
        operators=made.operators,
        max_parallel_nodes=made.max_parallel_nodes if made.HasField("max_parallel_nodes") else None,
    )


def _number(parameter: StrategyParameter, given: Mapping[str, str]) -> int:
    text = given.get(parameter.name, parameter.default)
    number = int(text) if _NUMBER.fullmatch(text) else -1
    if not parameter.minimum <= number <= parameter.maximum:
        problem = f"is {text[:32]!r}, not a whole number from {parameter.minimum} to {parameter.maximum}"
        raise InvalidRequest(_field(parameter.name), problem)
    return number


def _field(name: str) -> str:
    return f"strategy.parameters[{name[:64]}]"
