"""Calls of models without a run: reserved on budgets before they leave, booked when they end, each attempt once.

    async with books.attempt(charge, price, reserve) as paid:
        ...
        paid.used(usage)

Left without an error the attempt is booked with what it used; left with a ProviderFailure, with what the provider says
that it charged all the same, else an estimate; left in any other way, as when the caller goes away, with an estimate.
A row is durable before the answer is told. Above: the passthrough and the manual compaction. Below: ledger and log.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import structlog

from behest.v1.model_event_pb2 import FailureClass
from behest.v1.model_pb2 import Price
from behest.v1.usage_pb2 import Usage
from behestd.core.spend import priced
from behestd.errors import StorageFailed
from behestd.log.log import Log
from behestd.log.spending import row_of
from behestd.log.store import Change, Committed, Outcome
from behestd.log.usage import Spent
from behestd.providers.failure import ProviderFailure
from behestd.runtime.budgets import Ledger
from behestd.runtime.clock import Clock

logger = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Charge:
    """Whom a call is charged to, and what it is for (a `UsagePurpose`)."""

    namespace: str
    purpose: int
    session_id: str = ""
    agent_id: str = ""


class Bookkeeping:
    """Keeps the books of calls without a run."""

    def __init__(self, log: Log, ledger: Ledger, clock: Clock) -> None:
        self._log = log
        self._clock = clock
        self.ledger = ledger

    async def open(self, charge: Charge) -> None:
        """Look up the budget of the session that is to be charged. To be called before the first attempt of a call."""
        if charge.session_id:
            await self.ledger.open(self._log.store, charge.namespace, charge.session_id)

    def attempt(self, charge: Charge, model: str, price: Price | None, reserve: Callable[[], Usage]) -> Paid:
        """Make an attempt, to be entered around the call. `reserve` gives the most that it is known to need.

        Entering raises Exhausted when a budget would be passed, and WrongState for a price that is not known.
        """
        return Paid(self, charge, (model, price), reserve)

    async def book(self, charge: Charge, model: str, usage: Usage, *, is_estimated: bool) -> None:
        """Write the row of an attempt, priced already. Returns when it is durable. Raises StorageFailed."""
        self._check(await self._log.commit(Change(usage=(self._row(charge, model, usage, is_estimated=is_estimated),))))

    def note(self, charge: Charge, model: str, usage: Usage) -> None:
        """Write the row of an attempt whose caller is gone, as an estimate. Does not wait."""
        row = self._row(charge, model, usage, is_estimated=True)
        try:
            self._log.submit(Change(usage=(row,))).add_done_callback(self._noted)
        except StorageFailed:
            logger.error("usage not booked")

    def _noted(self, done: asyncio.Future[Outcome]) -> None:
        if done.cancelled() or done.exception() is not None:
            logger.error("usage not booked")
        else:
            self._check(done.result())

    def _check(self, outcome: Outcome) -> None:
        if not isinstance(outcome, Committed):
            # The disk is full. What was answered is answered; the ledger has it until the next start.
            logger.error("usage not booked", outcome=type(outcome).__name__)

    def _row(self, charge: Charge, model: str, usage: Usage, *, is_estimated: bool) -> Spent:
        place = (charge.namespace, self._clock.now_ns(), charge.session_id, "", charge.agent_id)
        return row_of(place, model, charge.purpose, usage, is_estimated=is_estimated)


class Paid:
    """One attempt outside runs. See the module's docstring."""

    __slots__ = ("_books", "_charge", "_model", "_price", "_reserve", "_ticket", "_usage")

    def __init__(
        self, books: Bookkeeping, charge: Charge, model: tuple[str, Price | None], reserve: Callable[[], Usage]
    ) -> None:
        self._books = books
        self._charge = charge
        self._model, self._price = model
        self._reserve = reserve
        self._usage: Usage | None = None

    def used(self, usage: Usage) -> None:
        """Say what the provider reported."""
        self._usage = usage

    async def __aenter__(self) -> Self:
        charge, ledger = self._charge, self._books.ledger
        reserve = priced(self._reserve(), self._price) if ledger.is_active else Usage()
        self._ticket = ledger.reserve(charge.namespace, charge.session_id, self._model, reserve)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        usage, is_estimated = self._what_was_used(error)
        usage = priced(usage, self._price)
        self._ticket.settle(usage)
        if error is None or isinstance(error, ProviderFailure):
            await self._books.book(self._charge, self._model, usage, is_estimated=is_estimated)
        else:
            self._books.note(self._charge, self._model, usage)

    def _what_was_used(self, error: BaseException | None) -> tuple[Usage, bool]:
        told = self._usage
        if isinstance(error, ProviderFailure):
            told = told or error.usage
            if told is None and error.failure_class == FailureClass.FAILURE_CLASS_NOT_SENT:
                return Usage(), True
        if told is not None and (told.input_tokens or told.output_tokens):
            return told, False
        return Usage(input_tokens=self._reserve().input_tokens), True
