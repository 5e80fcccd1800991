"""Says what each item of a batch comes to, from facts that a store has read. No I/O.

Every store that has one writer judges by this one function, so that winners and losers are the same everywhere. The
store loads the facts that a batch asks for, calls `judge` for item after item, and writes what was accepted; each
accepted item changes the facts for those behind it.
"""

from __future__ import annotations

from dataclasses import field

from behestd.log.store import (
    Append,
    Change,
    Claim,
    Committed,
    Fenced,
    Import,
    Lost,
    Outcome,
    Record,
    RecordChanged,
    RecordIs,
    RequestTaken,
    SessionIsFree,
    SessionTaken,
)
from behestd.values import dataclass

RecordKey = tuple[str, str, str]


@dataclass(frozen=True, slots=True)
class Head:
    """Where a run stands. `key` is the store's own number for it."""

    key: int
    epoch: int
    last_sequence: int
    is_ended: bool


@dataclass(frozen=True, slots=True)
class Stamp:
    """What is known of a record but for its body."""

    version: int
    create_time_ns: int
    expire_time_ns: int


@dataclass(slots=True)
class Facts:
    """What a store holds, as far as a batch asks for it. What is absent here is absent there."""

    position: int = 0
    """The highest commit position given."""
    key: int = 0
    """The highest number given to a run."""
    heads: dict[tuple[str, str], Head] = field(default_factory=dict)
    active: dict[tuple[str, str], set[str]] = field(default_factory=dict)
    """Active runs by (namespace, session)."""
    requests: dict[tuple[str, str], Claim] = field(default_factory=dict)
    stamps: dict[RecordKey, Stamp] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Verdict:
    """The outcome, and the records to write when the item is accepted."""

    outcome: Outcome
    records: tuple[Record, ...] = ()


def judge(item: Append | Change | Import, facts: Facts) -> Verdict:
    """Accept or refuse an item; when accepted, `facts` are those after it."""
    claim = item.claim
    if claim is not None and (held := facts.requests.get((claim.namespace, claim.request_id))) is not None:
        return Verdict(RequestTaken(held.target, held.digest))
    refusal: Outcome | None = None if isinstance(item, Change) else compare(item, facts)
    if refusal is None and item.guards:
        refusal = _guarded(item, facts)
    if refusal is not None:
        return Verdict(refusal)
    deletes = item.deletes if isinstance(item, Change) else ()
    records: tuple[Record, ...] = ()
    if item.puts or deletes:
        stamped = _stamped(item, facts)
        if isinstance(stamped, RecordChanged):
            return Verdict(stamped)
        records, fresh = stamped
        for key, stamp in fresh.items():
            if stamp is None:
                facts.stamps.pop(key, None)
            else:
                facts.stamps[key] = stamp
    if claim is not None:
        facts.requests[claim.namespace, claim.request_id] = claim
    position = 0 if isinstance(item, Change) else _append(item, facts)
    return Verdict(Committed(position, tuple(record.version for record in records)), records)


def compare(item: Append | Import, facts: Facts) -> Lost | Fenced | None:
    """Compare what an append expects of its run with what is."""
    head = facts.heads.get((item.row.namespace, item.row.run_id))
    if isinstance(item, Import):
        return None if head is None else Lost(head.epoch, head.last_sequence)
    if head is None:
        return None if item.epoch == 0 and item.last_sequence == 0 else Lost()
    is_new = item.epoch == 0 and item.last_sequence == 0
    if head.epoch > item.epoch and not is_new:
        return Fenced(head.epoch)
    if is_new or head.is_ended or head.epoch != item.epoch or head.last_sequence != item.last_sequence:
        return Lost(head.epoch, head.last_sequence)
    return None


def namespace_of(item: Append | Change | Import) -> str:
    """Return the namespace that an item is about, empty when it names none."""
    if isinstance(item, Append | Import):
        return item.row.namespace
    if item.claim is not None:
        return item.claim.namespace
    if item.puts:
        return item.puts[0].record.namespace
    named = [delete.namespace for delete in item.deletes]
    named += [guard.namespace for guard in item.guards if isinstance(guard, RecordIs)]
    return named[0] if named else ""


def _guarded(item: Append | Change | Import, facts: Facts) -> Outcome | None:
    own = item.row.run_id if isinstance(item, Append) else ""
    for guard in item.guards:
        if isinstance(guard, SessionIsFree):
            others = facts.active.get((namespace_of(item), guard.session_id), set()) - {own}
            if others:
                return SessionTaken(min(others))
        else:
            stamp = facts.stamps.get((guard.namespace, guard.kind, guard.id))
            version = 0 if stamp is None else stamp.version
            if version == 0 or guard.version not in (None, version):
                return RecordChanged(guard.kind, guard.id, version)
    return None


def _stamped(
    item: Append | Change | Import, facts: Facts
) -> tuple[tuple[Record, ...], dict[RecordKey, Stamp | None]] | RecordChanged:
    """Give each put its version, or name the first record that is not as expected."""
    fresh: dict[RecordKey, Stamp | None] = {}
    written: list[Record] = []
    for put in item.puts:
        record = put.record
        key = (record.namespace, record.kind, record.id)
        old = fresh[key] if key in fresh else facts.stamps.get(key)
        if old is not None and 0 < old.expire_time_ns <= record.create_time_ns:
            old = None
        version = 0 if old is None else old.version
        if put.expected_version not in (None, version):
            return RecordChanged(record.kind, record.id, version)
        created = record.create_time_ns if old is None else old.create_time_ns
        written.append(Record(*key, record.body, record.parent, version + 1, created, record.expire_time_ns))
        fresh[key] = Stamp(version + 1, created, record.expire_time_ns)
    for delete in item.deletes if isinstance(item, Change) else ():
        key = (delete.namespace, delete.kind, delete.id)
        old = fresh[key] if key in fresh else facts.stamps.get(key)
        if old is not None and delete.expected_version not in (None, old.version):
            return RecordChanged(delete.kind, delete.id, old.version)
        fresh[key] = None
    return tuple(written), fresh


def _append(item: Append | Import, facts: Facts) -> int:
    row = item.row
    key = (row.namespace, row.run_id)
    head = facts.heads.get(key)
    if head is None:
        facts.key += 1
    number = facts.key if head is None else head.key
    facts.heads[key] = Head(number, row.epoch, row.last_sequence, row.is_ended)
    gate = (row.namespace, row.session_id)
    if row.is_active:
        facts.active.setdefault(gate, set()).add(row.run_id)
    elif gate in facts.active:
        facts.active[gate].discard(row.run_id)
    facts.position += 1 if isinstance(item, Append) else len(item.chunks)
    return facts.position
