"""Graphs: named, versioned ways of reasoning, and what they can be made of."""

from __future__ import annotations

from typing import TYPE_CHECKING

from behest.order import strategy_choice
from behest.services.ids import new_request_id
from behest.v1 import reasoning_service_pb2

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping, Sequence

    from behest.calls import Calls
    from behest.v1 import graph_pb2, operator_pb2, task_pb2
    from behest.v1.reasoning_service_pb2_grpc import ReasoningServiceAsyncStub


class Graphs:
    """Calls of ReasoningService. All raise BehestError. To run a graph, see `Client.run`."""

    def __init__(self, stub: ReasoningServiceAsyncStub, calls: Calls) -> None:
        self._stub = stub
        self._calls = calls

    async def operators(self) -> Sequence[operator_pb2.Operator]:
        """Return the operators that every graph has, in alphabetical order."""
        request = reasoning_service_pb2.ListOperatorsRequest()
        return (await self._calls.unary(self._stub.ListOperators, request)).operators

    async def strategies(self) -> Sequence[graph_pb2.Strategy]:
        """Return the strategies, in alphabetical order."""
        request = reasoning_service_pb2.ListStrategiesRequest()
        return (await self._calls.unary(self._stub.ListStrategies, request)).strategies

    async def make(self, strategy: str, parameters: Mapping[str, str | int] | None = None) -> graph_pb2.Graph:
        """Return the graph of a strategy; nothing is kept. Parameters that are not named have their defaults."""
        request = reasoning_service_pb2.MakeGraphRequest(strategy=strategy_choice(strategy, parameters or {}))
        return (await self._calls.unary(self._stub.MakeGraph, request)).graph

    async def create(self, graph: graph_pb2.Graph, *, request_id: str = "") -> graph_pb2.Graph:
        """Create a graph as version 1, and return it as it was stored."""
        request = reasoning_service_pb2.CreateGraphRequest(graph=graph, request_id=request_id or new_request_id())
        return (await self._calls.unary(self._stub.CreateGraph, request)).graph

    async def get(self, graph_id: str, *, version: int = 0) -> graph_pb2.Graph:
        """Return a graph at its newest (0) or at an earlier version."""
        request = reasoning_service_pb2.GetGraphRequest(graph_id=graph_id, version=version)
        return (await self._calls.unary(self._stub.GetGraph, request)).graph

    def list(
        self, request: reasoning_service_pb2.ListGraphsRequest | None = None
    ) -> AsyncGenerator[graph_pb2.Graph, None]:
        """Yield the graphs that a request asks for, ordered by id, page after page."""
        return self._calls.pages(
            self._stub.ListGraphs, request or reasoning_service_pb2.ListGraphsRequest(), lambda page: page.graphs
        )

    async def update(self, graph: graph_pb2.Graph, *, expected_version: int = 0) -> graph_pb2.Graph:
        """Put a graph, whole, in the place of the newest version (0: whichever that is), and return the new one."""
        request = reasoning_service_pb2.UpdateGraphRequest(graph=graph, expected_version=expected_version)
        # A repeat of an update that took place would miss the version.
        is_repeatable = expected_version == 0
        return (await self._calls.unary(self._stub.UpdateGraph, request, is_repeatable=is_repeatable)).graph

    async def delete(self, graph_id: str) -> None:
        """Delete a graph with all its versions. Idempotent."""
        request = reasoning_service_pb2.DeleteGraphRequest(graph_id=graph_id)
        await self._calls.unary(self._stub.DeleteGraph, request)

    async def validate(self, graph: graph_pb2.Graph, *, agent_id: str = "") -> Sequence[graph_pb2.GraphProblem]:
        """Return everything that is wrong with a graph; empty when it is valid.

        With an agent, the tools that nodes name are looked up among those of the agent.
        """
        request = reasoning_service_pb2.ValidateGraphRequest(graph=graph, agent_id=agent_id)
        return (await self._calls.unary(self._stub.ValidateGraph, request)).problems

    async def preview(
        self, graph: graph_pb2.Graph, node: str, task: task_pb2.Task
    ) -> reasoning_service_pb2.PreviewNodeResponse:
        """Return what the model of a node, such as "solve" or "inner/solve", would see of a task; nothing is called."""
        request = reasoning_service_pb2.PreviewNodeRequest(graph=graph, node=node, task=task)
        return await self._calls.unary(self._stub.PreviewNode, request)
