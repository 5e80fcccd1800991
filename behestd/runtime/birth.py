"""Makes the first append of a run: an order becomes RunCreated, and where its session is free also its start.

Pure but for the ids. Above: the supervisor.
"""

from __future__ import annotations

from hashlib import sha256

from behest.v1.message_pb2 import Message, Role
from behest.v1.run_event_pb2 import ClaimReason, ForkedFrom, ParentRun, RunCreated
from behest.v1.run_spec_pb2 import RunSpec
from behest.v1.run_state_pb2 import SessionPolicy
from behest.v1.session_pb2 import Session as SessionMessage
from behestd.core.run import Payload, start
from behestd.core.signals import Claim, Given, Start
from behestd.core.times import SECOND, duration, duration_ns, timestamp
from behestd.errors import AlreadyExists, BehestError, SessionNotFound
from behestd.log import store
from behestd.log.store import Guard, Put, RecordChanged, SessionIsFree
from behestd.runtime.commit import Before, Extras, prepare
from behestd.runtime.driver import Birth
from behestd.runtime.house import House
from behestd.runtime.orders import Pinned
from behestd.runtime.task_order import task_of
from behestd.telemetry import w3c
from behestd.values import dataclass

SESSION = "session"
_QUEUE = SessionPolicy.SESSION_POLICY_QUEUE


@dataclass(frozen=True, slots=True)
class Order:
    """A run that is to be created: checked, resolved, with its ids. `digest` is of the whole request."""

    namespace: str
    principal: str
    run_id: str
    session_id: str
    is_new_session: bool
    spec: RunSpec
    pinned: Pinned
    request_id: str = ""
    digest: bytes = b""
    traceparent: str = ""
    """The W3C trace context that the run is part of. Empty: none."""
    forked_from: ForkedFrom | None = None
    parent: ParentRun | None = None
    parent_session_id: str = ""

    @property
    def policy(self) -> SessionPolicy.ValueType:
        """What happens when the session is busy."""
        return self.spec.session_policy or _QUEUE

    def session_gone(self, changed: RecordChanged) -> BehestError:
        """The error for a session that is not as it was."""
        if self.is_new_session:
            text = f"session id {self.session_id} is taken"
            return AlreadyExists("SESSION_ID_TAKEN", text, sessionId=self.session_id)
        return SessionNotFound(self.session_id)


def conceive(order: Order, house: House, history: tuple[Message, ...], session_index: int) -> Birth:
    """Make a run's first append. `session_index` 0 leaves it queued."""
    given = _given(house, order, history)
    created = _created(order, house)
    payloads: list[Payload] = [created]
    run = start(order.run_id, created, order.pinned.definition, given.now_ns)
    if session_index:
        claimed, run = house.ledger.plan(run, given, Claim(ClaimReason.CLAIM_REASON_CREATED))
        started, run = house.ledger.plan(run, given, Start(session_index))
        payloads += claimed + started
    before = Before(None, {})
    trace_id = w3c.trace_id(order.traceparent)
    stamp = (house.ids, given.now_ns, trace_id)
    first = prepare(before, run, payloads, stamp, _extras(order, given, session_index))
    return Birth(before, first.run, given.history, trace_id, first, given.composed)


def _given(house: House, order: Order, history: tuple[Message, ...]) -> Given:
    """What the first decision may use."""
    return Given(
        now_ns=house.clock.now_ns(),
        random=house.rng.random(),
        replica=house.replica,
        validate=house.validate,
        history=history,
        health=house.health(order.namespace),
        retries=house.retries,
        model_timeout_ns=int(house.model_timeouts.total_seconds * SECOND),
        calibration=house.calibration.ratios(order.namespace),
        circuit=house.circuits.of(order.namespace, order.session_id),
        pauses=house.switch.current,
    )


def _created(order: Order, house: House) -> RunCreated:
    spec = order.spec
    limits = order.pinned.definition.limits
    timeout = limits.timeout
    if spec.HasField("timeout") and duration_ns(spec.timeout) < duration_ns(timeout):
        timeout = spec.timeout
    created = RunCreated()
    created.request_id, created.request_digest = order.request_id, order.digest
    created.session_id, created.session_policy = order.session_id, order.policy
    created.definition_hash = order.pinned.hash
    if spec.input:
        message = created.input
        message.id, message.role = house.ids.make("msg"), Role.ROLE_USER
        message.parts.extend(spec.input)
    created.timeout.CopyFrom(timeout)
    if spec.HasField("budgets"):
        created.budgets.CopyFrom(spec.budgets)
    created.durability_class = house.log.store.durability  # type: ignore[assignment]  # an enum's number
    created.principal = order.principal
    if spec.labels:
        created.labels.update(spec.labels)
    if order.forked_from is not None:
        created.forked_from.CopyFrom(order.forked_from)
    if order.parent is not None:
        created.parent.CopyFrom(order.parent)
    created.namespace = order.namespace
    created.queue_timeout.CopyFrom(duration(house.limits.queue_seconds))
    created.cancel_on_disconnect = spec.cancel_on_disconnect
    created.traceparent = order.traceparent
    if order.pinned.definition.HasField("graph"):
        created.task.CopyFrom(task_of(spec))
    return created


def _extras(order: Order, given: Given, session_index: int) -> Extras:
    claim = None
    if order.request_id:
        claim = store.Claim(order.namespace, order.request_id, order.digest, order.run_id)
    guards: tuple[Guard, ...] = ()
    puts: tuple[Put, ...] = ()
    if order.is_new_session:
        puts = (_session(order, given),)
    else:
        guards = (store.RecordIs(order.namespace, SESSION, order.session_id),)
        if session_index:
            guards += (SessionIsFree(order.session_id),)
    return Extras((order.pinned.hash, order.pinned.data), claim, guards, puts)


def _session(order: Order, given: Given) -> Put:
    session = SessionMessage()
    session.id, session.agent_id, session.principal = order.session_id, order.spec.agent_id, order.principal
    now = timestamp(given.now_ns)
    session.create_time.CopyFrom(now)
    session.update_time.CopyFrom(now)
    session.is_hidden = order.parent is not None
    record = store.Record(
        order.namespace,
        SESSION,
        order.session_id,
        session.SerializeToString(),
        parent=order.parent_session_id,
        create_time_ns=given.now_ns,
    )
    return Put(record, expected_version=0)


def digest(request: bytes) -> bytes:
    """SHA-256 of a request, which tells a repeat from another request of the same id."""
    return sha256(request).digest()
