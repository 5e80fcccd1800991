"""Model calls without a run: attempts spread by `core/route.py` in a loop of their own, nothing recorded.

Above: ChatService and EmbeddingService. Below: the catalog of models and their providers, which make one attempt
each. A stream of which a piece has been handed on is never tried again: two attempts would be spliced into one
answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace

from behest.v1.chat_service_pb2 import Chat, ChatEnd, StreamChatResponse
from behest.v1.embedding_service_pb2 import EmbedRequest, EmbedResponse
from behest.v1.usage_pb2 import Usage
from behestd.core.route import GiveUp, RoutePolicy, Try, WaitUntil, next_attempt, retry_due_ns
from behestd.core.spend import priced, settle, total
from behestd.core.state import Failure, Spend
from behestd.core.times import SECOND, duration_ns
from behestd.errors import BehestError, Unavailable
from behestd.providers.catalog import Resolved, check, needed
from behestd.providers.failure import ProviderFailure, to_error
from behestd.providers.provider import ProviderTimeouts, complete, embed, guarded, timed_out
from behestd.runtime.house import House
from behestd.runtime.orders import price_at


class Passthrough:
    """Makes single model calls. `fallbacks` are the models to try after a model or alias, by its name."""

    def __init__(self, house: House, fallbacks: Mapping[str, Sequence[str]]) -> None:
        self._house = house
        self._fallbacks = fallbacks

    async def stream(self, chat: Chat) -> AsyncGenerator[StreamChatResponse, None]:
        """Yield the frames of the answer, the last one with the end. To be closed by who does not read it all.

        Raises ModelNotFound, ProviderNotFound, CapabilityMissing before anything leaves, then what `to_error` makes.
        """
        route = self._chat_route(chat)
        has_begun = False
        while True:
            resolved = await route.next()
            attempt = guarded(resolved.provider.stream(_addressed(chat, resolved)), route.limits())
            try:
                async with aclosing(attempt) as frames:
                    async for frame in frames:
                        if frame.HasField("end"):
                            yield StreamChatResponse(deltas=frame.deltas, end=self._ended(frame.end, resolved, route))
                            return
                        has_begun = True
                        yield frame
            except ProviderFailure as failure:
                route.failed(resolved, failure)
                if has_begun:
                    raise to_error(failure, resolved.model.id) from failure

    async def complete(self, chat: Chat) -> ChatEnd:
        """Give the whole answer. Raises as `stream`."""
        route = self._chat_route(chat)
        while True:
            resolved = await route.next()
            try:
                end = await complete(resolved.provider, _addressed(chat, resolved), route.limits())
                return self._ended(end, resolved, route)
            except ProviderFailure as failure:
                route.failed(resolved, failure)

    async def embed(self, request: EmbedRequest) -> EmbedResponse:
        """Give one vector for each input, in order. Raises as `stream`."""
        models = self._house.models.current
        first = models.resolve_embedding(request.model)
        others = [models.resolve_embedding(name) for name in self._fallbacks.get(request.model, ())]
        route = _Route(self._house, [first, *others], self._house.model_timeouts.total_seconds)
        while True:
            resolved = await route.next()
            asked = EmbedRequest()
            asked.CopyFrom(request)
            asked.model = resolved.model.id
            try:
                given = await embed(resolved.provider, asked, route.limits())
                if len(given.embeddings) != len(request.inputs):
                    raise ProviderFailure(
                        "PROVIDER_MALFORMED_OUTPUT",
                        f"{len(given.embeddings)} vectors came for {len(request.inputs)} inputs",
                    )
                usage = route.usage(resolved, given.usage)
                return EmbedResponse(embeddings=given.embeddings, model=resolved.model.id, usage=usage)
            except ProviderFailure as failure:
                route.failed(resolved, failure)

    def _chat_route(self, chat: Chat) -> _Route:
        models = self._house.models.current
        first = models.resolve(chat.model)
        check(chat, first.model)
        others = [models.resolve(name) for name in self._fallbacks.get(chat.model, ())]
        able = [first, *(other for other in others if _can(other, chat))]
        limit_seconds = self._house.model_timeouts.total_seconds
        if chat.HasField("timeout"):
            limit_seconds = min(limit_seconds, duration_ns(chat.timeout) / SECOND)
        return _Route(self._house, able, limit_seconds)

    def _ended(self, end: ChatEnd, resolved: Resolved, route: _Route) -> ChatEnd:
        """The end as callers get it: tool calls have ids, usage its cost, all attempts together."""
        told = ChatEnd()
        told.CopyFrom(end)
        told.model = resolved.model.id
        told.usage.CopyFrom(route.usage(resolved, end.usage))
        for part in told.message.parts:
            if part.WhichOneof("kind") == "tool_call" and not part.tool_call.id:
                part.tool_call.id = self._house.ids.make("call")
        return told


class _Route:
    """The attempts of one call, within one time limit."""

    def __init__(self, house: House, models: Sequence[Resolved], limit_seconds: float) -> None:
        self._house = house
        self._models = {resolved.model.id: resolved for resolved in models}
        self._policy: RoutePolicy = replace(house.retries, endpoints=tuple(self._models))
        self._limit_seconds = limit_seconds
        self._end_ns = house.clock.now_ns() + int(limit_seconds * SECOND)
        self._failures: list[Failure] = []
        self._error: BehestError | None = None
        self._spend = Spend()

    async def next(self) -> Resolved:
        """Wait until an attempt is due, and give the model to ask. Raises what failed when there is none."""
        house = self._house
        while True:
            now_ns = house.clock.now_ns()
            if now_ns >= self._end_ns:
                raise self._error or to_error(timed_out("no answer", self._limit_seconds), next(iter(self._models)))
            match next_attempt(self._policy, self._failures, house.health(), now_ns):
                case Try(endpoint):
                    return self._models[endpoint]
                case WaitUntil(due_ns) if due_ns < self._end_ns:
                    await asyncio.sleep((due_ns - now_ns) / SECOND)
                case WaitUntil() | GiveUp():
                    raise self._error or _broken_off(next(iter(self._models)))

    def limits(self) -> ProviderTimeouts:
        """The limits of the next attempt."""
        left_ns = max(self._end_ns - self._house.clock.now_ns(), 0)
        return self._house.model_timeouts.within(left_ns / SECOND)

    def failed(self, resolved: Resolved, failure: ProviderFailure) -> None:
        """Take note that an attempt failed, and of what it cost."""
        house, name = self._house, resolved.model.id
        tries = 1 + sum(1 for earlier in self._failures if earlier.endpoint == name)
        retry_after_ns = int((failure.retry_after_seconds or 0) * SECOND)
        chance = (house.clock.now_ns(), house.rng.random())
        due_ns = retry_due_ns(self._policy, failure.failure_class, tries, retry_after_ns, chance)
        self._failures.append(Failure(name, failure.failure_class, failure.reason, failure.message, due_ns))
        self._error = to_error(failure, name)
        if failure.usage is not None:
            self.usage(resolved, failure.usage)

    def usage(self, resolved: Resolved, usage: Usage) -> Usage:
        """Add what an attempt used, and give the sum of all of them, with its cost where prices are known."""
        price = price_at(resolved.model, self._house.clock.now_ns())
        self._spend = settle(self._spend, priced(usage, price))
        return total(self._spend)


def _addressed(chat: Chat, resolved: Resolved) -> Chat:
    attempt = Chat()
    attempt.CopyFrom(chat)
    attempt.model = resolved.model.id
    return attempt


def _can(resolved: Resolved, chat: Chat) -> bool:
    return all(getattr(resolved.model.capabilities, capability) for capability in needed(chat))


def _broken_off(model: str) -> BehestError:
    """What is told of a model whose breaker is open for longer than the call may take."""
    return Unavailable(
        "PROVIDER_UNAVAILABLE", f"{model}: failed too often a moment ago", model=model, retry_seconds=1.0
    )
