"""Checks of what requests say of reasoning graphs, each refusal naming its field, and the errors that only they raise.

Above: ReasoningService, and the checks of runs and agents. Below: `validate`. Whether a graph is valid is another
question, which `runtime.graphs` answers: here is checked what is around it.
"""

from __future__ import annotations

from behest.v1.graph_pb2 import Graph, StrategyChoice
from behest.v1.run_spec_pb2 import RunSpec
from behestd.errors import AlreadyExists, InvalidRequest, LostRace, TooLarge
from behestd.service.chat_checks import MAX_NAME_BYTES, check_sampling
from behestd.service.validate import duration, identifier, labels, max_bytes, max_items, not_negative, required

OUTPUT_ONLY = frozenset({"id", "version", "create_time", "update_time"})
CHANGEABLE = frozenset(field.name for field in Graph.DESCRIPTOR.fields) - OUTPUT_ONLY
MAX_GRAPH_BYTES = 1024 * 1024
_MAX_DISPLAY_NAME = 128
_MAX_DESCRIPTION_BYTES = 4 * 1024
_MAX_PARAMETERS = 32


class GraphIdTaken(AlreadyExists):
    """Raised when the chosen id of a graph exists."""

    def __init__(self, graph_id: str) -> None:
        super().__init__("REASONING_GRAPH_ID_TAKEN", f"graph id {graph_id} is taken", graphId=graph_id)


class GraphVersionMismatch(LostRace):
    """Raised when a graph is not at the version expected."""

    def __init__(self, graph_id: str, version: int) -> None:
        text = f"graph {graph_id} is at version {version}"
        super().__init__("REASONING_GRAPH_VERSION_MISMATCH", text, graphId=graph_id, version=version)


def check_graph(path: str, graph: Graph) -> None:
    """Check a graph but for its output-only fields, and for whether it is valid."""
    if graph.ByteSize() > MAX_GRAPH_BYTES:
        raise TooLarge(path, graph.ByteSize(), MAX_GRAPH_BYTES)
    if graph.id:
        identifier(f"{path}.id", graph.id)
    if len(graph.display_name) > _MAX_DISPLAY_NAME:
        problem = f"has {len(graph.display_name)} characters, at most {_MAX_DISPLAY_NAME} are allowed"
        raise InvalidRequest(f"{path}.display_name", problem)
    max_bytes(f"{path}.description", graph.description, _MAX_DESCRIPTION_BYTES)
    labels(f"{path}.labels", graph.labels)
    if graph.termination.HasField("timeout"):
        duration(f"{path}.termination.timeout", graph.termination.timeout)
    for index, node in enumerate(graph.nodes):
        field = f"{path}.nodes[{index}]"
        max_bytes(f"{field}.model", node.model, MAX_NAME_BYTES)
        check_sampling(f"{field}.sampling", node.sampling)
        if node.HasField("timeout"):
            duration(f"{field}.timeout", node.timeout)
        if node.HasField("subgraph"):
            check_graph(f"{field}.subgraph", node.subgraph)


def check_choice(path: str, choice: StrategyChoice) -> None:
    """Check what names a strategy."""
    required(f"{path}.name", choice.name)
    max_bytes(f"{path}.name", choice.name, MAX_NAME_BYTES)
    max_items(f"{path}.parameters", choice.parameters, _MAX_PARAMETERS)
    for name, value in choice.parameters.items():
        max_bytes(f"{path}.parameters", name, MAX_NAME_BYTES)
        max_bytes(f"{path}.parameters", value, MAX_NAME_BYTES)


def check_followed(spec: RunSpec) -> None:
    """Check what a run is to follow: at most one graph."""
    named = [name for name in ("graph", "strategy") if spec.HasField(name)]
    named = ["graph_id", *named] if spec.graph_id else named
    if len(named) > 1:
        raise InvalidRequest(f"spec.{named[1]}", f"and {named[0]} exclude each other")
    not_negative("spec.graph_version", spec.graph_version)
    if spec.graph_id:
        identifier("spec.graph_id", spec.graph_id)
    elif spec.graph_version:
        raise InvalidRequest("spec.graph_version", "is of a graph_id, and there is none")
    if spec.HasField("graph"):
        check_graph("spec.graph", spec.graph)
    if spec.HasField("strategy"):
        check_choice("spec.strategy", spec.strategy)
