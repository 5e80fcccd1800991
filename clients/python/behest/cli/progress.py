"""How far the graph of a run is, told by its events: as notes a line each, and as a whole that can be drawn.

Above: `follow` and `live`. Below: the messages of the contract. No I/O.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from behest.cli.show import short_name
from behest.updates import TERMINAL
from behest.v1 import node_event_pb2, run_pb2

if TYPE_CHECKING:
    from google.protobuf.timestamp_pb2 import Timestamp

    from behest.v1 import event_pb2

RUNNING = run_pb2.NODE_STATE_RUNNING
NODE_EVENTS = frozenset({"node_started", "node_completed", "node_failed", "node_skipped"})
_REASONS = node_event_pb2.NodeSkipReason.DESCRIPTOR


class NodeNotes:
    """Says in a line what an event of a node means."""

    def __init__(self) -> None:
        self._begun: dict[int, Timestamp] = {}

    def note_of(self, event: event_pb2.Event) -> str:
        """Return the line; empty for an event of anything else."""
        match event.WhichOneof("payload"):
            case "node_started":
                return self._started(event)
            case "node_completed":
                done = event.node_completed
                is_failure = done.outcome == node_event_pb2.NODE_OUTCOME_FAILURE
                score = f", score {done.score:.2f}" if done.HasField("score") else ""
                word = "found a failure" if is_failure else "done"
                return f"✔ {done.node} {word}{self._took(done.visit, event)}{score}"
            case "node_failed":
                failed = event.node_failed
                return f"✘ {failed.node} failed{self._took(failed.visit, event)}: {failed.reason}: {failed.message}"
            case "node_skipped":
                skipped = event.node_skipped
                why = short_name(_REASONS, skipped.reason).replace("_", " ")
                return f"– {skipped.node} {'stopped' if skipped.visit else 'left out'}: {why}"
            case _:
                return ""

    def _started(self, event: event_pb2.Event) -> str:
        started = event.node_started
        self._begun[started.visit] = event.record_time
        words = [started.operator] if started.operator and started.operator != started.node else []
        words += [f"round {started.iteration}"] if started.iteration > 1 else []
        return f"▶ {started.node}" + (f" ({', '.join(words)})" if words else "")

    def _took(self, visit: int, event: event_pb2.Event) -> str:
        begun = self._begun.pop(visit, None)
        if begun is None:
            return ""
        return f" in {max(event.record_time.ToNanoseconds() - begun.ToNanoseconds(), 0) / 1e9:.1f} s"


class Progress:
    """What a run tells of its graph, kept up by its events."""

    def __init__(self, reasoning: run_pb2.Reasoning) -> None:
        self.graph = reasoning.graph
        self._visits = {visit.started.visit: visit for visit in reasoning.visits}
        self._skipped = list(reasoning.skipped)

    def take(self, event: event_pb2.Event) -> bool:
        """Take in an event; return whether anything of a node is changed by it. With the run, what is at work ends."""
        kind = event.WhichOneof("payload")
        if kind == "node_started":
            begun = run_pb2.NodeVisit(started=event.node_started, state=RUNNING, start_time=event.record_time)
            self._visits[event.node_started.visit] = begun
        elif kind == "node_skipped" and not event.node_skipped.visit:
            self._skipped.append(event.node_skipped)
        elif kind in NODE_EVENTS:
            self._ended(event)
        elif kind in TERMINAL:
            for visit in self.at_work():
                visit.state = run_pb2.NODE_STATE_SKIPPED
                visit.end_time.CopyFrom(event.record_time)
        return kind in NODE_EVENTS or kind in TERMINAL

    def _ended(self, event: event_pb2.Event) -> None:
        kind = event.WhichOneof("payload") or ""
        told = getattr(event, kind)
        visit = self._visits.setdefault(told.visit, run_pb2.NodeVisit())
        visit.started.node = told.node
        visit.state = run_pb2.NodeState.Value(kind.replace("node_", "NODE_STATE_").upper())
        visit.end_time.CopyFrom(event.record_time)
        visit.usage.CopyFrom(told.usage)
        if kind == "node_completed":
            visit.outcome = event.node_completed.outcome
            if event.node_completed.HasField("score"):
                visit.score = event.node_completed.score
        elif kind == "node_failed":
            visit.reason = event.node_failed.reason

    def as_of(self, now_nanoseconds: int) -> run_pb2.Reasoning:
        """Return the whole; visits that are at work took until now."""
        reasoning = run_pb2.Reasoning(graph=self.graph, visits=self._visits.values(), skipped=self._skipped)
        for visit in reasoning.visits:
            if visit.state == RUNNING:
                visit.end_time.FromNanoseconds(now_nanoseconds)
        return reasoning

    def at_work(self) -> list[run_pb2.NodeVisit]:
        """Return the visits that are at work, in the order in which they began."""
        return [visit for visit in self._visits.values() if visit.state == RUNNING]

    def ended(self) -> int:
        """Return of how many nodes a visit has ended, or that were left out."""
        nodes = {visit.started.node for visit in self._visits.values() if visit.state != RUNNING}
        return len(nodes | {skipped.node for skipped in self._skipped})
