"""RunService: a translator between the contract and the supervisor. Above: the edge. Below: the runtime."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from functools import partial

from behest.v1 import run_service_pb2 as pb
from behest.v1.message_pb2 import Message, Role
from behest.v1.run_event_pb2 import ForkedFrom
from behest.v1.run_pb2 import Run as RunMessage
from behest.v1.run_spec_pb2 import RunSpec
from behest.v1.run_state_pb2 import CancelCause, CancelMode
from behestd.core import inputs
from behestd.core.definition import FREE
from behestd.core.report import report
from behestd.core.signals import Cancel, Input
from behestd.core.state import Run, state_name
from behestd.errors import BehestError, RunActive, RunEnding, RunNotFound, StorageFull
from behestd.log import views
from behestd.log.store import DeleteRun, Full, RunQuery, RunRow, Store
from behestd.runtime.admission import Admission
from behestd.runtime.birth import Order, digest
from behestd.runtime.disconnect import cancel_later
from behestd.runtime.explain import explain
from behestd.runtime.forking import follows_source, fork_of, nodes_of, sequence_before
from behestd.runtime.house import House
from behestd.runtime.orders import Orders
from behestd.runtime.quotas_stored import check_sessions
from behestd.runtime.reading import run_at, shown
from behestd.runtime.supervisor import Created, Supervisor
from behestd.service import run_checks as checks
from behestd.service.call import Call
from behestd.service.methods import Handler
from behestd.service.pages import page_of
from behestd.service.validate import identifier, request_id, timestamp_ns
from behestd.service.watch import Watches, watch

_NAME = "/behest.v1.RunService/"


class Runs:
    """Handlers of RunService."""

    def __init__(
        self, house: House, supervisor: Supervisor, orders: Orders, admission: Admission, watches: Watches
    ) -> None:
        self._house = house
        self._supervisor = supervisor
        self._orders = orders
        self._admission = admission
        self._watches = watches

    def handlers(self) -> Mapping[str, Handler]:
        """The handlers by full name."""
        return {
            _NAME + "CreateRun": self.create_run,
            _NAME + "StreamRun": self.stream_run,
            _NAME + "WatchRun": self.watch_run,
            _NAME + "GetRun": self.get_run,
            _NAME + "ListRuns": self.list_runs,
            _NAME + "CancelRun": self.cancel_run,
            _NAME + "SendInput": self.send_input,
            _NAME + "ForkRun": self.fork_run,
            _NAME + "DeleteRun": self.delete_run,
            _NAME + "ExplainRun": self.explain_run,
        }

    async def create_run(self, request: pb.CreateRunRequest, call: Call) -> pb.CreateRunResponse:
        """Create a run and answer when it is durable."""
        created = await self._create(request, request.spec, call)
        return pb.CreateRunResponse(run=await self._report(call.namespace, created), replayed=created.replayed)

    async def stream_run(self, request: pb.StreamRunRequest, call: Call) -> None:
        """Create a run and watch it from its first event."""
        created = await self._create(request, request.spec, call)
        call.names(run_id=created.run_id)
        driver = created.driver
        if created.replayed:
            await call.send_initial_metadata(behest_replayed="true")
        tail = driver.tail if driver is not None else None
        if tail is None:
            tail = await self._house.log.tail(call.namespace, created.run_id)
        try:
            await watch(call, self._watches, tail, 0, lambda: driver)
        except asyncio.CancelledError:
            if request.spec.cancel_on_disconnect and not created.replayed and not self._watches.is_draining:
                seconds = self._house.limits.disconnect_grace_seconds
                cancel_later(self._supervisor, call.namespace, created.run_id, seconds)
            raise

    async def watch_run(self, request: pb.WatchRunRequest, call: Call) -> None:
        """Watch a run after a sequence."""
        identifier("run_id", request.run_id)
        tail = await self._house.log.tail(call.namespace, request.run_id)
        find = partial(self._supervisor.driver, call.namespace, request.run_id)
        await watch(call, self._watches, tail, request.after_sequence, find)

    async def get_run(self, request: pb.GetRunRequest, call: Call) -> pb.GetRunResponse:
        """Get a run as it is, or as it was."""
        identifier("run_id", request.run_id)
        driver = self._supervisor.driver(call.namespace, request.run_id)
        if driver is not None and not request.at_sequence:
            return pb.GetRunResponse(run=await shown(self._store, driver.run))
        row = await self._row(call.namespace, request.run_id)
        # A live run that nobody drives just now waits for more than its row tells.
        is_live = not row.is_ended and self._supervisor.unfit(call.namespace, request.run_id) is None
        sequence = request.at_sequence or (row.last_sequence if is_live else 0)
        if sequence:
            return pb.GetRunResponse(run=await shown(self._store, await run_at(self._store, row, sequence)))
        if not row.body:
            raise RunNotFound(request.run_id)
        run = RunMessage.FromString(row.body)
        if run.HasField("reasoning"):
            return pb.GetRunResponse(run=await shown(self._store, await run_at(self._store, row, row.last_sequence)))
        for entry in await self._store.entries(call.namespace, views.MESSAGE, run_id=request.run_id, limit=100_000):
            run.messages.add().ParseFromString(entry.body)
        return pb.GetRunResponse(run=run)

    async def list_runs(self, request: pb.ListRunsRequest, call: Call) -> pb.ListRunsResponse:
        """List runs, newest first."""
        page = page_of(request, call.namespace, (int, str))
        checks.check_filters(request)
        query = RunQuery(
            namespace=call.namespace,
            limit=page.size + 1,
            states=tuple(request.states),
            session_id=request.session_id,
            agent_id=request.agent_id,
            created_after_ns=timestamp_ns("created_after", request.created_after),
            created_before_ns=timestamp_ns("created_before", request.created_before),
            before=(int(page.after[0]), str(page.after[1])) if page.after else None,
        )
        rows = await self._store.runs(query)
        shown = [RunMessage.FromString(row.body) for row in rows[: page.size]]
        wanted = request.labels.items()
        response = pb.ListRunsResponse(runs=[run for run in shown if run.labels.items() >= wanted])
        if len(rows) > page.size:
            last = rows[page.size - 1]
            response.next_page_token = page.token(last.create_time_ns, last.run_id)
        return response

    async def cancel_run(self, request: pb.CancelRunRequest, call: Call) -> pb.CancelRunResponse:
        """Cancel a run; the answer says that it will end."""
        identifier("run_id", request.run_id)
        checks.check_cancel(request)
        mode = request.mode or CancelMode.CANCEL_MODE_GRACEFUL
        signal = Cancel(mode, CancelCause.CANCEL_CAUSE_CLIENT, call.caller.principal, request.reason)
        after = await self._supervisor.command(call.namespace, request.run_id, signal)
        return pb.CancelRunResponse(run=_shown(after))

    async def send_input(self, request: pb.SendInputRequest, call: Call) -> pb.SendInputResponse:
        """Say something to a run."""
        identifier("run_id", request.run_id)
        request_id("request_id", request.request_id)
        checks.check_parts("input", request.input)
        self._admission.check_input("input", request.input)
        input_id = request.request_id or self._house.ids.make("inp")
        driver = self._supervisor.driver(call.namespace, request.run_id)
        if driver is not None and (known := inputs.known(driver.run, input_id, request.input)):
            return pb.SendInputResponse(sequence=known, replayed=True)
        message = Message(id=self._house.ids.make("msg"), role=Role.ROLE_USER, parts=request.input)
        signal = Input(input_id, message, call.caller.principal)
        after = await self._supervisor.command(call.namespace, request.run_id, signal)
        if isinstance(after, RunRow):
            if known := await self._ended_input(after, request):
                return pb.SendInputResponse(sequence=known, replayed=True)
            raise RunEnding(request.run_id, state_name(after.state))
        return pb.SendInputResponse(sequence=inputs.known(after, input_id, request.input))

    async def _ended_input(self, row: RunRow, request: pb.SendInputRequest) -> int:
        """The sequence of an input that a run received before it ended, 0 when it did not. Raises RequestIdReused."""
        if not request.request_id or row.first_sequence > 1:
            return 0
        return inputs.known(await run_at(self._store, row, row.last_sequence), request.request_id, request.input)

    async def fork_run(self, request: pb.ForkRunRequest, call: Call) -> pb.ForkRunResponse:
        """Create a run that starts from the transcript of another."""
        identifier("source_run_id", request.source_run_id)
        checks.check_fork(request)
        row = await self._row(call.namespace, request.source_run_id)
        sequence = request.sequence or row.last_sequence
        if request.visit:
            sequence = await sequence_before(self._store, row, request.visit)
        source = await run_at(self._store, row, sequence)
        spec, forked_from = fork_of(source, request.spec, request.source_run_id)
        if follows_source(request.spec):
            forked_from.nodes.extend(await nodes_of(self._store, row, source))
        created = await self._create(request, spec, call, forked_from)
        return pb.ForkRunResponse(run=await self._report(call.namespace, created), replayed=created.replayed)

    async def delete_run(self, request: pb.DeleteRunRequest, call: Call) -> pb.DeleteRunResponse:
        """Delete the log and the record of a run that has ended."""
        identifier("run_id", request.run_id)
        row = await self._store.run(call.namespace, request.run_id)
        if row is None:
            return pb.DeleteRunResponse()
        if not row.is_ended:
            raise RunActive(request.run_id, state_name(row.state))
        outcome = await self._house.log.commit(DeleteRun(call.namespace, request.run_id))
        if isinstance(outcome, Full):
            raise StorageFull
        return pb.DeleteRunResponse()

    async def explain_run(self, request: pb.ExplainRunRequest, call: Call) -> pb.ExplainRunResponse:
        """Explain why a run is not moving."""
        identifier("run_id", request.run_id)
        row = await self._row(call.namespace, request.run_id)
        driver = self._supervisor.driver(call.namespace, request.run_id)
        return explain(row, driver.run if driver is not None else None, self._supervisor, self._house)

    # --- shared ---

    @property
    def _store(self) -> Store:
        return self._house.log.store

    async def _row(self, namespace: str, run_id: str) -> RunRow:
        row = await self._store.run(namespace, run_id)
        if row is None:
            raise RunNotFound(run_id)
        return row

    async def _create(
        self, request: checks.Creation, spec: RunSpec, call: Call, forked_from: ForkedFrom | None = None
    ) -> Created:
        """Check, resolve and create. Raises what admission, orders and the supervisor raise."""
        checks.check_creation(request, spec)
        said = spec.input[:]  # A list: to walk a repeated field costs as much as ten of its items.
        checks.check_parts("spec.input", said)
        if said or forked_from is None:
            self._admission.check_input("spec.input", said)
        request_digest = _digest(request) if request.request_id else b""
        try:
            if self._store.is_degraded:
                raise StorageFull
            self._house.intake.ask(*_who(call))
            if not spec.session_id and self._house.intake.quotas.bounds_sessions(*_who(call)):
                await check_sessions(self._house, *_who(call))
            order = await self._order(request.request_id, request_digest, spec, call, forked_from)
            mark = self._admission.claim_input(order)
        except BehestError:
            # A repeat gets the first result, whatever has become of session, agent and model since.
            known = await self._supervisor.replay(call.namespace, request.request_id, request_digest)
            if known is None:
                raise
            return known
        try:
            created = await self._supervisor.create(order)
        except BaseException:
            self._admission.forget_input(mark)
            raise
        if order.request_id and created.replayed:
            self._admission.forget_input(mark)
        return created

    async def _order(
        self, request_id: str, request_digest: bytes, spec: RunSpec, call: Call, forked_from: ForkedFrom | None
    ) -> Order:
        house = self._house
        heritage = FREE
        if spec.session_id:
            spec, heritage = await self._orders.in_session(call.namespace, spec)
        return Order(
            namespace=call.namespace,
            principal=call.caller.principal,
            run_id=spec.run_id or house.ids.make("run"),
            session_id=spec.session_id or house.ids.make("ses"),
            is_new_session=not spec.session_id,
            spec=spec,
            pinned=await self._orders.pin(call.namespace, spec, heritage),
            request_id=request_id,
            digest=request_digest,
            traceparent=call.traceparent,
            forked_from=forked_from,
        )

    async def _report(self, namespace: str, created: Created) -> RunMessage:
        if created.driver is not None:
            return report(created.driver.run)
        return views.reported(await self._row(namespace, created.run_id))


def _digest(request: checks.Creation) -> bytes:
    """What tells a repeat from another request: the spec, whichever of CreateRun and StreamRun brings it."""
    if isinstance(request, pb.ForkRunRequest):
        return digest(request.SerializeToString(deterministic=True))
    return digest(request.spec.SerializeToString(deterministic=True))


def _shown(after: Run | RunRow) -> RunMessage:
    return RunMessage.FromString(after.body) if isinstance(after, RunRow) else report(after)


def _who(call: Call) -> tuple[str, str]:
    """Give the namespace and the principal of a call."""
    return call.namespace, call.caller.principal
