"""Summarises a session because somebody asks for it, outside any run.

Above: the service. Below: models, books and log. The summary, the session's new version and its closed circuit are one
transaction, which no run of the session may be active in; of two that are asked for at once one takes effect. While
the model writes nothing is held: what is said meanwhile comes behind the summary.
"""

from __future__ import annotations

from dataclasses import dataclass

from behest.v1.agent_pb2 import Agent
from behest.v1.definition_pb2 import Compaction
from behest.v1.message_pb2 import Message
from behest.v1.session_pb2 import Session
from behest.v1.usage_pb2 import Usage
from behest.v1.usage_service_pb2 import UsagePurpose
from behestd.core import compaction, compaction_call
from behestd.core.compaction import CLOSED, PROMPT_SHARE, Room, cut, summary_tokens
from behestd.core.estimate import estimate, estimate_chat
from behestd.core.spend import priced
from behestd.core.times import SECOND, duration_ns, timestamp
from behestd.errors import LostRace, SessionBusy, SessionNotFound, StorageFull
from behestd.log import views
from behestd.log.store import (
    SESSION_KIND,
    Change,
    Committed,
    Full,
    Put,
    Record,
    RecordChanged,
    SessionIsFree,
    SessionTaken,
)
from behestd.providers.catalog import Resolved, check
from behestd.providers.failure import ProviderFailure, to_error
from behestd.providers.provider import complete
from behestd.runtime.agents import Agents
from behestd.runtime.bookkeeping import Bookkeeping, Charge
from behestd.runtime.compaction import put
from behestd.runtime.house import House
from behestd.runtime.orders import price_at
from behestd.runtime.reading import history_of
from behestd.runtime.whole import whole


class CompactionLost(LostRace):
    """Raised when a session was summarised by somebody else, or changed, while its summary was written."""

    def __init__(self, version: int) -> None:
        text = f"the session changed while its summary was written, it is at version {version}"
        super().__init__("SESSION_VERSION_MISMATCH", text, version=version)


@dataclass(frozen=True, slots=True)
class Compacted:
    """What came of it. `summary_id` is empty when there was nothing to summarise."""

    tokens_before: int
    tokens_after: int
    summary_id: str = ""
    usage: Usage | None = None


@dataclass(frozen=True, slots=True)
class _Plan:
    """Of what the summary is to be made, by whom, and how."""

    messages: tuple[Message, ...]
    count: int
    writer: Resolved
    policy: Compaction
    window: int


class ManualCompaction:
    """Summarises sessions on request."""

    def __init__(self, house: House, agents: Agents) -> None:
        self._house = house
        self._agents = agents
        self._books = Bookkeeping(house.log, house.ledger, house.clock)

    async def compact(self, namespace: str, record: Record, model: str) -> Compacted:
        """Summarise a session, by a model or, if that is empty, by the one configured, else that of its agent.

        Raises SessionBusy, SessionNotFound, CompactionLost, ModelNotFound, StorageFull, what budgets refuse and what
        `to_error` makes of a provider's failure.
        """
        session = Session.FromString(record.body)
        await self._check_free(namespace, session.id)
        agent = await self._agents.resolve(namespace, session.agent_id)
        plan = await self._plan(namespace, session.id, agent, model)
        before = sum(map(estimate, plan.messages))
        if not plan.count:
            return Compacted(before, before)
        charge = Charge(namespace, UsagePurpose.USAGE_PURPOSE_COMPACTION, session.id, agent.id)
        text, usage = await self._write(plan, charge)
        upto = plan.messages[plan.count - 1].id
        seed = f"{namespace}\0{session.id}\0{record.version}\0{upto}"
        summary = compaction_call.summary_of(text, upto, seed, usage)
        await whole(self._keep(namespace, record, session, summary))
        kept = sum(map(estimate, plan.messages[plan.count :]))
        return Compacted(before, kept + estimate(summary), summary.id, usage)

    async def reset(self, namespace: str, session_id: str) -> None:
        """Close a session's circuit. Idempotent. Raises StorageFull."""
        if self._house.circuits.shown(namespace, session_id) is None:
            return
        written = put(namespace, session_id, CLOSED, self._house.clock.now_ns())
        if isinstance(await self._house.log.commit(Change(puts=(written,))), Full):
            raise StorageFull
        self._house.circuits.saw([written])

    async def _check_free(self, namespace: str, session_id: str) -> None:
        active = [row for row in await self._house.log.store.session_runs(namespace, session_id) if row.is_active]
        if active:
            raise SessionBusy(session_id, active[0].run_id, "SESSION_BUSY")

    async def _plan(self, namespace: str, session_id: str, agent: Agent, model: str) -> _Plan:
        house = self._house
        policy = compaction.in_force(agent.compaction, house.operator.compaction)
        writer = house.models.of(namespace).resolve(model or policy.model or agent.model)
        window = writer.model.limits.context_window_tokens
        messages = tuple(await history_of(house.log.store, namespace, session_id, 0, house.limits.history_messages))
        tokens = sum(map(estimate, messages))
        bounds = Room(
            tail_tokens=policy.tail_tokens if policy.HasField("tail_tokens") else int(tokens * compaction.TAIL_SHARE),
            tail_messages=policy.tail_messages,
            prompt_tokens=int(window * PROMPT_SHARE) - summary_tokens(policy, window) if window else None,
        )
        count = cut(messages, bounds, estimate, compaction_call.in_prompt(window)) if messages else 0
        return _Plan(messages, count, writer, policy, window)

    async def _write(self, plan: _Plan, charge: Charge) -> tuple[str, Usage]:
        """Have the summary written: its text and what it used, priced."""
        house, model = self._house, plan.writer.model
        chat = compaction_call.chat(plan.messages[: plan.count], plan.policy, model.id, plan.window)
        check(chat, model)
        price = price_at(model, house.clock.now_ns())
        most = Usage(input_tokens=estimate_chat(chat), output_tokens=chat.sampling.max_output_tokens)
        deadline_ns = house.clock.now_ns() + duration_ns(plan.policy.timeout)
        limits = house.model_timeouts.within(duration_ns(plan.policy.timeout) / SECOND)
        await self._books.open(charge)
        attempt = house.endpoints.attempt(
            plan.writer.endpoint,
            deadline_ns,
            is_retry=False,
            tokens=most.input_tokens,
            namespace=charge.namespace,
        )
        try:
            async with house.leases.hold(plan.writer.provider), attempt as tried:
                house.switch.refuse_model(charge.namespace, model.id)
                async with self._books.attempt(charge, model.id, price, lambda: most) as paid:
                    end = await complete(plan.writer.provider, chat, limits)
                    tried.used(end.usage)
                    paid.used(end.usage)
            return _text_of(plan, compaction_call.text_of(end)), priced(end.usage, price)
        except ProviderFailure as failure:
            raise to_error(failure, model.id) from failure

    async def _keep(self, namespace: str, record: Record, session: Session, summary: Message) -> None:
        """Write the summary, if the session is as it was and no run of it is active."""
        house, session_id = self._house, session.id
        now_ns = house.clock.now_ns()
        session.update_time.CopyFrom(timestamp(now_ns))
        body = session.SerializeToString()
        latest = await house.log.store.last_entries(namespace, views.MESSAGE, session_id, 1 << 62, 1)
        place = views.next_summary_position(latest[-1].position if latest else 0)
        changed = Record(namespace, SESSION_KIND, session_id, body, parent=record.parent, create_time_ns=now_ns)
        closed = put(namespace, session_id, CLOSED, now_ns)
        change = Change(
            puts=(Put(changed, record.version), closed),
            guards=(SessionIsFree(session_id),),
            entries=(views.summary_entry(session_id, summary, "", place, now_ns),),
        )
        match await house.log.commit(change):
            case Committed():
                house.circuits.saw([closed])
            case SessionTaken(run_id):
                raise SessionBusy(session_id, run_id, "SESSION_BUSY")
            case RecordChanged(version=0):
                raise SessionNotFound(session_id)
            case RecordChanged(version=version):
                raise CompactionLost(version)
            case _:
                raise StorageFull


def _text_of(plan: _Plan, text: str) -> str:
    """The notes, if they are any and shorter than what they stand for. Raises ProviderFailure."""
    replaced = sum(map(estimate, plan.messages[: plan.count]))
    if not text or estimate(compaction_call.summary_of(text, "", "")) >= replaced:
        problem = "the summary is no shorter than what it stands for" if text else "the answer holds no summary"
        raise ProviderFailure("PROVIDER_MALFORMED_OUTPUT", problem)
    return text
