"""Runs a graph of three nodes by the pure-Python client, or a strategy, and prints what becomes of the nodes.

python graph_lite.py TEXT ADDRESS [STRATEGY]

A line is a visit, a node and its state; the last one is the answer.
"""

from __future__ import annotations

import asyncio
import sys

from behest_lite.client import Client
from behest_lite.contract.behest.v1 import Graph, GraphEdge, GraphNode, Pipeline, StrategyChoice, Termination

GRAPH = Graph(
    id="three",
    nodes=[GraphNode(id=name, operator=name) for name in ("plan", "solve", "answer")],
    edges=[
        GraphEdge(from_="plan", to="solve", pipeline=Pipeline()),
        GraphEdge(from_="solve", to="answer", pipeline=Pipeline()),
    ],
    termination=Termination(max_iterations=10, on_goal_achieved=True),
)


async def main() -> None:
    """Do what is told."""
    text, address, *rest = sys.argv[1:]
    async with Client(address) as client:
        order = {"strategy": StrategyChoice(name=rest[0])} if rest else {"graph": GRAPH}
        run = client.stream(text, **order)
        async for change in run.nodes():
            sys.stdout.write(f"{change.visit} {change.node} {change.state.name.lower()}\n")
        sys.stdout.write("".join([piece async for piece in run.text()]) + "\n")
        assert (await run.result()).text


if __name__ == "__main__":
    asyncio.run(main())
