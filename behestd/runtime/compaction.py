"""The circuits of sessions: which of them could not be summarised of late, and until when nothing is tried.

Above: the driver, which commits what came of a summary, and the service, which shows circuits and closes them. Below:
the store. A circuit is a record of its session, written in the commit of the failure that it counts; what is in memory
is what the store says of the few sessions that have one.
"""

from __future__ import annotations

from collections.abc import Sequence

from behest.v1.context_event_pb2 import CompactionCircuitOpened, ContextCompacted, ContextCompactionFailed
from behest.v1.session_pb2 import CompactionCircuit
from behestd.core.compaction import CLOSED, Circuit
from behestd.core.run import Payload
from behestd.core.state import Run
from behestd.core.times import nanoseconds, timestamp
from behestd.log.store import Put, Record, Store
from behestd.runtime.commit import NO_EXTRAS, Extras

KIND = "compaction"
_PAGE = 1000


class Circuits:
    """The circuits of sessions whose last summary failed."""

    __slots__ = ("_known",)

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], Circuit] = {}

    async def load(self, store: Store, now_ns: int) -> None:
        """Read what an earlier daemon left."""
        for namespace in await store.namespaces():
            after = ""
            while True:
                page = await store.records(namespace, KIND, after=after, limit=_PAGE, now_ns=now_ns)
                self.saw([Put(record) for record in page])
                if len(page) < _PAGE:
                    break
                after = page[-1].id

    def of(self, namespace: str, session_id: str) -> Circuit:
        """How summarising a session fares."""
        return self._known.get((namespace, session_id), CLOSED)

    def shown(self, namespace: str, session_id: str) -> CompactionCircuit | None:
        """The circuit as clients see it, None when nothing has failed."""
        circuit = self.of(namespace, session_id)
        return _message(circuit) if circuit.failures else None

    def extras(self, after: Run, payloads: Sequence[Payload], now_ns: int) -> Extras:
        """What goes with a commit that tells of summaries: the circuit after it, if it has changed."""
        namespace, session_id = after.created.namespace, after.created.session_id
        before = self.of(namespace, session_id)
        circuit = before
        for payload in payloads:
            circuit = _after(circuit, payload)
        return Extras(puts=(put(namespace, session_id, circuit, now_ns),)) if circuit != before else NO_EXTRAS

    def saw(self, puts: Sequence[Put]) -> None:
        """Take over what has been written."""
        for record in (written.record for written in puts if written.record.kind == KIND):
            stored = CompactionCircuit.FromString(record.body)
            if stored.failures:
                until_ns = nanoseconds(stored.open_until)
                self._known[record.namespace, record.id] = Circuit(stored.failures, until_ns, stored.reason)
            else:
                self.forget(record.namespace, record.id)

    def forget(self, namespace: str, session_id: str) -> None:
        """Forget a session that is deleted. Idempotent."""
        self._known.pop((namespace, session_id), None)


def _after(circuit: Circuit, payload: Payload) -> Circuit:
    match payload:
        case ContextCompacted():
            return CLOSED
        case ContextCompactionFailed(is_final=True):
            return Circuit(circuit.failures + 1, circuit.open_until_ns, payload.reason)
        case CompactionCircuitOpened():
            return Circuit(circuit.failures, nanoseconds(payload.until), circuit.reason)
        case _:
            return circuit


def put(namespace: str, session_id: str, circuit: Circuit, now_ns: int) -> Put:
    """Write a session's circuit. A closed one expires at once, since an append deletes nothing."""
    body = _message(circuit).SerializeToString()
    expire_ns = 0 if circuit.failures else now_ns + 1
    record = Record(
        namespace, KIND, session_id, body, parent=session_id, create_time_ns=now_ns, expire_time_ns=expire_ns
    )
    return Put(record)


def _message(circuit: Circuit) -> CompactionCircuit:
    until = timestamp(circuit.open_until_ns) if circuit.open_until_ns else None
    return CompactionCircuit(failures=circuit.failures, open_until=until, reason=circuit.reason)
