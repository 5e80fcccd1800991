"""Whatever runs and calls do in whatever order, crashes and full disks among it, the ledger says what is stored."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from behest.v1.model_event_pb2 import FailureClass, ModelRequested
from behest.v1.run_event_pb2 import ClaimReason
from behest.v1.run_state_pb2 import CancelCause, CancelMode
from behest.v1.usage_pb2 import Usage
from behestd.core.run import start
from behestd.core.signals import Cancel, Claim, Given, ModelBroke, ModelEnded, Signal, Start
from behestd.core.state import Run
from behestd.errors import Exhausted
from behestd.log.spending import spent
from behestd.log.usage import Spent
from behestd.runtime.budget_account import NOTHING, Account, Amount, amount_of
from behestd.runtime.budgets import Ledger, Ticket
from behestd.runtime.clock import SystemClock
from tests.core.stage import T0, answer, created, definition
from tests.usage.books import rules

BUDGET = 150
RUNS = 6
CLOCK = SystemClock()
GIVEN = Given(now_ns=T0, random=0.0, replica="rep_1", validate=lambda tool, text: "")


@dataclass
class World:
    """What is stored (runs, rows), what lives in the process (the ledger, direct calls), and what was let in."""

    ledger: Ledger = field(default_factory=lambda: Ledger(CLOCK, rules(max_total_tokens=BUDGET)))
    runs: dict[int, Run] = field(default_factory=dict)
    rows: list[Spent] = field(default_factory=list)
    tickets: list[tuple[Ticket, Usage]] = field(default_factory=list)
    over: int = 0
    """By how much calls that ended since the last one was let in passed what was set aside for them."""
    ended: int = 0
    in_flight: int = 0
    """How many calls had ended since then, and how many were in flight then."""

    @property
    def account(self) -> Account:
        account = self.ledger.account("default")
        assert account is not None
        return account

    def open_calls(self) -> list[Usage]:
        """What is set aside for calls in flight, as it is stored, and for those without a run."""
        stored = [run.step.open.reserve for run in self.runs.values() if run.step.open is not None and not run.is_ended]
        return stored + [usage for _, usage in self.tickets]

    def begin(self, number: int) -> None:
        """Create a run and start it."""
        if number in self.runs:
            return
        run = start(f"run_{number}", created(), definition(), T0)
        payloads = []
        for signal in (Claim(ClaimReason.CLAIM_REASON_CREATED), Start(1)):
            decided, run = self.ledger.plan(run, GIVEN, signal)
            payloads += decided
        self.ledger.enter(run)
        self.runs[number] = run
        if any(isinstance(payload, ModelRequested) for payload in payloads):
            self.let_in()

    def tell(self, number: int, signal: Signal, *, is_stored: bool) -> None:
        """Have a signal decided, and stored unless the disk is full."""
        before = self.runs.get(number)
        if before is None or before.is_ended:
            return
        was_open = before.step.open
        payloads, after = self.ledger.decide(before, GIVEN, signal)
        if not is_stored:
            self.ledger.undo(before)
            return
        rows = spent(before, after, payloads, T0)
        self.rows += rows
        self.runs[number] = after
        self.ledger.keep(after)
        if after.is_ended:
            self.ledger.leave(after)
        if was_open is not None and rows:
            self.has_ended(was_open.reserve, rows[0].input_tokens + rows[0].output_tokens)
        if any(isinstance(payload, ModelRequested) for payload in payloads):
            self.let_in()

    def call(self, tokens: int) -> None:
        """Make a call without a run."""
        usage = Usage(input_tokens=tokens, attempts=1)
        try:
            self.tickets.append((self.ledger.reserve("default", "", "p/m", usage), usage))
        except Exhausted:
            return
        self.let_in()

    def answer(self, tokens: int) -> None:
        """End the oldest call without a run, twice, which counts once."""
        if not self.tickets:
            return
        ticket, reserve = self.tickets.pop(0)
        usage = Usage(input_tokens=tokens, attempts=1)
        assert ticket.settle(usage)
        assert not ticket.settle(usage)
        self.rows.append(Spent("default", T0, "", "", "", "p/m", 2, tokens, 0, 0, 0, 0, None, False))
        self.has_ended(reserve, tokens)

    def let_in(self) -> None:
        """Take note that a call was let in: then nothing is over."""
        used = self.account.used.tokens + self.account.reserved.tokens
        assert used <= BUDGET, "no call is let in that may pass the budget"
        self.over, self.ended, self.in_flight = 0, 0, len(self.open_calls())

    def has_ended(self, reserve: Usage, tokens: int) -> None:
        """Take note of what a call really used."""
        self.ended += 1
        self.over += max(tokens - reserve.input_tokens - reserve.output_tokens, 0)

    def crash(self) -> None:
        """Lose the process, and begin again with what is stored."""
        self.tickets.clear()
        self.ledger = Ledger(CLOCK, rules(max_total_tokens=BUDGET))
        self.account.used = self.stored()
        for run in self.runs.values():
            if not run.is_ended:
                self.ledger.enter(run)

    def stored(self) -> Amount:
        """What the rows come to."""
        tokens = sum(row.input_tokens + row.output_tokens for row in self.rows)
        return Amount(tokens, sum(row.cost_micro_usd or 0 for row in self.rows), len(self.rows))

    def check(self) -> None:
        """Hold the ledger against what is stored."""
        account, aside = self.account, NOTHING
        for usage in self.open_calls():
            aside = aside.plus(amount_of(usage))
        assert account.used == self.stored(), "settled once, each of them"
        assert account.reserved == aside, "neither lost nor left behind"
        assert account.used.tokens + account.reserved.tokens <= BUDGET + self.over
        assert self.ended <= self.in_flight, "over by one call in flight each"


numbers = st.integers(0, RUNS - 1)
tokens = st.integers(0, 120)
is_stored = st.sampled_from((True, True, True, False))
steps = st.lists(
    st.one_of(
        st.tuples(st.just("begin"), numbers),
        st.tuples(st.just("begin"), numbers),
        st.tuples(st.just("end"), numbers, tokens, st.booleans(), is_stored),
        st.tuples(st.just("break"), numbers, st.none() | tokens, is_stored),
        st.tuples(st.just("cancel"), numbers, is_stored),
        st.tuples(st.just("claim"), numbers, is_stored),
        st.tuples(st.just("call"), tokens),
        st.tuples(st.just("call"), tokens),
        st.tuples(st.just("answer"), tokens),
        st.tuples(st.just("crash")),
    ),
    min_size=20,
    max_size=80,
)


def play(world: World, step: tuple) -> None:  # type: ignore[type-arg]
    """Do one thing."""
    match step:
        case ("begin", number):
            world.begin(number)
        case ("end", number, used, is_cut, stored):
            run = world.runs.get(number)
            at = (run.step.number, run.step.attempts) if run is not None else (0, 0)
            end = answer("so", finish=2 if is_cut else 0, usage=Usage(input_tokens=1, output_tokens=used))
            world.tell(number, ModelEnded(*at, end), is_stored=stored)
        case ("break", number, used, stored):
            run = world.runs.get(number)
            at = (run.step.number, run.step.attempts) if run is not None else (0, 0)
            usage = None if used is None else Usage(input_tokens=used)
            failure = (FailureClass.FAILURE_CLASS_MALFORMED, "PROVIDER_MALFORMED_OUTPUT", "no")
            world.tell(number, ModelBroke(*at, *failure, usage=usage), is_stored=stored)
        case ("cancel", number, stored):
            cancel = Cancel(CancelMode.CANCEL_MODE_GRACEFUL, CancelCause.CANCEL_CAUSE_CLIENT)
            world.tell(number, cancel, is_stored=stored)
        case ("claim", number, stored):
            world.tell(number, Claim(ClaimReason.CLAIM_REASON_RELEASED), is_stored=stored)
        case ("call", used):
            world.call(used)
        case ("answer", used):
            world.answer(used)
        case ("crash",):
            world.crash()


@settings(max_examples=100, deadline=None)
@given(steps)
def test_any_interleaving_is_settled_once_and_over_by_one_call_in_flight_each(steps: list) -> None:  # type: ignore[type-arg]  # N10
    world = World()
    for step in steps:
        play(world, step)
        world.check()
