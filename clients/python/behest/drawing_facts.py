"""What all drawings of a graph say alike: words for edges, and what a run tells of each node.

Above: `behest.drawing_terminal`, `behest.drawing_mermaid` and `behest.drawing_dot`. Below: the contract alone. A graph
need not be valid to be drawn, and texts of the graph reach a drawing without control characters.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from behest.v1.graph_pb2 import BranchCondition, FanInMode
from behest.v1.node_event_pb2 import NodeOutcome, NodeSkipReason
from behest.v1.run_pb2 import NodeState

if TYPE_CHECKING:
    from behest.v1.graph_pb2 import Graph, GraphEdge, GraphNode
    from behest.v1.node_event_pb2 import NodeSkipped
    from behest.v1.run_pb2 import NodeVisit, Reasoning

BACK = frozenset({"loop", "retry"})
"""The kinds of edges that go back."""


@dataclass(slots=True)
class Told:
    """What a run tells of one node: its visits added up."""

    state: str = "pending"
    """Of the latest visit: pending, running, completed, failed, skipped."""
    note: str = ""
    """What is worth saying beside the state, in a few words."""
    visits: int = 0
    seconds: float = 0.0
    tokens: int = 0
    cost_micro_usd: int | None = None
    score: float | None = None

    def words(self) -> str:
        """Say all of it, the state first."""
        parts = [f"{self.state} ({self.note})" if self.note else self.state]
        if self.visits > 1:
            parts.append(f"{self.visits} visits")
        if self.seconds or self.state in ("completed", "failed"):
            parts.append(f"{self.seconds:.1f} s")
        if self.tokens:
            parts.append(f"{self.tokens} tokens")
        if self.cost_micro_usd is not None:
            parts.append(f"${self.cost_micro_usd / 1e6:.6f}".rstrip("0").rstrip("."))
        if self.score is not None:
            parts.append(f"score {self.score:.2f}")
        return ", ".join(parts)


@dataclass(frozen=True, slots=True)
class Facts:
    """What a run tells of its nodes, by their paths, and of its edges, by the path of their graph and their place."""

    is_run: bool = False
    nodes: dict[str, Told] = field(default_factory=dict)
    backs: dict[tuple[str, int], int] = field(default_factory=dict)

    def of(self, path: str) -> Told | None:
        """Return what is told of a node; None when it is no run that is drawn."""
        return self.nodes.get(path, Told()) if self.is_run else None


def facts(reasoning: Reasoning | None) -> Facts:
    """Gather what a run tells."""
    found = Facts(is_run=reasoning is not None)
    if reasoning is not None:
        for visit in reasoning.visits:
            _count(found, visit)
        for skipped in reasoning.skipped:
            _leave_out(found, skipped)
    return found


def _count(found: Facts, visit: NodeVisit) -> None:
    told = found.nodes.setdefault(visit.started.node, Told())
    told.state = (
        NodeState.Name(visit.state).removeprefix("NODE_STATE_").lower() if visit.state in _STATES else "unknown"
    )
    told.note = "found a failure" if visit.outcome == NodeOutcome.NODE_OUTCOME_FAILURE else clean(visit.reason)
    told.visits += 1
    if visit.HasField("end_time"):
        nanos = visit.end_time.ToNanoseconds() - visit.start_time.ToNanoseconds()
        told.seconds += max(nanos, 0) / 1e9
    told.tokens += visit.usage.input_tokens + visit.usage.output_tokens
    if visit.usage.HasField("cost_micro_usd"):
        told.cost_micro_usd = (told.cost_micro_usd or 0) + visit.usage.cost_micro_usd
    told.score = visit.score if visit.HasField("score") else None
    if visit.started.edge:
        key = (_graph_of(visit.started.node), visit.started.edge)
        found.backs[key] = found.backs.get(key, 0) + 1


def _leave_out(found: Facts, skipped: NodeSkipped) -> None:
    if skipped.node not in found.nodes:
        found.nodes[skipped.node] = Told(state="skipped", note=_SKIP_NOTES.get(skipped.reason, ""))


def _graph_of(path: str) -> str:
    """Return the path of the graph that a node is in: "" or "inner/"."""
    return path[: path.rfind("/") + 1]


def edge_words(edge: GraphEdge, times: int = 0) -> str:
    """Say of which kind an edge is, and how often a run went back over it; nothing of an edge that only follows."""
    match edge.WhichOneof("kind"):
        case "pipeline" | "subgraph":
            return ""
        case "branch":
            return _branch_words(edge)
        case "loop":
            until = f", until {clean(edge.loop.until)}" if edge.loop.until else ""
            words = f"loop, {_times(edge.loop.max_iterations)} at most{until}"
        case "retry":
            words = f"retry, {edge.retry.max_attempts} attempts at most"
        case "fan_out":
            return f"fan-out, {edge.fan_out.parallelism} at once"
        case "fan_in":
            return f"fan-in, {_MODES.get(edge.fan_in.mode, 'of no mode')}"
        case "race":
            return "race"
        case _:
            return "of no kind"
    return f"{words}; gone back {_times(times)}" if times else words


def _times(number: int) -> str:
    return {1: "once", 2: "twice"}.get(number, f"{number} times")


def _branch_words(edge: GraphEdge) -> str:
    condition = edge.branch.condition
    if condition == BranchCondition.BRANCH_CONDITION_EXPRESSION:
        return f"if {clean(edge.branch.expression)}"
    return _CONDITIONS.get(condition, "on no condition")


def title(graph: Graph) -> str:
    """Name a graph."""
    return clean(graph.display_name or graph.id or "graph")


def work(node: GraphNode) -> str:
    """Say what a node does: its operator, or that it is a graph."""
    return "graph" if node.HasField("subgraph") else clean(node.operator) or "nothing"


def start_of(graph: Graph) -> str:
    """Return the node that begins; empty when there is none."""
    return graph.start or (graph.nodes[0].id if graph.nodes else "")


def clean(text: str) -> str:
    """Put a text on one line, without what a terminal would obey."""
    return "".join(letter if letter.isprintable() else " " if letter.isspace() else "�" for letter in text)


_STATES = frozenset(NodeState.values())
_SKIP_NOTES = {
    NodeSkipReason.NODE_SKIP_REASON_NOT_TAKEN: "not taken",
    NodeSkipReason.NODE_SKIP_REASON_OUTPACED: "outpaced",
    NodeSkipReason.NODE_SKIP_REASON_OVER: "the graph was over",
}
_CONDITIONS = {
    BranchCondition.BRANCH_CONDITION_SUCCESS: "on success",
    BranchCondition.BRANCH_CONDITION_FAILURE: "on failure",
    BranchCondition.BRANCH_CONDITION_GOAL_ACHIEVED: "goal achieved",
    BranchCondition.BRANCH_CONDITION_GOAL_NOT_ACHIEVED: "goal not achieved",
}
_MODES = {
    FanInMode.FAN_IN_MODE_FIRST: "first",
    FanInMode.FAN_IN_MODE_ALL: "all",
    FanInMode.FAN_IN_MODE_BEST: "best",
}
