"""A stage for the pure core: one run, its log as stored bytes, a hand clock, and words for what happens to it.

Each commit is stamped as the driver stamps it, folded from its bytes beside the run in memory, and held against the
laws of `laws.py`: whatever a test plays, the two states stay equal and the log stays lawful.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from hashlib import sha256
from typing import Any

from google.protobuf.message import Message as AnyMessage
from google.rpc.error_details_pb2 import ErrorInfo

from behest.v1.chat_pb2 import FinishReason
from behest.v1.chat_service_pb2 import ChatEnd
from behest.v1.definition_pb2 import Budgets, Limits, PermissionAction, RunDefinition
from behest.v1.event_pb2 import Event
from behest.v1.message_pb2 import Message, Part, Role, TextPart, ToolCall, ToolResult
from behest.v1.model_event_pb2 import FailureClass
from behest.v1.run_event_pb2 import ClaimReason, RunCreated
from behest.v1.run_state_pb2 import CancelCause, CancelMode
from behest.v1.tool_pb2 import Executed, SideEffect, Tool, ToolPolicy
from behest.v1.usage_pb2 import Usage, UsageSource
from behestd.core.decide import decide
from behestd.core.limits import in_force
from behestd.core.pauses import NONE
from behestd.core.run import KIND, evolve, fold, rooted, start, stored_bytes
from behestd.core.signals import (
    Cancel,
    Claim,
    Decision,
    Given,
    Input,
    ModelBroke,
    ModelEnded,
    Release,
    Resolution,
    Signal,
    Start,
    StatusKnown,
    ToolBroke,
    ToolEnded,
    Wake,
)
from behestd.core.state import Call, Run, state_name
from behestd.core.times import SECOND, duration, timestamp
from behestd.core.wanted import alarm_ns
from tests.core.laws import Laws

T0 = 1_700_000_000 * SECOND
GRACE_NS = 10 * SECOND
PURE = SideEffect.SIDE_EFFECT_PURE
IDEMPOTENT = SideEffect.SIDE_EFFECT_IDEMPOTENT
QUERYABLE = SideEffect.SIDE_EFFECT_NON_IDEMPOTENT_QUERYABLE
NON_IDEMPOTENT = SideEffect.SIDE_EFFECT_NON_IDEMPOTENT
CLASSES = (PURE, IDEMPOTENT, QUERYABLE, NON_IDEMPOTENT)
NO, YES, UNKNOWN = Executed.EXECUTED_NO, Executed.EXECUTED_YES, Executed.EXECUTED_UNKNOWN
NOT_SENT = FailureClass.FAILURE_CLASS_NOT_SENT
THROTTLED = FailureClass.FAILURE_CLASS_THROTTLED
TRANSIENT = FailureClass.FAILURE_CLASS_TRANSIENT
AMBIGUOUS = FailureClass.FAILURE_CLASS_AMBIGUOUS
QUOTA = FailureClass.FAILURE_CLASS_QUOTA
PERMANENT = FailureClass.FAILURE_CLASS_PERMANENT
MALFORMED = FailureClass.FAILURE_CLASS_MALFORMED
ALLOW = PermissionAction.PERMISSION_ACTION_ALLOW
ASK = PermissionAction.PERMISSION_ACTION_ASK
DENY = PermissionAction.PERMISSION_ACTION_DENY


def said(text: str, role: Role.ValueType = Role.ROLE_USER) -> Message:
    """A message of one text."""
    return Message(role=role, parts=[Part(text=TextPart(text=text))])


def tool(name: str = "look", side_effect: SideEffect.ValueType = PURE, **policy: Any) -> Tool:
    """A tool with the operator's policy."""
    return Tool(
        name=name, input_schema_json="{}", hash=name.encode(), policy=ToolPolicy(side_effect=side_effect, **policy)
    )


def definition(*tools: Tool, limits: Limits | None = None, **fields: Any) -> RunDefinition:
    """A definition with one model, where every call is allowed unless the fields say otherwise."""
    fields = {"models": ["scripted/a"], "default_permission": ALLOW} | fields
    return RunDefinition(tools=tools, limits=in_force(limits or Limits()), **fields)


def created(**fields: Any) -> RunCreated:
    """An order."""
    base: dict[str, Any] = {
        "session_id": "ses_1",
        "namespace": "default",
        "timeout": duration(3600),
        "queue_timeout": duration(900),
        "input": said("hello"),
    }
    return RunCreated(**base | fields)


def answer(
    text: str = "", *calls: tuple[str, str], finish: int = 0, usage: Usage | None = None, source: int = 0
) -> ChatEnd:
    """What a model says: a text, or calls as (name, arguments)."""
    parts = [Part(text=TextPart(text=text))] if text else []
    parts += [Part(tool_call=ToolCall(id="x", name=name, arguments_json=arguments)) for name, arguments in calls]
    finish = finish or (FinishReason.FINISH_REASON_TOOL_CALLS if calls else FinishReason.FINISH_REASON_STOP)
    return ChatEnd(
        message=Message(role=Role.ROLE_ASSISTANT, parts=parts),
        finish_reason=finish,  # type: ignore[arg-type]
        usage=usage or Usage(input_tokens=10, output_tokens=5),
        usage_source=source or UsageSource.USAGE_SOURCE_REPORTED,  # type: ignore[arg-type]
    )


def result(call: Call, text: str = "done", *, is_error: bool = False) -> ToolResult:
    """What a tool says."""
    parts = [Part(text=TextPart(text=text))]
    return ToolResult(call_id=call.call.id, name=call.call.name, parts=parts, is_error=is_error)


def text_of(message: Message | ToolResult) -> str:
    """The texts of a message or of a result, one after the other."""
    return "".join(part.text.text for part in message.parts)


def kinds(payloads: Sequence[AnyMessage]) -> list[str]:
    """The kinds of payloads."""
    return [KIND[type(payload)] for payload in payloads]


class Stage:
    """One run and everything that is said about it. `now_ns` is moved by hand."""

    def __init__(
        self,
        pinned: RunDefinition | None = None,
        *,
        begun: bool = True,
        given: dict[str, Any] | None = None,
        **fields: Any,
    ) -> None:
        self.definition = pinned if pinned is not None else definition(tool())
        self.now_ns = T0
        self.givens: dict[str, Any] = given or {}
        self.log: list[tuple[Event, bytes]] = []
        self.laws = Laws(self.definition)
        self.shadow: Run | None = None
        first = created(**fields)
        self.run = start("run_1", first, self.definition, self.now_ns)
        self.commit([first], self.run, is_first=True)
        if begun:
            self.begin()

    @classmethod
    def reopened(cls, log: Sequence[tuple[Event, bytes]], pinned: RunDefinition, now_ns: int) -> Stage:
        """The stage of a run of which a log is left, and nothing else."""
        stage = cls.__new__(cls)
        stage.definition, stage.now_ns, stage.givens = pinned, now_ns, {}
        stage.log, stage.laws, stage.shadow = [], Laws(pinned), None
        for event, data in log:
            stage._record(event, data)
        stage.run = fold("run_1", log, pinned)
        assert stage.run == stage.shadow
        return stage

    # --- the shell's part ---

    def given(self, **changes: Any) -> Given:
        """What a decision may use now."""
        base: dict[str, Any] = {
            "now_ns": self.now_ns,
            "random": 0.5,
            "replica": "one",
            "validate": lambda _tool, _arguments: "",
            "cancel_grace_ns": GRACE_NS,
        }
        return Given(**base | self.givens | changes)

    def do(self, signal: Signal, **given: Any) -> list[Any]:
        """Let something happen, and commit what follows."""
        payloads, after = decide(self.run, self.given(**given), signal)
        self.commit(payloads, after)
        return payloads

    def commit(self, payloads: Sequence[AnyMessage], after: Run, *, is_first: bool = False) -> None:
        """Stamp payloads as the driver does, fold them from their bytes, and hold both states against each other."""
        head = self.run.head
        sequence, epoch = (0, 0) if is_first else (head.sequence, head.epoch)
        digest, size = head.hash, head.log_bytes
        for payload in payloads:
            kind = KIND[type(payload)]
            sequence += 1
            epoch += kind == "run_claimed"
            event = Event(
                event_id=f"evt_{sequence}",
                run_id=after.id,
                session_id="ses_1",
                sequence=sequence,
                epoch=epoch,
                record_time=timestamp(self.now_ns),
                prev_hash=digest,
                **{kind: payload},
            )
            data = event.SerializeToString()
            digest, size = sha256(data).digest(), size + stored_bytes(data)
            self._record(Event.FromString(data), data)
        assert (sequence, epoch) == (after.head.sequence, after.head.epoch)
        self.run = replace(after, head=replace(after.head, hash=digest, log_bytes=size))
        assert self.run == self.shadow
        self.laws.check(self.run)

    def _record(self, event: Event, data: bytes) -> None:
        self.log.append((event, data))
        shadow = self.shadow
        self.shadow = rooted("run_1", event, data, self.definition) if shadow is None else evolve(shadow, event, data)
        self.laws.see(event)

    def forget(self) -> None:
        """Lose everything but the log, and read it again."""
        before = self.run
        self.run = fold("run_1", self.log, self.definition)
        assert self.run == before

    # --- words for what happens ---

    def begin(self) -> list[Any]:
        """Claim and start the run."""
        return self.do(Claim(ClaimReason.CLAIM_REASON_CREATED)) + self.do(Start(1))

    def crash(self) -> list[Any]:
        """Lose the owner and have the run taken over."""
        self.forget()
        return self.do(Claim(ClaimReason.CLAIM_REASON_RECOVERY))

    def release(self) -> list[Any]:
        """Let go of the run and take it up again."""
        released = self.do(Release())
        self.forget()
        return released + self.do(Claim(ClaimReason.CLAIM_REASON_RELEASED))

    def model(self, text: str = "", *calls: tuple[str, str], **fields: Any) -> list[Any]:
        """The open model call answers."""
        attempt = self.run.step.open
        assert attempt is not None
        return self.do(ModelEnded(self.run.step.number, attempt.number, answer(text, *calls, **fields)))

    def model_breaks(self, failure_class: int, reason: str = "PROVIDER_UNAVAILABLE", **fields: Any) -> list[Any]:
        """The open model call fails."""
        attempt = self.run.step.open
        assert attempt is not None
        return self.do(ModelBroke(self.run.step.number, attempt.number, failure_class, reason, "it broke", **fields))

    def call(self, index: int = 0) -> Call:
        """A call of the open step."""
        return self.run.step.calls[index]

    def tool(self, index: int = 0, text: str = "done", *, is_error: bool = False) -> list[Any]:
        """A call's attempt answers."""
        call = self.call(index)
        return self.do(ToolEnded(call.call.id, call.attempt, result(call, text, is_error=is_error), SECOND))

    def tool_breaks(
        self, index: int = 0, executed: int = UNKNOWN, failure_class: int = TRANSIENT, **fields: Any
    ) -> list[Any]:
        """A call's attempt fails."""
        call = self.call(index)
        return self.do(
            ToolBroke(call.call.id, call.attempt, failure_class, executed, "TOOL_UNAVAILABLE", "it broke", **fields)
        )

    def status(self, index: int = 0, *, found: bool) -> list[Any]:
        """The server that was asked about a call answers."""
        call = self.call(index)
        return self.do(StatusKnown(call.call.id, call.attempt, result(call) if found else None))

    def decision(self, decision: int, index: int = 0, **fields: Any) -> list[Any]:
        """Somebody decides about a call."""
        return self.do(Decision(self.call(index).call.id, decision, "ann", **fields))

    def resolution(self, executed: int, found: ToolResult | None = None, index: int = 0) -> list[Any]:
        """Somebody settles a call in doubt."""
        return self.do(Resolution(self.call(index).call.id, "ann", executed, found))

    def cancel(self, *, force: bool = False) -> list[Any]:
        """A client cancels the run."""
        mode = CancelMode.CANCEL_MODE_FORCE if force else CancelMode.CANCEL_MODE_GRACEFUL
        return self.do(Cancel(mode, CancelCause.CANCEL_CAUSE_CLIENT, "ann"))

    def say(self, text: str, input_id: str = "in_1") -> list[Any]:
        """Somebody says something to the run."""
        return self.do(Input(input_id, said(text), "ann"))

    def wait(self, seconds: float) -> list[Any]:
        """Let time pass, then wake."""
        self.now_ns += int(seconds * SECOND)
        return self.do(Wake())

    def alarm_ns(self) -> int:
        """When the run is to be looked at again; 0 never."""
        return alarm_ns(self.run, GRACE_NS, self.givens.get("pauses", NONE))

    def wait_for_alarm(self) -> list[Any]:
        """Let time pass until the run is to be looked at again."""
        due_ns = self.alarm_ns()
        assert due_ns
        self.now_ns = max(self.now_ns, due_ns)
        return self.do(Wake())

    # --- what there is to see ---

    @property
    def state(self) -> str:
        """The run's state."""
        return state_name(self.run.state)

    @property
    def kinds(self) -> list[str]:
        """The kinds of the log."""
        return [event.WhichOneof("payload") or "" for event, _ in self.log]

    @property
    def reason(self) -> str:
        """The reason of the run's end, empty without one."""
        return reason_of(self.run.life.error) if self.run.life.error is not None else ""

    def last(self, kind: str) -> Any:
        """The latest event of a kind."""
        return next(getattr(event, kind) for event, _ in reversed(self.log) if event.WhichOneof("payload") == kind)

    def result_text(self, index: int = 0) -> str:
        """The text of the result of one of the calls that the transcript's last tool message answers."""
        message = next(message for message in reversed(self.run.transcript) if message.role == Role.ROLE_TOOL)
        return text_of(message.parts[index].tool_result)


def reason_of(status: Any) -> str:
    """The reason in a Status."""
    info = ErrorInfo()
    assert status.details[0].Unpack(info)
    assert info.domain == "behest"
    return info.reason


def budgets(**fields: int) -> Budgets:
    """What a request lowers limits to."""
    return Budgets(**fields)  # type: ignore[arg-type]
