"""The values that a run's state is made of. Above: `run` (the fold). Below: the messages of the contract.

All are frozen; a change makes a new value. Times are unix nanoseconds, 0 meaning none.
"""

from __future__ import annotations

from dataclasses import field
from enum import IntEnum
from typing import TYPE_CHECKING, TypeVar

from google.rpc.status_pb2 import Status

from behest.v1.approval_event_pb2 import ApprovalRequested
from behest.v1.context_event_pb2 import ContextBuilt
from behest.v1.definition_pb2 import RunDefinition
from behest.v1.message_pb2 import Message, ToolCall, ToolResult
from behest.v1.run_event_pb2 import ChildRunStarted, RunCreated
from behest.v1.run_state_pb2 import RunOutput, RunState
from behest.v1.tool_event_pb2 import ToolStarted
from behest.v1.tool_pb2 import Tool
from behest.v1.usage_pb2 import Usage
from behestd.values import dataclass

if TYPE_CHECKING:
    from behestd.core.nodes import Nodes

TERMINAL = frozenset(
    {
        RunState.RUN_STATE_COMPLETED,
        RunState.RUN_STATE_FAILED,
        RunState.RUN_STATE_CANCELLED,
        RunState.RUN_STATE_TIMED_OUT,
    }
)

_Value = TypeVar("_Value")


def state_name(state: int) -> str:
    """The state's name without its prefix, such as RUNNING."""
    return RunState.Name(state).removeprefix("RUN_STATE_")  # type: ignore[arg-type]  # a number from the wire


class Phase(IntEnum):
    """Where a tool call is."""

    NEW = 0
    """Asked for by the model; not yet allowed, refused or asked about."""
    ASKED = 1
    """Waits for an approval."""
    ALLOWED = 2
    """May be sent."""
    STARTED = 3
    """An attempt is in flight."""
    BACKOFF = 4
    """An attempt failed; the next is due at `due_ns`."""
    ASKING = 5
    """The server is being asked what became of the attempt."""
    UNKNOWN = 6
    """Nobody can say what became of it; somebody's word is awaited until `due_ns`."""
    DONE = 7
    """It has its result."""


@dataclass(frozen=True)
class Call:
    """One tool call of the open step."""

    call: ToolCall
    tool: Tool | None
    phase: Phase = Phase.NEW
    attempt: int = 0
    epoch: int = 0
    """Of the owner that sent the attempt."""
    started: ToolStarted | None = None
    first_start_ns: int = 0
    due_ns: int = 0
    asked: ApprovalRequested | None = None
    """The latest request for an approval."""
    asked_ns: int = 0
    allowed_by: str = ""
    result: ToolResult | None = None
    may_have_run: bool = False
    """Whether an attempt before the present one may have reached its server."""
    in_doubt: bool = False
    """Whether it ended without anybody knowing whether it took effect."""
    child: ChildRunStarted | None = None
    """The child run that executes it."""
    held: int = 0
    """Attempts that a pause stopped before they left."""


@dataclass(frozen=True)
class Attempt:
    """The open attempt of a model call."""

    number: int
    endpoint: str
    deadline_ns: int
    reserved_tokens: int
    reserve: Usage = field(default_factory=Usage)
    """What is set aside for it: the estimated input, and the most that it may answer where that is bounded."""


@dataclass(frozen=True)
class Failure:
    """A failed attempt of a model call, as the route sees it."""

    endpoint: str
    failure_class: int
    reason: str
    message: str
    due_ns: int = 0
    """When the next attempt is due; 0 at once."""


@dataclass(frozen=True)
class Step:
    """The open step: one model turn and its tool calls. Number 0 is before the first."""

    number: int = 0
    attempts: int = 0
    open: Attempt | None = None
    failures: tuple[Failure, ...] = ()
    answered: bool = False
    finish_reason: int = 0
    calls: tuple[Call, ...] = ()
    inputs: tuple[Message, ...] = ()
    """What was said since the last model call left."""
    is_malformed: bool = False
    context: ContextBuilt | None = None
    """What its calls are composed of beside the log before it. None: nothing."""


@dataclass(frozen=True)
class Wait:
    """What a waiting run waits for, and how much of its time was left."""

    reason: int
    until_ns: int
    remaining_ns: int
    since_ns: int = 0
    subject: str = ""
    """What is paused, when it waits for that."""


@dataclass(frozen=True)
class Cancel:
    """Why and since when a run is about to end. `cause` 0 is the deadline."""

    cause: int
    mode: int
    since_ns: int


@dataclass(frozen=True)
class Life:
    """The run's place in time."""

    create_ns: int = 0
    start_ns: int = 0
    end_ns: int = 0
    deadline_ns: int = 0
    session_index: int = 0
    wait: Wait | None = None
    cancel: Cancel | None = None
    output: RunOutput | None = None
    error: Status | None = None
    ownership: Ownership = field(default_factory=lambda: Ownership())
    backoff_since_ns: int = 0
    """When the waits for a model began that no answer has ended since."""


@dataclass(frozen=True)
class Ownership:
    """What the claims of a run tell about it."""

    claims: int = 0
    is_released: bool = True
    """Whether the last owner let go by itself."""
    has_progressed: bool = True
    """Whether the last owner brought the run forward."""
    idle_claims: int = 0
    """Claims in a row whose owner vanished without bringing the run forward."""


@dataclass(frozen=True)
class Spend:
    """What a run consumed so far, all attempts together."""

    input_tokens: int = 0
    output_tokens: int = 0
    cached_input_tokens: int = 0
    cache_write_tokens: int = 0
    reasoning_tokens: int = 0
    cost_micro_usd: int = 0
    unpriced_attempts: int = 0
    """Attempts whose cost is not known."""
    attempts: int = 0
    tool_calls: int = 0


@dataclass(frozen=True)
class Turns:
    """What is counted over the turns of a run."""

    malformed: int = 0
    """Malformed turns in a row."""
    length_recoveries: int = 0
    fingerprints: tuple[bytes, ...] = ()
    """The latest tool calls that count for doom loops, oldest first."""
    doom_loops: int = 0
    """Detections so far."""
    children: int = 0
    """Child runs started."""
    doubtful: frozenset[bytes] = frozenset()
    """Fingerprints of calls that were reported to the model as of unknown outcome."""
    input_ids: tuple[tuple[str, int], ...] = ()
    """Ids of the inputs received, each with its sequence."""
    input_digests: tuple[bytes, ...] = ()
    """Of what these inputs say, in the same order."""


@dataclass(frozen=True)
class Head:
    """The end of the log: the last event's sequence, epoch and hash, and the log's size."""

    sequence: int = 0
    epoch: int = 0
    hash: bytes = b""
    log_bytes: int = 0


@dataclass(frozen=True)
class Summarising:
    """The open attempt at a summary, and what it is of: messages up to one of them."""

    number: int
    endpoint: str
    deadline_ns: int
    reserve: Usage
    upto_message_id: str
    run_messages: int
    """How many of the run's own messages are summarised, with all before the run."""
    tokens_before: int
    step: int
    """The step that it makes room for."""
    is_reactive: bool = False
    """Whether the model had refused the call for its length."""


@dataclass(frozen=True)
class Compaction:
    """What became of the run's wish for a shorter conversation."""

    open: Summarising | None = None
    attempts: int = 0
    step: int = 0
    """The last step that room was made for beforehand, or that none could be made for."""
    reacted: int = 0
    """The last step that room was made for after its model had refused it, or that none could be made for."""
    failed: tuple[str, ...] = ()
    """Models that failed at it for the next step."""
    summary: Message | None = None
    """The latest summary made in this run; it names the last message that it stands for."""
    run_messages: int = 0
    """How many of the run's own messages it stands for, with all before the run."""


@dataclass(frozen=True)
class Run:
    """The state of a run: the fold of its log."""

    id: str
    created: RunCreated
    definition: RunDefinition
    state: int = RunState.RUN_STATE_QUEUED
    head: Head = Head()
    life: Life = Life()
    step: Step = Step()
    transcript: tuple[Message, ...] = ()
    spend: Spend = Spend()
    turns: Turns = Turns()
    compaction: Compaction = Compaction()
    steps: int = 0
    """The number of the last step that was begun."""
    nodes: Nodes | None = None
    """What became of the nodes of its graph. None: it is a loop of model and tools, and `step` is all that is open."""
    visit: int = 0
    """The visit of the node that this is a view of, see `lanes`. 0: it is the whole run."""
    beside: tuple[Call, ...] = ()
    """In a view, the calls of other visits that are in flight."""
    aside: Spend = Spend()
    """In a view by which is decided, what is set aside for the open attempts and the unsent calls of other visits."""

    @property
    def is_ended(self) -> bool:
        """Whether the run is in a terminal state."""
        return self.state in TERMINAL

    @property
    def calls(self) -> tuple[Call, ...]:
        """The calls of the open steps, steps in the order of their visits, calls as the model asked."""
        return self.step.calls if self.nodes is None else self.nodes.calls

    @property
    def attempts(self) -> tuple[tuple[int, Attempt], ...]:
        """The open attempts of model calls, each with the number of its step."""
        if self.nodes is not None:
            return self.nodes.attempts
        return ((self.step.number, self.step.open),) if self.step.open is not None else ()

    def call(self, call_id: str) -> Call | None:
        """The call of an open step with that id."""
        return next((call for call in self.calls if call.call.id == call_id), None)


def replace(value: _Value, **changes: object) -> _Value:
    """Make a value of this module that differs in some fields: `dataclasses.replace`, at a fraction of its cost.

    This is why the values of this module have no slots.
    """
    new = object.__new__(value.__class__)
    new.__dict__ = value.__dict__ | changes
    return new
