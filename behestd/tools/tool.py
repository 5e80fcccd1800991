"""The port of tools: one attempt of one call, never a retry.

Above it the performer, which journals the intent, calls, and journals what came; `core` decides about another attempt.
Below it `function` (code in the daemon) and `remote` (dialled servers). What an executor knows of the effect of a
failed attempt travels in `ToolFailure.executed`, and NO is said only with proof: nothing was sent, or the server says
so by `behest-not-executed`. A tool that ran and failed is an answer with `is_error`, not a failure.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from behest.v1.message_pb2 import Part, TextPart, ToolResult
from behest.v1.model_event_pb2 import FailureClass
from behest.v1.tool_pb2 import Executed, Progress, SideEffect
from behestd.errors import BehestError

DEFAULT_CONNECT_SECONDS = 5.0
DEFAULT_START_TO_CLOSE_SECONDS = 30.0
DEFAULT_SCHEDULE_TO_CLOSE_SECONDS = 300.0


@dataclass(frozen=True, slots=True)
class Timeouts:
    """The limits of a call, in seconds. `schedule_to_close` is for who makes several attempts; executors ignore it."""

    connect_seconds: float = DEFAULT_CONNECT_SECONDS
    start_to_close_seconds: float = DEFAULT_START_TO_CLOSE_SECONDS
    heartbeat_seconds: float | None = None
    """Longest silence; None: no such limit."""
    schedule_to_close_seconds: float = DEFAULT_SCHEDULE_TO_CLOSE_SECONDS


@dataclass(frozen=True, slots=True)
class Call:
    """One attempt of a call. `key` is equal over all attempts. Times are unix nanoseconds, 0: no bound."""

    namespace: str
    run_id: str
    session_id: str
    call_id: str
    name: str
    arguments_json: str
    key: str
    attempt: int
    epoch: int
    side_effect: SideEffect.ValueType
    tool_hash: bytes
    deadline_ns: int = 0
    """When the answer is no longer waited for."""
    start_by_ns: int = 0
    """Latest time to begin."""
    traceparent: str = ""
    timeouts: Timeouts = Timeouts()
    wants_late: bool = False
    """Whether an answer after the time is over is still of use."""
    resumed_lease: str | None = None
    """Of an attempt that an earlier owner sent: on which stream of which attachment. None: the attempt is new."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a tool said, not yet cut to the limits of what a model is told."""

    parts: tuple[Part, ...]
    is_error: bool = False
    is_truncated: bool = False
    """The tool's server cut it already."""
    structured_json: str = ""
    """The first JSON part, byte for byte; empty when there is none."""

    def result(self, call_id: str, name: str) -> ToolResult:
        """Make the contract's result of it."""
        return ToolResult(
            call_id=call_id, name=name, parts=self.parts, is_error=self.is_error, truncated=self.is_truncated
        )


def answer(parts: Sequence[Part], *, is_error: bool = False, is_truncated: bool = False) -> Answer:
    """Make an answer of parts."""
    documents = (part.json.json for part in parts if part.WhichOneof("kind") == "json")
    return Answer(tuple(parts), is_error, is_truncated, next(documents, ""))


def error_answer(text: str) -> Answer:
    """Make the answer of a tool that ran and failed."""
    return Answer((Part(text=TextPart(text=text)),), is_error=True)


class Late(Protocol):
    """The answer to an attempt that ran out of its time, which its server may still give on the same connection."""

    async def answer(self) -> Answer:
        """Wait for it, for a bounded time. Raises ToolFailure when none comes."""
        ...

    def drop(self) -> None:
        """Let go of it. Idempotent."""
        ...


class ToolFailure(BehestError):
    """Raised when an attempt brought no answer.

    `executed` says what is known of its effect, `retry_seconds` when the other side wants to be asked again.
    """

    def __init__(
        self,
        failure_class: FailureClass.ValueType,
        executed: Executed.ValueType,
        reason: str,
        message: str,
        retry_after_seconds: float | None = None,
    ) -> None:
        super().__init__(reason, message, retry_seconds=retry_after_seconds)
        self.failure_class = failure_class
        self.executed = executed
        self.late: Late | None = None
        """The answer that may still come, for who wants it; who gets it lets go of it."""


# --- what became of a call ---


@dataclass(frozen=True, slots=True)
class NeverSeen:
    """It was not executed, and with this epoch and attempt or earlier ones it never will be."""


@dataclass(frozen=True, slots=True)
class Running:
    """It is being executed."""


@dataclass(frozen=True, slots=True)
class Done:
    """It was executed, well or badly. Call and tool are as its caller named them; empty where that is not known."""

    answer: Answer
    call_id: str = ""
    name: str = ""


@dataclass(frozen=True, slots=True)
class CannotTell:
    """The server does not know and never will: it keeps no record of its calls, or lost this one when it stopped."""

    message: str = "the server keeps no record of its calls"


Status = NeverSeen | Running | Done | CannotTell
ShowProgress = Callable[[Progress], None]


class Executor(Protocol):
    """Calls one tool.

    `call` keeps the limits of the attempt itself and tells the tool to stop when one is over. Cancelling the task that
    awaits `call` abandons the attempt and tells nobody: the work may go on, as it does when a daemon dies. To stop the
    work, await `cancel` while `call` is still awaited: `call` then ends with an answer or with TOOL_CANCELLED.
    """

    async def call(self, call: Call, progress: ShowProgress) -> Answer:
        """Make one attempt. `progress` is called in order, on the loop, never after `call` has ended.

        Raises ToolFailure.
        """
        ...

    async def cancel(self, key: str, epoch: int) -> bool:
        """Ask that the call be stopped, best effort: whether the tool acknowledged. Never raises ToolFailure."""
        ...

    async def status(self, key: str, epoch: int, wait_seconds: float = 0.0, attempt: int = 0) -> Status:
        """Tell what became of the call, waiting a while for one that is running.

        NeverSeen is proof, and forbids the key for `epoch` with `attempt` (0: any) and all that came before; a later
        attempt is executed. Raises ToolFailure when nobody answers.
        """
        ...
