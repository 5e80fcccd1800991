"""Model calls without a run: attempts spread by `core/route.py` in a loop of their own, each of them booked.

Above: ChatService and EmbeddingService. Below: the catalog of models and their providers, which make one attempt
each. A stream of which a piece has been handed on is never tried again: two attempts would be spliced into one
answer. Somebody waits for the answer, so a call does not wait for models that are left alone, nor twice for the
operator's limits: it fails.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import NamedTuple

from behest.v1.chat_service_pb2 import Chat, ChatEnd, StreamChatResponse
from behest.v1.embedding_service_pb2 import EmbedRequest, EmbedResponse
from behest.v1.usage_pb2 import Usage
from behest.v1.usage_service_pb2 import UsagePurpose
from behestd.core.estimate import estimate_chat, estimate_text
from behestd.core.route import GiveUp, RoutePolicy, Try, WaitUntil, next_attempt, retry_due_ns
from behestd.core.spend import priced, settle, total
from behestd.core.state import Failure, Spend
from behestd.core.times import SECOND, duration_ns
from behestd.errors import BehestError, ModelNotFound, Unavailable
from behestd.providers.catalog import Resolved, needed
from behestd.providers.failure import ProviderFailure, to_error
from behestd.providers.leases import Lease
from behestd.providers.provider import ProviderTimeouts, complete, embed, guarded, timed_out
from behestd.runtime.bookkeeping import Bookkeeping, Charge, Paid
from behestd.runtime.health import Attempt
from behestd.runtime.house import House
from behestd.runtime.model_limits import OverLimit
from behestd.runtime.orders import price_at


class Passthrough:
    """Makes single model calls."""

    def __init__(self, house: House) -> None:
        self._house = house
        self._books = Bookkeeping(house.log, house.ledger, house.clock)

    async def stream(self, chat: Chat, namespace: str) -> AsyncGenerator[StreamChatResponse, None]:
        """Yield the frames of the answer, the last one with the end. To be closed by who does not read it all.

        Raises ModelNotFound, ProviderNotFound, CapabilityMissing and what budgets refuse before anything leaves, then
        what `to_error` makes.
        """
        route = self._chat_route(chat, namespace)
        has_begun = False
        while True:
            resolved = await route.next()
            try:
                async with route.leased(resolved), route.attempt(resolved) as attempt, route.paid(resolved) as paid:
                    stream = guarded(resolved.provider.stream(_addressed(chat, resolved)), route.limits())
                    async with aclosing(stream) as frames:
                        async for last in frames:
                            if last.HasField("end"):
                                break
                            has_begun = True
                            yield last
                    attempt.used(last.end.usage)
                    paid.used(last.end.usage)
            except ProviderFailure as failure:
                route.failed(resolved, failure)
                if has_begun:
                    raise to_error(failure, resolved.model.id) from failure
            else:
                yield StreamChatResponse(deltas=last.deltas, end=self._ended(last.end, resolved, route))
                return

    async def complete(self, chat: Chat, namespace: str) -> ChatEnd:
        """Give the whole answer. Raises as `stream`."""
        route = self._chat_route(chat, namespace)
        while True:
            resolved = await route.next()
            try:
                async with route.leased(resolved), route.attempt(resolved) as attempt, route.paid(resolved) as paid:
                    end = await complete(resolved.provider, _addressed(chat, resolved), route.limits())
                    attempt.used(end.usage)
                    paid.used(end.usage)
                return self._ended(end, resolved, route)
            except ProviderFailure as failure:
                route.failed(resolved, failure)

    async def embed(self, request: EmbedRequest, namespace: str) -> EmbedResponse:
        """Give one vector for each input, in order. Raises as `stream`."""
        name = request.model or self._house.models.of(namespace).default_embedding_model
        candidates = self._candidates(namespace, name, ("embeddings",))
        tokens = sum(map(estimate_text, request.inputs)) if self._house.endpoints.has_limits else 0
        charge = Charge(namespace, UsagePurpose.USAGE_PURPOSE_EMBEDDING, request.session_id)
        payer = _Payer(self._books, charge, lambda: Usage(input_tokens=sum(map(estimate_text, request.inputs))))
        await self._books.open(charge)
        route = _Route(self._house, candidates, self._house.model_timeouts.total_seconds, tokens, payer)
        while True:
            resolved = await route.next()
            asked = EmbedRequest()
            asked.CopyFrom(request)
            asked.model = resolved.model.id
            try:
                async with route.leased(resolved), route.attempt(resolved) as attempt, route.paid(resolved) as paid:
                    given = await embed(resolved.provider, asked, route.limits())
                    attempt.used(given.usage)
                    paid.used(given.usage)
                    if len(given.embeddings) != len(request.inputs):
                        raise ProviderFailure(
                            "PROVIDER_MALFORMED_OUTPUT",
                            f"{len(given.embeddings)} vectors came for {len(request.inputs)} inputs",
                        )
                usage = route.usage(resolved, given.usage)
                return EmbedResponse(embeddings=given.embeddings, model=resolved.model.id, usage=usage)
            except ProviderFailure as failure:
                route.failed(resolved, failure)

    def _chat_route(self, chat: Chat, namespace: str) -> _Route:
        candidates = self._candidates(namespace, chat.model, tuple(dict.fromkeys(needed(chat))))
        limit_seconds = self._house.model_timeouts.total_seconds
        if chat.HasField("timeout"):
            limit_seconds = min(limit_seconds, duration_ns(chat.timeout) / SECOND)
        tokens = estimate_chat(chat) if self._house.endpoints.has_limits else 0
        payer = _Payer(self._books, Charge(namespace, UsagePurpose.USAGE_PURPOSE_CHAT), lambda: _most_of(chat))
        return _Route(self._house, candidates, limit_seconds, tokens, payer)

    def _candidates(self, namespace: str, name: str, needs: Sequence[str]) -> list[Resolved]:
        models, house = self._house.models.of(namespace), self._house
        others = models.fallbacks_of(name, house.fallbacks)
        return models.candidates(name, others, needs, house.rng.random())

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


class _Payer(NamedTuple):
    """Who pays for a call, and how much an attempt is known to need at most."""

    books: Bookkeeping
    charge: Charge
    reserve: Callable[[], Usage]


class _Route:
    """The attempts of one call, within one time limit. `tokens` is what it sends, estimated."""

    def __init__(
        self, house: House, models: Sequence[Resolved], limit_seconds: float, tokens: int, payer: _Payer
    ) -> None:
        self._house = house
        self._payer = payer
        self._tokens = tokens
        self._models = {resolved.model.id: resolved for resolved in models}
        self._policy: RoutePolicy = replace(house.retries, endpoints=tuple(self._models))
        self._limit_seconds = limit_seconds
        self._end_ns = house.clock.now_ns() + int(limit_seconds * SECOND)
        self._failures: list[Failure] = []
        self._error: BehestError | None = None
        self._spend = Spend()
        self._is_over_limit = False
        """Whether the last attempt has waited for the operator's limits already, in vain."""

    async def next(self) -> Resolved:
        """Wait until an attempt is due, and give the model to ask. Raises what failed when there is none."""
        house = self._house
        while True:
            now_ns = house.clock.now_ns()
            if now_ns >= self._end_ns:
                raise self._error or to_error(timed_out("no answer", self._limit_seconds), next(iter(self._models)))
            match next_attempt(self._policy, self._failures, house.health(self._payer.charge.namespace), now_ns):
                case Try(endpoint):
                    house.switch.refuse_model(self._payer.charge.namespace, endpoint)
                    return self._there(endpoint)
                case WaitUntil(due_ns, is_barred=True):
                    raise self._error or _left_alone(next(iter(self._models)), (due_ns - now_ns) / SECOND)
                case WaitUntil(due_ns) if due_ns < self._end_ns and not self._is_over_limit:
                    await asyncio.sleep((due_ns - now_ns) / SECOND)
                case WaitUntil() | GiveUp():
                    raise self._error or to_error(timed_out("no answer", self._limit_seconds), next(iter(self._models)))

    def _there(self, endpoint: str) -> Resolved:
        """The model as it is served now: a reload may have replaced its provider. Raises ModelNotFound."""
        now = self._house.models.of(self._payer.charge.namespace).models.get(endpoint)
        if now is None:
            raise self._error or ModelNotFound(endpoint)
        self._models[endpoint] = now
        return now

    def leased(self, resolved: Resolved) -> Lease:
        """Keep the provider open, to be entered around the call."""
        return self._house.leases.hold(resolved.provider)

    def attempt(self, resolved: Resolved) -> Attempt:
        """Make the attempt at a model, to be entered around the call."""
        name = resolved.model.id
        is_retry = any(failure.endpoint == name for failure in self._failures)
        return self._house.endpoints.attempt(
            resolved.endpoint,
            self._end_ns,
            is_retry=is_retry,
            tokens=self._tokens,
            namespace=self._payer.charge.namespace,
        )

    def paid(self, resolved: Resolved) -> Paid:
        """Make the entry of an attempt in the books, to be entered around the call."""
        price, payer = price_at(resolved.model, self._house.clock.now_ns()), self._payer
        self._house.switch.refuse_model(payer.charge.namespace, resolved.model.id)
        return payer.books.attempt(payer.charge, resolved.model.id, price, payer.reserve)

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
        self._is_over_limit = isinstance(failure, OverLimit)
        if failure.usage is not None:
            self.usage(resolved, failure.usage)

    def usage(self, resolved: Resolved, usage: Usage) -> Usage:
        """Add what an attempt used, and give the sum of all of them, with its cost where prices are known."""
        price = price_at(resolved.model, self._house.clock.now_ns())
        self._spend = settle(self._spend, priced(usage, price))
        return total(self._spend)


def _most_of(chat: Chat) -> Usage:
    return Usage(input_tokens=estimate_chat(chat), output_tokens=chat.sampling.max_output_tokens)


def _addressed(chat: Chat, resolved: Resolved) -> Chat:
    attempt = Chat()
    attempt.CopyFrom(chat)
    attempt.model = resolved.model.id
    return attempt


def _left_alone(model: str, retry_seconds: float) -> BehestError:
    """What is told of a model that is left alone, as are its fallbacks."""
    text = f"{model}: failed too often a moment ago"
    return Unavailable("PROVIDER_UNAVAILABLE", text, model=model, retry_seconds=retry_seconds)
