"""A world for simulation: one log, two replicas that may hold a state of it, a hand clock, an outside with a ledger.

Appended is durable. A replica decides on the state it holds; its append wins only if the log still ends where that
state does (compare-and-set), so a replica that was taken over learns of it when it appends. What tools really did is
written into a ledger by the outside, which knows better than the run does.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from behest.v1.chat_pb2 import ResponseFormat, ResponseFormatKind
from behest.v1.chat_service_pb2 import ChatEnd
from behest.v1.definition_pb2 import Limits, PermissionRule, RunDefinition
from behest.v1.run_event_pb2 import ClaimReason
from behest.v1.tool_pb2 import Executed, SideEffect, Tool, ToolErrorPolicy, ToolUnknownPolicy
from behestd.core.route import Health
from behestd.core.run import fold
from behestd.core.signals import (
    AskStatus,
    CallModel,
    CallTool,
    CancelTool,
    Claim,
    Effect,
    ModelEnded,
    Release,
    Signal,
    Start,
    StatusKnown,
    ToolBroke,
    ToolEnded,
    Wake,
)
from behestd.core.state import Phase, Run
from behestd.errors import BehestError
from behestd.runtime.kinds import decide, wanted
from tests.core.stage import (
    AMBIGUOUS,
    ASK,
    IDEMPOTENT,
    NON_IDEMPOTENT,
    PURE,
    QUERYABLE,
    UNKNOWN,
    Stage,
    answer,
    definition,
    result,
    tool,
)

TOOLS = ("pure", "idem", "asked", "query", "ask", "report", "fail", "alone", "strict")
REFUSALS = ("RUN_ENDING", "APPROVAL_DECIDED", "APPROVAL_EXPIRED", "APPROVAL_NOT_FOUND", "TOOL_CALL_RESOLVED")


def pinned() -> RunDefinition:
    """A tool of each class and policy, two models, and limits that a simulation can reach."""
    unknown = ToolUnknownPolicy
    return definition(
        tool("pure", PURE),
        tool("idem", IDEMPOTENT),
        tool("asked", NON_IDEMPOTENT),
        tool("query", QUERYABLE),
        tool("ask", NON_IDEMPOTENT),
        tool("report", NON_IDEMPOTENT, on_unknown=unknown.TOOL_UNKNOWN_POLICY_REPORT_TO_MODEL),
        tool("fail", NON_IDEMPOTENT, on_unknown=unknown.TOOL_UNKNOWN_POLICY_FAIL_RUN),
        tool("alone", IDEMPOTENT, exclusive=True),
        tool("strict", PURE, on_error=ToolErrorPolicy.TOOL_ERROR_POLICY_FAIL_RUN),
        models=["m/a", "m/b"],
        response_format=ResponseFormat(kind=ResponseFormatKind.RESPONSE_FORMAT_KIND_JSON_OBJECT),
        operator_permissions=[PermissionRule(tool="asked", action=ASK)],
        limits=Limits(max_steps=8, max_parallel_tool_calls=3, max_length_recoveries=2),
    )


@dataclass
class Flight:
    """An effect that a replica has in flight. `arrived`: the request reached the other side."""

    effect: Effect
    epoch: int
    arrived: bool = False


@dataclass
class Replica:
    """A process that may hold the run's state."""

    name: str
    run: Run | None = None
    flights: list[Flight] = field(default_factory=list)


UNFIT = "unfit"
"""An answer that has not the form that was asked for."""


def _validate(tool: Tool, text: str) -> str:
    return "not what was asked for" if text == UNFIT else ""


class World(Stage):
    """The stage with replicas and an outside."""

    def __init__(self, definition: RunDefinition | None = None) -> None:
        super().__init__(definition or pinned(), begun=False, given={"validate": _validate})
        self.replicas = [Replica("one"), Replica("two")]
        self.owner: Replica | None = None
        self.executions: Counter[str] = Counter()
        self.buried: dict[str, tuple[int, int]] = {}
        self.classes: dict[str, int] = {}
        self.random = 0.5
        self.patience = 400
        """How much a run may do after the last fault."""

    # --- deciding and appending ---

    def given_now(self, replica: Replica) -> Any:
        return self.given(random=self.random, replica=replica.name)

    def tell(self, replica: Replica, signal: Signal) -> list[Any] | None:
        """Have a replica decide and append; None when it refuses the signal or loses its append."""
        run = replica.run
        assert run is not None
        given = self.given_now(replica)
        try:
            payloads, after = decide(run, given, signal)
        except BehestError as error:
            assert error.reason in REFUSALS, error.reason
            return None
        if run.head != self.run.head:
            if payloads:
                self.drop(replica)
            return None
        read = fold("run_1", self.log, self.definition)
        assert decide(read, given, signal) == (payloads, after), "a state that was read again decides alike"
        self.commit(payloads, after)
        replica.run = self.run
        self._notice_classes()
        self._reconcile(replica)
        return payloads

    def drop(self, replica: Replica) -> None:
        """A replica loses its state; what it sent stays sent."""
        replica.run = None
        replica.flights.clear()
        if self.owner is replica:
            self.owner = None

    def take(self, replica: Replica) -> None:
        """A replica reads the log and claims the run."""
        replica.run = fold("run_1", self.log, self.definition)
        assert replica.run == self.run
        replica.flights.clear()
        ownership = self.run.life.ownership
        reason = ClaimReason.CLAIM_REASON_RECOVERY
        if ownership.is_released:
            has_owner = ownership.claims > 0
            reason = ClaimReason.CLAIM_REASON_RELEASED if has_owner else ClaimReason.CLAIM_REASON_CREATED
        self.owner = replica
        assert self.tell(replica, Claim(reason)) is not None

    def let_go(self) -> None:
        """The owner releases the run."""
        assert self.owner is not None
        replica = self.owner
        self.tell(replica, Release())
        self.drop(replica)

    def _notice_classes(self) -> None:
        for call in self.run.calls:
            if call.started is not None:
                self.classes[call.call.id] = call.started.side_effect

    def _reconcile(self, replica: Replica) -> None:
        """Stop what is not wanted any more; what arrived goes on at the other side."""
        assert replica.run is not None
        wishes = wanted(replica.run)
        replica.flights = [flight for flight in replica.flights if flight.effect in wishes]

    # --- the outside ---

    def unsent(self, replica: Replica) -> list[Effect]:
        """What a replica wants and has not begun."""
        if replica.run is None:
            return []
        begun = [flight.effect for flight in replica.flights]
        return [effect for effect in wanted(replica.run) if effect not in begun]

    def send(self, replica: Replica, effect: Effect) -> Flight:
        """A replica begins an effect; the request is under way."""
        assert replica.run is not None
        flight = Flight(effect, replica.run.head.epoch)
        replica.flights.append(flight)
        return flight

    def arrive(self, flight: Flight) -> bool:
        """A tool's request arrives and is executed, unless its key is buried or known; True: it took effect."""
        assert isinstance(flight.effect, CallTool)
        call_id = flight.effect.call_id
        if flight.arrived:
            return True
        flight.arrived = True
        if self.buried.get(call_id, (-1, 0)) >= (flight.epoch, flight.effect.attempt):
            return False
        if self.classes[call_id] in (IDEMPOTENT, QUERYABLE) and self.executions[call_id]:
            return True
        self.executions[call_id] += 1
        return True

    def status(self, flight: Flight, *, found: bool = True) -> Signal:  # type: ignore[override]
        """What the server says of a key: it buries what it never saw."""
        assert isinstance(flight.effect, AskStatus)
        call_id, attempt = flight.effect.call_id, flight.effect.attempt
        call = self.run.call(call_id)
        if self.executions[call_id] and call is not None and found:
            return StatusKnown(call_id, attempt, result(call))
        if self.executions[call_id] or call is None:
            return ToolBroke(call_id, attempt, AMBIGUOUS, UNKNOWN, "TOOL_UNAVAILABLE", "no record")
        self.buried[call_id] = (call.epoch, attempt)
        return StatusKnown(call_id, attempt, None)

    def may_still_arrive(self, call_id: str) -> bool:
        """Whether a request of this call is under way, or may yet be sent by some replica."""
        return any(
            isinstance(effect, CallTool) and effect.call_id == call_id
            for replica in self.replicas
            for effect in [*self.unsent(replica), *(flight.effect for flight in replica.flights)]
        )

    # --- laws of the world ---

    def check_ledger(self) -> None:
        """A call that is not idempotent took effect at most once, whatever happened."""
        for call_id, count in self.executions.items():
            if self.classes[call_id] != SideEffect.SIDE_EFFECT_PURE:
                assert count <= 1, f"{count} effects of one call"

    def check_alarm(self) -> None:
        """Waking at the alarm brings the run forward or moves the alarm: no loop is busy."""
        if self.owner is None or self.owner.run is None or self.owner.run.head != self.run.head:
            return
        for _ in range(8):
            due_ns = self.alarm_ns()
            if not due_ns or due_ns > self.now_ns:
                return
            before = due_ns
            payloads = self.tell(self.owner, Wake())
            assert payloads or self.alarm_ns() != before, "woken for nothing"
            if self.owner is None:
                return
        raise AssertionError("the run never comes to rest")

    def heal(self) -> None:
        """Let faults stop and time pass: every run comes to its end."""
        self.givens["health"] = Health()
        self.random = 0.5
        for _ in range(self.patience):
            if self.run.is_ended:
                return
            if self.owner is None or self.owner.run is None or self.owner.run.head != self.run.head:
                self.take(self.replicas[0])
            elif self.state == "QUEUED":
                self.tell(self.owner, Start(1))
            elif not self._serve(self.owner):
                due_ns = self.alarm_ns()
                assert due_ns, "a run that does nothing has an alarm"
                self.now_ns = max(self.now_ns, due_ns)
                self.tell(self.owner, Wake())
        raise AssertionError(f"the run does not end: {self.kinds[-20:]}")

    def reply(self, effect: CallModel) -> ChatEnd:
        """What a model says when all is well."""
        return answer("the end")

    def _serve(self, owner: Replica) -> bool:
        """Answer one effect that is wanted; whether there was one."""
        for effect in self.unsent(owner):
            self.send(owner, effect)
        for flight in owner.flights:
            match flight.effect:
                case CallModel(step, attempt):
                    self.tell(owner, ModelEnded(step, attempt, self.reply(flight.effect)))
                case CallTool(call_id, attempt):
                    call = self.run.call(call_id)
                    assert call is not None
                    assert call.phase is Phase.STARTED
                    self.arrive(flight)
                    self.tell(owner, ToolEnded(call_id, attempt, result(call)))
                case AskStatus():
                    self.tell(owner, self.status(flight))
                case CancelTool():
                    continue
            return True
        return False


def executed_values() -> tuple[int, ...]:
    """What a failed attempt may say of its effect."""
    return (Executed.EXECUTED_NO, Executed.EXECUTED_YES, Executed.EXECUTED_UNKNOWN, Executed.EXECUTED_UNSPECIFIED)
