"""ContextService: previews of what a model would see, and the daemon's own sources for others. Above: the edge.

Below: `runtime.context`, which asks sources, and the composition of runs, which a preview shares: it shows what a run
would send. Nothing is recorded. Sources of registered servers are not passed on, so that questions never go in circles.
"""

from __future__ import annotations

from collections.abc import Mapping

from behest.v1 import context_service_pb2 as pb
from behest.v1.context_pb2 import ContextSource, ContextSourceKind
from behest.v1.message_pb2 import Message, Role
from behest.v1.run_event_pb2 import RunCreated
from behestd.context.catalog import Sources
from behestd.context.source import SourceFailure, SourceNotFound
from behestd.core.definition import FREE
from behestd.core.estimate import EXACT, corrected, estimate
from behestd.core.run import start
from behestd.core.sources import Gathered, asked, cut, failed, planned, static_message, take, tokens_of
from behestd.core.state import Run
from behestd.core.times import SECOND
from behestd.core.window import Window, compose
from behestd.errors import InvalidRequest
from behestd.runtime.admission import Admission
from behestd.runtime.context import Contexts
from behestd.runtime.house import House
from behestd.runtime.orders import Orders, Pinned
from behestd.runtime.reading import history_of
from behestd.service.call import Call
from behestd.service.context_checks import check_build, check_question
from behestd.service.methods import Handler
from behestd.service.pages import page_of
from behestd.service.settings import Settings

_NAME = "/behest.v1.ContextService/"
_SPARE_BYTES = 256 * 1024
"""What of a response is kept for everything but messages."""


class ContextPreviews:
    """Handlers of ContextService."""

    def __init__(
        self, house: House, orders: Orders, contexts: Contexts, admission: Admission, settings: Settings
    ) -> None:
        self._house = house
        self._orders = orders
        self._contexts = contexts
        self._admission = admission
        self._settings = settings

    def handlers(self) -> Mapping[str, Handler]:
        """The handlers by full name."""
        return {
            _NAME + "BuildContext": self.build_context,
            _NAME + "ListContextSources": self.list_context_sources,
            _NAME + "ProvideContext": self.provide_context,
        }

    async def build_context(self, request: pb.BuildContextRequest, call: Call) -> pb.BuildContextResponse:
        """Show the first model call of a run that would be created now."""
        check_build(request)
        if request.spec.input:
            self._admission.check_input("spec.input", request.spec.input)
        spec, heritage, house = request.spec, FREE, self._house
        history: list[Message] = []
        if spec.session_id:
            spec, heritage = await self._orders.in_session(call.namespace, spec)
            store, limit = house.log.store, house.limits.history_messages
            history = await history_of(store, call.namespace, spec.session_id, 0, limit)
        pinned = await self._orders.pin(call.namespace, spec, heritage)
        if pinned.definition.HasField("graph"):
            raise InvalidRequest("spec", "is of a run that follows a graph; PreviewNode shows what its nodes are told")
        run = self._imagined(call.namespace, request, pinned)
        gathered = await self._gathered(run, call)
        model = pinned.definition.models[0]
        window = compose(run, history, model, gathered)
        return self._shown(window, gathered, model, gathered.ratio(pinned.definition, model))

    def _imagined(self, namespace: str, request: pb.BuildContextRequest, pinned: Pinned) -> Run:
        """The run as it would be when it has just been created."""
        spec = request.spec
        order = Message(role=Role.ROLE_USER, parts=spec.input) if spec.input else None
        created = RunCreated(session_id=spec.session_id, namespace=namespace, input=order)
        return start("", created, pinned.definition, self._house.clock.now_ns())

    async def _gathered(self, run: Run, call: Call) -> Gathered:
        """Ask the sources of the run's first step. Raises SourceFailure for one that must not fail."""
        definition = run.definition
        calibration = self._house.calibration.ratios(run.created.namespace)
        if not asked(definition):
            return planned(definition, calibration)
        question = pb.ProvideContextRequest(
            session_id=run.created.session_id, agent_id=definition.agent_id, step=1, messages=run.transcript
        )
        left = call.remaining_seconds
        deadline_ns = self._house.clock.now_ns() + int(left * SECOND) if left is not None else 0
        answers = await self._contexts.ask(run.created.namespace, definition, question, deadline_ns)
        gathered = take(definition, answers, calibration)
        bad = failed(definition, gathered)
        if bad is not None:
            raise SourceFailure(f"context source {bad.source} failed: {bad.skipped_message}", source=bad.source)
        return gathered

    def _shown(self, window: Window, gathered: Gathered, model: str, ratio: int) -> pb.BuildContextResponse:
        response = pb.BuildContextResponse(
            tokens_by_source=window.tokens_by_source,
            input_tokens=window.input_tokens,
            limit_tokens=window.limit_tokens,
            is_too_long=window.is_too_long,
            trims=window.trims,
            outcomes=gathered.outcomes,
            model=model,
            calibration_permille=ratio,
        )
        left = self._settings.response_bytes - _SPARE_BYTES
        for message in window.chat.messages:
            left -= message.ByteSize() + 16
            if left < 0:
                break
            response.messages.append(message)
            response.message_tokens.append(corrected(estimate(message), ratio))
        return response

    async def list_context_sources(
        self, request: pb.ListContextSourcesRequest, call: Call
    ) -> pb.ListContextSourcesResponse:
        """List sources by name, without the texts of static ones."""
        page = page_of(request, call.namespace, (str,))
        after = str(page.after[0]) if page.after else ""
        names = [name for name in self._sources.names() if name > after]
        shown: list[ContextSource] = []
        for name in names[: page.size]:
            source = ContextSource()
            source.CopyFrom(self._sources.find(name))
            source.ClearField("text")
            shown.append(source)
        token = page.token(names[page.size - 1]) if len(names) > page.size else ""
        return pb.ListContextSourcesResponse(sources=shown, next_page_token=token)

    async def provide_context(self, request: pb.ProvideContextRequest, call: Call) -> pb.ProvideContextResponse:
        """Give what a source of this daemon gives."""
        deadline_ns = check_question(request)
        source = self._sources.find(request.source)
        if source.kind == ContextSourceKind.CONTEXT_SOURCE_KIND_STATIC:
            messages: tuple[Message, ...] = (static_message(source),)
        elif source.kind == ContextSourceKind.CONTEXT_SOURCE_KIND_FUNCTION:
            messages = await self._contexts.provide(call.namespace, source, request, deadline_ns)
        else:
            raise SourceNotFound(request.source)
        limit = min((limit for limit in (source.max_tokens, request.max_tokens) if limit), default=0)
        if limit and tokens_of(messages, EXACT) > limit:
            messages = cut(messages, limit)
        return pb.ProvideContextResponse(messages=messages)

    @property
    def _sources(self) -> Sources:
        return self._house.sources
