"""What can happen to a run: the inputs of `decide`. Made by the shell, of outcomes of effects, commands and time.

Also the effects that a run wants: what should be going on while it is in its state.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import field

from behest.v1.approval_event_pb2 import ApprovalDecision
from behest.v1.chat_service_pb2 import ChatEnd
from behest.v1.message_pb2 import Message, ToolResult
from behest.v1.model_event_pb2 import FailureClass
from behest.v1.tool_pb2 import Executed, Tool
from behest.v1.usage_pb2 import Usage
from behestd.core.children import Kin, NoKin
from behestd.core.compaction import CLOSED, Circuit
from behestd.core.composed import Composed
from behestd.core.limits import Excess
from behestd.core.pauses import NONE, Pauses
from behestd.core.places import AsPinned, Places
from behestd.core.route import Health, RoutePolicy
from behestd.core.sources import Answer
from behestd.values import dataclass

Validate = Callable[[Tool, str], str]
"""Checks arguments against a tool's schema; gives "" or what is wrong with them, for the model."""


@dataclass(frozen=True, slots=True)
class Given:
    """What a decision may use beside the run: time, chance, and facts of the shell. All journaled where they matter."""

    now_ns: int
    random: float
    """In [0, 1), new for each decision."""
    replica: str
    validate: Validate
    history: tuple[Message, ...] = ()
    """The session's messages before this run, oldest first."""
    health: Health = field(default_factory=Health)
    retries: RoutePolicy = field(default_factory=lambda: RoutePolicy(()))
    """Attempts and delays; the endpoints are those of the definition."""
    model_timeout_ns: int = 600_000_000_000
    cancel_grace_ns: int = 10_000_000_000
    is_draining: bool = False
    """Whether nothing new is to begin: what came is recorded, and what follows is left to the next owner."""
    acknowledged: frozenset[str] = frozenset()
    """Calls whose servers acknowledged that they are cancelled."""
    places: Places = field(default_factory=AsPinned)
    """Where tool calls can go."""
    kin: Kin = field(default_factory=NoKin)
    """What other runs do."""
    pauses: Pauses = NONE
    """What operators paused."""
    circuit: Circuit = CLOSED
    """How summarising the session fared."""
    calibration: Mapping[str, int] = field(default_factory=dict)
    """By how much estimates are corrected, in thousandths, by model. Recorded with each step that uses it."""
    refusal: Excess | None = None
    """The budget of the session or the namespace that the next model call would pass."""
    composed: Composed = field(default_factory=Composed, compare=False)
    """Where the call of a new attempt is kept for whoever sends it."""


# --- outcomes of effects ---


@dataclass(frozen=True, slots=True)
class ModelEnded:
    """A model call ended with its explicit end."""

    step: int
    attempt: int
    end: ChatEnd


@dataclass(frozen=True, slots=True)
class ModelBroke:
    """A model call failed."""

    step: int
    attempt: int
    failure_class: int
    reason: str
    message: str
    retry_after_ns: int = 0
    usage: Usage | None = None


@dataclass(frozen=True, slots=True)
class SummaryEnded:
    """A call for a summary ended with its explicit end."""

    attempt: int
    end: ChatEnd


@dataclass(frozen=True, slots=True)
class SummaryBroke:
    """A call for a summary failed."""

    attempt: int
    failure_class: int
    reason: str
    message: str
    usage: Usage | None = None


@dataclass(frozen=True, slots=True)
class ContextGathered:
    """The context sources of a step were asked; each has an answer, or the reason why it has none."""

    step: int
    answers: Mapping[str, Answer]


@dataclass(frozen=True, slots=True)
class ToolEnded:
    """A tool answered."""

    call_id: str
    attempt: int
    result: ToolResult
    elapsed_ns: int = 0


@dataclass(frozen=True, slots=True)
class ToolBroke:
    """An attempt of a tool call failed; `executed` says what is known of its effect."""

    call_id: str
    attempt: int
    failure_class: FailureClass.ValueType
    executed: Executed.ValueType
    reason: str
    message: str
    retry_after_ns: int = 0
    elapsed_ns: int = 0


@dataclass(frozen=True, slots=True)
class StatusKnown:
    """A server that was asked about an attempt answered. `result` None: it never saw it, and has buried it."""

    call_id: str
    attempt: int
    result: ToolResult | None


@dataclass(frozen=True, slots=True)
class ChildEnded:
    """A child run ended in a state (a RunState, 0: it could not be created). `result` None: it did not complete."""

    call_id: str
    attempt: int
    state: int
    usage: Usage | None = None
    result: ToolResult | None = None
    reason: str = ""
    message: str = ""
    elapsed_ns: int = 0


@dataclass(frozen=True, slots=True)
class Held:
    """An effect of which nothing left: what it needs was paused when it was to begin."""

    effect: CallModel | CallTool | Summarise


@dataclass(frozen=True, slots=True)
class Wake:
    """Time has come."""


# --- commands ---


@dataclass(frozen=True, slots=True)
class Claim:
    """This replica takes the run. `reason` is a ClaimReason."""

    reason: int


@dataclass(frozen=True, slots=True)
class Start:
    """The run has its session and its place in the daemon."""

    session_index: int


@dataclass(frozen=True, slots=True)
class Release:
    """This replica lets go of the run."""


@dataclass(frozen=True, slots=True)
class Cancel:
    """Somebody wants the run to end. `mode` is a CancelMode, `cause` a CancelCause."""

    mode: int
    cause: int
    principal: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Input:
    """Somebody says something to the run."""

    input_id: str
    message: Message
    principal: str = ""


@dataclass(frozen=True, slots=True)
class Decision:
    """Somebody decides about a call that waits for an approval."""

    call_id: str
    decision: ApprovalDecision.ValueType
    by: str
    reason: str = ""
    arguments_json: str = ""
    args_hash: bytes = b""
    """Of the arguments that were looked at. Empty: not said."""


@dataclass(frozen=True, slots=True)
class Resolution:
    """Somebody settles a call whose outcome is unknown; NO without a result has it sent again."""

    call_id: str
    by: str
    executed: Executed.ValueType
    result: ToolResult | None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Condemn:
    """The run cannot go on, for a reason that is none of its own."""

    reason: str
    message: str


Outcome = (
    ModelEnded
    | ModelBroke
    | SummaryEnded
    | SummaryBroke
    | ContextGathered
    | ToolEnded
    | ToolBroke
    | StatusKnown
    | ChildEnded
    | Held
    | Wake
)
Command = Claim | Start | Condemn | Release | Cancel | Input | Decision | Resolution
Signal = Outcome | Command

# --- effects ---


@dataclass(frozen=True, slots=True)
class CallModel:
    """A model call in flight."""

    step: int
    attempt: int
    endpoint: str = field(compare=False)
    deadline_ns: int = field(compare=False)


@dataclass(frozen=True, slots=True)
class CallTool:
    """A tool call in flight."""

    call_id: str
    attempt: int


@dataclass(frozen=True, slots=True)
class CancelTool:
    """A tool call in flight whose server is to be told that it is cancelled."""

    call_id: str
    attempt: int


@dataclass(frozen=True, slots=True)
class AskStatus:
    """A server to be asked what became of a call's attempt."""

    call_id: str
    attempt: int


@dataclass(frozen=True, slots=True)
class Summarise:
    """A call for a summary in flight."""

    attempt: int
    endpoint: str = field(compare=False)
    deadline_ns: int = field(compare=False)


@dataclass(frozen=True, slots=True)
class AskContext:
    """The context sources of a step that is to begin, being asked."""

    step: int
    deadline_ns: int = field(compare=False)


Effect = CallModel | CallTool | CancelTool | AskStatus | Summarise | AskContext

BEGINNINGS = (CallModel, CallTool, Summarise, AskContext)
"""Effects that nothing new may begin with while the daemon stops or the disk is full."""
