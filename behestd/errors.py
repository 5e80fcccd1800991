"""The errors of behestd, one tree. Each leaf has a reason of the contract, typed fields and builds its own message.

    BehestError
    ├── InvalidRequest          the caller's message breaks a rule (carries the field)
    ├── NotFound                no such thing in the caller's namespace
    ├── AlreadyExists           the chosen name is taken
    ├── WrongState              the thing is not in a state that allows it
    ├── LostRace                somebody else was faster; try again
    ├── OutOfRange              the position does not exist
    ├── Exhausted               a limit is reached (may carry a delay)
    ├── Unavailable             a part is down or stopping (may carry a delay)
    ├── Forbidden               the caller may not
    ├── Unauthenticated         the caller is not known
    ├── Unsupported             not offered here
    ├── TimedOut                something outside took too long
    ├── Cancelled               the run was cancelled meanwhile
    ├── Corrupt                 stored data is damaged
    └── Internal                a fault of ours

The gRPC code of each branch is chosen in `service/status.py` and nowhere else. Messages never hold secrets, prompts or
stored bytes. Reasons are the names in `error_reason.proto` without their prefix.
"""

from __future__ import annotations

from typing import Self


class BehestError(Exception):
    """Raised when an operation cannot be done; the base of every error that a caller may see.

    `reason` is stable, `metadata` holds every value that the message names (keys lowerCamel), `retry_seconds` says when
    trying again makes sense (None: not known).
    """

    not_executed = False
    """Whether it is proved that the tool call which failed was not executed: told in a trailer."""

    def __init__(self, reason: str, message: str, *, retry_seconds: float | None = None, **metadata: object) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.retry_seconds = retry_seconds
        self.metadata = {key: str(value) for key, value in metadata.items()}


class NotFound(BehestError):
    """Raised when there is no such thing in the caller's namespace."""


class AlreadyExists(BehestError):
    """Raised when a chosen name or id is taken."""


class WrongState(BehestError):
    """Raised when the thing is not in a state that allows the operation."""


class LostRace(BehestError):
    """Raised when somebody else was faster; reading again and trying again makes sense."""


class OutOfRange(BehestError):
    """Raised when a position does not exist."""


class Exhausted(BehestError):
    """Raised when a limit is reached."""


class Unavailable(BehestError):
    """Raised when a part is down or about to stop."""


class Forbidden(BehestError):
    """Raised when the caller may not do what it asks."""


class Unauthenticated(BehestError):
    """Raised when the caller is not known."""


class Unsupported(BehestError):
    """Raised when the daemon or its storage does not offer the operation."""


class TimedOut(BehestError):
    """Raised when something outside took too long."""


class Cancelled(BehestError):
    """Raised when the run was cancelled during the operation."""


class Corrupt(BehestError):
    """Raised when stored data is damaged."""


class Internal(BehestError):
    """Raised when a fault of ours is met in a place where it can be told."""


class InvalidRequest(BehestError):
    """Raised when the caller's message breaks a rule. `violations` pairs each wrong field with what is wrong."""

    def __init__(
        self, field: str, problem: str, *, reason: str = "REQUEST_INVALID", more: tuple[tuple[str, str], ...] = ()
    ) -> None:
        super().__init__(reason, f"{field}: {problem}", field=field)
        self.violations = ((field, problem), *more)

    def below(self, path: str) -> Self:
        """This error, its fields named as those of the message at `path`."""
        self.violations = tuple((f"{path}.{field}", problem) for field, problem in self.violations)
        self.metadata["field"] = self.violations[0][0]
        self.message = f"{path}.{self.message}"
        return self


class GraphInvalid(InvalidRequest):
    """Raised when a reasoning graph is not valid. `node`, `edge` and `rule` are those of its first problem.

    `edge` is the edge's place from 1; 0: it is no edge's. `violations` pairs the place of each problem with its text.
    """

    def __init__(self, node: str, edge: int, rule: str, violations: tuple[tuple[str, str], ...]) -> None:
        (field, problem), *more = violations
        super().__init__(field, problem, reason="REASONING_GRAPH_INVALID", more=tuple(more))
        self.metadata |= {"node": node, "edge": str(edge), "rule": rule, "problems": str(len(violations))}


# --- leaves that several rooms raise ---


class RunNotFound(NotFound):
    """Raised when there is no such run."""

    def __init__(self, run_id: str) -> None:
        super().__init__("RUN_NOT_FOUND", f"run {run_id} not found", runId=run_id)


class SessionNotFound(NotFound):
    """Raised when there is no such session."""

    def __init__(self, session_id: str) -> None:
        super().__init__("SESSION_NOT_FOUND", f"session {session_id} not found", sessionId=session_id)


class AgentNotFound(NotFound):
    """Raised when there is no such agent."""

    def __init__(self, agent_id: str) -> None:
        super().__init__("AGENT_NOT_FOUND", f"agent {agent_id} not found", agentId=agent_id)


class ModelNotFound(NotFound):
    """Raised when there is no such model or alias."""

    def __init__(self, model: str) -> None:
        super().__init__("PROVIDER_MODEL_NOT_FOUND", f"model {model} not found", model=model)


class ServerNotFound(NotFound):
    """Raised when there is no such server."""

    def __init__(self, server_id: str) -> None:
        super().__init__("TOOL_SERVER_NOT_FOUND", f"server {server_id} not found", serverId=server_id)


class ToolNotFound(NotFound):
    """Raised when there is no such tool."""

    def __init__(self, tool: str) -> None:
        super().__init__("TOOL_NOT_FOUND", f"tool {tool} not found", tool=tool)


class ArtifactNotFound(NotFound):
    """Raised when there is no such artifact."""

    def __init__(self, artifact_id: str) -> None:
        super().__init__("ARTIFACT_NOT_FOUND", f"artifact {artifact_id} not found", artifactId=artifact_id)


class GraphNotFound(NotFound):
    """Raised when there is no such reasoning graph, or no such version of it. `version` 0: the newest."""

    def __init__(self, graph_id: str, version: int = 0) -> None:
        what = f"graph {graph_id} at version {version}" if version else f"graph {graph_id}"
        super().__init__("REASONING_GRAPH_NOT_FOUND", f"{what} not found", graphId=graph_id, version=version)


class StrategyNotFound(NotFound):
    """Raised when there is no such strategy."""

    def __init__(self, strategy: str) -> None:
        super().__init__("REASONING_STRATEGY_NOT_FOUND", f"strategy {strategy} not found", strategy=strategy)


class NodeNotFound(NotFound):
    """Raised when there is no such node of a graph, or no such visit of one. `visit` 0: it is about the node."""

    def __init__(self, node: str, visit: int = 0) -> None:
        what = f"visit {visit}" if visit else f"node {node}"
        super().__init__("REASONING_NODE_NOT_FOUND", f"{what} not found", node=node, visit=visit)


class RequestIdReused(AlreadyExists):
    """Raised when a request_id was used with another request."""

    def __init__(self, request_id: str) -> None:
        super().__init__(
            "REQUEST_ID_REUSED", f"request_id {request_id} was used with another request", requestId=request_id
        )


class RunIdTaken(AlreadyExists):
    """Raised when the chosen run id exists."""

    def __init__(self, run_id: str) -> None:
        super().__init__("RUN_ID_TAKEN", f"run id {run_id} is taken", runId=run_id)


class RunEnding(WrongState):
    """Raised when the run is about to end or has ended."""

    def __init__(self, run_id: str, state: str) -> None:
        super().__init__("RUN_ENDING", f"run {run_id} is {state}", runId=run_id, state=state)


class RunActive(WrongState):
    """Raised when the run has not ended."""

    def __init__(self, run_id: str, state: str) -> None:
        super().__init__("RUN_ACTIVE", f"run {run_id} is {state}; cancel it first", runId=run_id, state=state)


class SessionBusy(WrongState):
    """Raised when the session has an active run and the policy is to refuse."""

    def __init__(self, session_id: str, run_id: str, reason: str = "RUN_SESSION_BUSY") -> None:
        super().__init__(
            reason, f"session {session_id} is busy with run {run_id}", sessionId=session_id, activeRunId=run_id
        )


class SessionQueueFull(Exhausted):
    """Raised when too many runs queue for the session."""

    def __init__(self, session_id: str, limit: int) -> None:
        super().__init__(
            "RUN_SESSION_QUEUE_FULL",
            f"session {session_id} has {limit} queued runs, its limit",
            sessionId=session_id,
            limit=limit,
            retry_seconds=1.0,
        )


class Overloaded(Exhausted):
    """Raised when the daemon takes no more runs now."""

    def __init__(self, what: str, limit: int) -> None:
        super().__init__("RUNTIME_OVERLOADED", f"{what} are at their limit of {limit}", limit=limit, retry_seconds=1.0)


class TooLarge(Exhausted):
    """Raised when a field is over its limit of bytes."""

    def __init__(self, field: str, size_bytes: int, limit_bytes: int, reason: str = "REQUEST_TOO_LARGE") -> None:
        super().__init__(
            reason,
            f"{field} of {size_bytes} bytes exceeds the limit of {limit_bytes} bytes",
            field=field,
            sizeBytes=size_bytes,
            limitBytes=limit_bytes,
        )


class StorageFull(Exhausted):
    """Raised when the disk is full; nothing was written."""

    def __init__(self) -> None:
        super().__init__("STORAGE_FULL", "the disk of the store is full; nothing was written", retry_seconds=5.0)


class StorageFailed(Unavailable):
    """Raised when nobody can say whether a write took place; the process is about to stop."""

    def __init__(self) -> None:
        super().__init__("STORAGE_FAILED", "the store failed; whether the write took place is not known")


class Draining(Unavailable):
    """Raised when the daemon is about to stop. `head_sequence` is the resume point of a watch (0: none)."""

    def __init__(self, head_sequence: int = 0) -> None:
        super().__init__(
            "RUNTIME_DRAINING", "the daemon is about to stop", headSequence=head_sequence, retry_seconds=1.0
        )


class WatchCompacted(OutOfRange):
    """Raised when the events asked for are deleted."""

    def __init__(self, oldest_sequence: int) -> None:
        super().__init__(
            "WATCH_COMPACTED", f"events before {oldest_sequence} are deleted", oldestSequence=oldest_sequence
        )


class WatchAhead(OutOfRange):
    """Raised when the sequence asked for is beyond the last event."""

    def __init__(self, head_sequence: int) -> None:
        super().__init__("WATCH_AHEAD", f"the last event is {head_sequence}", headSequence=head_sequence)


class WatchStalled(LostRace):
    """Raised when a client does not read for too long; it resumes after `head_sequence`."""

    def __init__(self, head_sequence: int) -> None:
        super().__init__(
            "WATCH_STALLED", "the client did not read in time; resume the watch", headSequence=head_sequence
        )


class LogCorrupt(Corrupt):
    """Raised when a run's log does not fold at `sequence`."""

    def __init__(self, run_id: str, sequence: int, problem: str) -> None:
        super().__init__(
            "RUN_LOG_CORRUPT",
            f"log of run {run_id} is damaged at sequence {sequence}: {problem}",
            runId=run_id,
            sequence=sequence,
        )


class NewerFormat(WrongState):
    """Raised when a log holds an event that this version does not know."""

    def __init__(self, run_id: str, sequence: int) -> None:
        super().__init__(
            "RUN_NEWER_FORMAT",
            f"event {sequence} of run {run_id} was written by a newer version",
            runId=run_id,
            sequence=sequence,
        )
