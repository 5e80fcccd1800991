"""Who is charged for what: the budgets of sessions and namespaces, kept true from the intent of a call to its end.

The truth is stored: rows of usage, and the open attempts in the logs of runs that have not ended. The ledger adds both
up when it begins and follows every decision from then on, in the same turn of the loop in which it is made, so that no
two calls can be promised the same tokens. A decision that is not committed is taken back. Calls without a run hold a
reservation here alone; it dies with the process, as the call does.

    reserve (intent) → settle (end, once) → keep (committed)

Above: drivers, the passthrough, the services. Below: the store's sums.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from behest.v1.context_event_pb2 import ContextCompactionRequested
from behest.v1.model_event_pb2 import ModelCompleted, ModelFailed, ModelRequested, ModelSuperseded
from behest.v1.session_pb2 import Session
from behest.v1.usage_pb2 import Usage
from behestd.core.limits import Excess
from behestd.core.run import Payload
from behestd.core.signals import Given, Signal
from behestd.core.state import Run
from behestd.errors import BehestError, Exhausted, WrongState
from behestd.log.spending import ENDS, charged_session
from behestd.log.store import SESSION_KIND, Store
from behestd.log.usage import Sums, UsageQuery
from behestd.runtime.budget_account import NOTHING, PRICE_UNKNOWN, Account, Amount, Rule, amount_of
from behestd.runtime.clock import Clock
from behestd.runtime.kinds import decide

SESSIONS = 10_000
"""Sessions whose sums are remembered while nothing of them goes on."""
INTENTS = frozenset({ModelRequested, ContextCompactionRequested})
"""The beginnings of attempts, which tell what is set aside."""
_OF_STEPS = frozenset({ModelRequested, ModelCompleted, ModelFailed, ModelSuperseded})

Key = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Rules:
    """The operator's budgets of namespaces. One that is named has its own alone."""

    default: Rule | None = None
    namespaces: Mapping[str, Rule] = field(default_factory=dict)

    def of(self, namespace: str) -> Rule | None:
        """The budget of a namespace."""
        return self.namespaces.get(namespace, self.default)

    @property
    def has_any(self) -> bool:
        """Whether there is any."""
        return self.default is not None or bool(self.namespaces)


@dataclass(slots=True)
class _Holding:
    """What one run holds of the accounts that it is charged to; `pending` is settled and not committed yet."""

    accounts: tuple[Account, ...]
    held: Mapping[int, Amount] = field(default_factory=dict)
    """What is set aside for each call that goes on, by `_call_of`. Replaced as a whole, never changed."""
    kept: Mapping[int, Amount] = field(default_factory=dict)
    """What was held at the last commit."""
    pending: Amount = NOTHING

    @property
    def reserved(self) -> Amount:
        """What is set aside in all."""
        return _sum(self.held)

    def excess(self, payloads: Sequence[Payload]) -> Excess | None:
        """The first limit that a call among the payloads would pass, with what ends among them."""
        used, aside, held = NOTHING, NOTHING, dict(self.held)  # What it holds already is in the accounts.
        for payload in payloads:
            if type(payload) in ENDS:
                used, aside = used.plus(amount_of(payload.usage)), aside.minus(held.pop(_call_of(payload), NOTHING))
            elif type(payload) in INTENTS:
                for account in self.accounts:
                    excess = account.excess(used, aside, payload.reserve)
                    if excess is not None:
                        return excess
                held[_call_of(payload)] = amount = amount_of(payload.reserve)
                aside = aside.plus(amount)
        return None

    def follow(self, payload: Payload) -> None:
        """Set aside what a call may need that begins, and settle one that ends."""
        if type(payload) in INTENTS:
            self.change(NOTHING, {**self.held, _call_of(payload): amount_of(payload.reserve)})
        elif type(payload) in ENDS:
            ended = _call_of(payload)
            self.change(amount_of(payload.usage), {call: held for call, held in self.held.items() if call != ended})

    def change(self, used: Amount, held: Mapping[int, Amount]) -> None:
        """Charge the accounts with what was used, and with what is set aside from here on."""
        more = _sum(held).minus(self.reserved)
        for account in self.accounts:
            account.used = account.used.plus(used)
            account.reserved = account.reserved.plus(more)
        self.pending = self.pending.plus(used)
        self.held = held

    def join(self, accounts: tuple[Account, ...]) -> None:
        """Charge these accounts too from here on, those that are new with what is held already."""
        for account in accounts:
            if not any(account is other for other in self.accounts):
                account.used = account.used.plus(self.pending)
                account.reserved = account.reserved.plus(self.reserved)
                self.accounts = (*self.accounts, account)


def _sum(held: Mapping[int, Amount]) -> Amount:
    total = NOTHING
    for amount in held.values():
        total = total.plus(amount)
    return total


def _call_of(payload: Payload) -> int:
    """The number of a call among those of its run that go on: the step of a model call, 0 for a summary."""
    return payload.step if type(payload) in _OF_STEPS else 0


def refused(excess: Excess, model: str) -> BehestError:
    """The error for a call without a run that a budget refuses."""
    if excess.reason == PRICE_UNKNOWN:
        text = f"{excess.name} of the {excess.whose} is set and the price of {model} is not known"
        return WrongState(PRICE_UNKNOWN, text, model=model)
    return Exhausted(
        excess.reason,
        excess.told,
        budget=excess.name,
        limit=excess.limit,
        used=excess.reached,
        reserved=excess.reserved,
    )


class Ledger:
    """The accounts of all budgets. Without budgets there is nothing in it and nothing to do."""

    def __init__(self, clock: Clock, rules: Rules | None = None) -> None:
        self._clock = clock
        self.rules = rules or Rules()
        self._namespaces: dict[str, Account] = {}
        self._sessions: OrderedDict[Key, Account] = OrderedDict()
        self._holdings: dict[Key, _Holding] = {}
        self.is_active = self.rules.has_any
        """Whether anything is charged to anybody."""

    def set(self, rules: Rules, runs: Iterable[Run]) -> frozenset[str] | None:
        """Put other budgets in force. `runs` are those that go on.

        Gives the namespaces whose accounts are right; those of all others lack what was used until now, which
        `budget_start.add_earlier` adds. None: no account lacks anything.
        """
        if rules == self.rules:
            return None
        before, self.rules = self.rules, rules
        self.is_active = rules.has_any or bool(self._sessions)
        for namespace, account in list(self._namespaces.items()):
            rule = rules.of(namespace)
            if rule is not None and rule.period == account.rule.period:
                account.rule = rule
                continue
            del self._namespaces[namespace]
            for holding in self._holdings.values():
                holding.accounts = tuple(other for other in holding.accounts if other is not account)
        right = frozenset(self._namespaces)
        for run in runs:
            self.enter(run)
        kept, new = before.default, rules.default
        is_as_wide = new is None or (kept is not None and kept.period == new.period)
        return None if is_as_wide and rules.namespaces.keys() <= right else right

    # --- decisions about runs ---

    def decide(self, run: Run, given: Given, signal: Signal) -> tuple[list[Payload], Run]:
        """Decide as the core does, within the budgets, and charge what is decided. Raises as the core does.

        A decision that a budget does not allow is taken again with that in mind. What is charged counts from here on,
        until `keep` makes it stay or `undo` takes it back.
        """
        holding = self._holding(run) if self.is_active else None
        if holding is None:
            return decide(run, given, signal)
        payloads, after = self._within(holding, run, given, signal)
        for payload in payloads:
            holding.follow(payload)
        return payloads, after

    def plan(self, run: Run, given: Given, signal: Signal) -> tuple[list[Payload], Run]:
        """Decide within the budgets about a run that is new. It is charged when it enters, in the same turn."""
        if not self.is_active:
            return decide(run, given, signal)
        accounts = self._accounts(run.created.namespace, charged_session(run))
        return self._within(_Holding(accounts), run, given, signal)

    def _within(self, holding: _Holding, run: Run, given: Given, signal: Signal) -> tuple[list[Payload], Run]:
        payloads, after = decide(run, given, signal)
        refusal = holding.excess(payloads)
        if refusal is not None:
            payloads, after = decide(run, replace(given, refusal=refusal), signal)
        return payloads, after

    def keep(self, run: Run) -> None:
        """Take note that what was decided about a run is committed."""
        if not self._holdings:
            return
        key = (run.created.namespace, run.id)
        holding = self._holdings.get(key)
        if holding is None:
            return
        holding.kept, holding.pending = holding.held, NOTHING
        if not holding.held:
            del self._holdings[key]

    def undo(self, run: Run) -> None:
        """Take back what was decided about a run since the last commit."""
        holding = self._holdings.get((run.created.namespace, run.id))
        if holding is not None:
            holding.change(NOTHING.minus(holding.pending), holding.kept)

    def enter(self, run: Run) -> None:
        """Take note that a run goes on here: what is set aside for it counts, and its session stays in memory."""
        if not self.is_active:
            return
        account = self._sessions.get((run.created.namespace, charged_session(run)))
        if account is not None:
            account.users.add(run.id)
        holding = self._holding(run)
        if holding is not None:
            holding.join(self._accounts(run.created.namespace, charged_session(run)))

    def leave(self, run: Run) -> None:
        """Take note that a run does not go on here any more."""
        if not self.is_active:
            return
        self.undo(run)
        holding = self._holdings.pop((run.created.namespace, run.id), None)
        if holding is not None:
            holding.change(NOTHING, {})
        account = self._sessions.get((run.created.namespace, charged_session(run)))
        if account is not None:
            account.users.discard(run.id)

    def _holding(self, run: Run) -> _Holding | None:
        """What a run holds, from its open calls where nothing is known of it yet. None: nobody is charged for it."""
        key = (run.created.namespace, run.id)
        accounts = self._accounts(run.created.namespace, charged_session(run))
        holding = self._holdings.get(key)
        if holding is None:
            if not accounts:
                return None
            holding = self._holdings[key] = _Holding(accounts)
            held = {step: amount_of(attempt.reserve) for step, attempt in run.attempts}
            if run.compaction.open is not None:
                held[0] = amount_of(run.compaction.open.reserve)
            holding.change(NOTHING, held)
            holding.kept = held
        return holding

    # --- calls without a run ---

    def reserve(self, namespace: str, session_id: str, model: str, usage: Usage) -> Ticket:
        """Set aside what a call without a run may need. Raises Exhausted, WrongState for a price that is unknown."""
        accounts = self._accounts(namespace, session_id) if self.is_active else ()
        for account in accounts:
            excess = account.excess(NOTHING, NOTHING, usage)
            if excess is not None:
                raise refused(excess, model)
        return Ticket(accounts, amount_of(usage))

    # --- accounts ---

    def _accounts(self, namespace: str, session_id: str) -> tuple[Account, ...]:
        """Those that are charged for what happens in a session, the nearest first."""
        found = (self._sessions.get((namespace, session_id)), self.account(namespace))
        accounts = tuple(account for account in found if account is not None)
        now_ns = self._clock.now_ns()
        for account in accounts:
            account.turn(now_ns)
        return accounts

    def account(self, namespace: str) -> Account | None:
        """The account of a namespace. None: it has no budget."""
        account = self._namespaces.get(namespace)
        if account is None and (rule := self.rules.of(namespace)) is not None:
            account = Account(rule, "namespace", "RUNTIME_BUDGET", self._clock.now_ns())
            self._namespaces[namespace] = account
        return account

    async def session(self, store: Store, namespace: str, session: Session) -> Account | None:
        """The account of a session, added up if it is not in memory. None: it has no budget of its own."""
        key = (namespace, session.id)
        if not session.HasField("budget"):
            return None
        if key not in self._sessions:
            total = (await store.usage(UsageQuery(namespace, session_id=session.id))).total
            if key not in self._sessions:
                rule, now_ns = Rule(session.budget), self._clock.now_ns()
                self._sessions[key] = Account(rule, "session", "SESSION_BUDGET", now_ns, used=used_of(total))
                self.is_active = True
                self._evict()
        self._sessions.move_to_end(key)
        return self._sessions[key]

    async def open(self, store: Store, namespace: str, session_id: str) -> None:
        """Have a session's account in memory, if it has a budget."""
        if (namespace, session_id) in self._sessions:
            return
        record = await store.record(namespace, SESSION_KIND, session_id, 0)
        if record is not None:
            await self.session(store, namespace, Session.FromString(record.body))

    async def change(self, store: Store, namespace: str, session: Session, runs: Iterable[Run]) -> None:
        """Take note that a session has another budget, or none any more. `runs` are those that go on."""
        account = self._sessions.get((namespace, session.id))
        if account is not None and session.HasField("budget"):
            account.rule = Rule(session.budget)
        elif account is not None:
            self.forget(namespace, session.id)
        elif await self.session(store, namespace, session) is not None:
            for run in runs:
                if (run.created.namespace, charged_session(run)) == (namespace, session.id):
                    self.enter(run)

    def forget(self, namespace: str, session_id: str) -> None:
        """Drop the account of a session that is deleted or has no budget any more."""
        account = self._sessions.pop((namespace, session_id), None)
        if account is not None:
            for holding in self._holdings.values():
                holding.accounts = tuple(other for other in holding.accounts if other is not account)

    def _evict(self) -> None:
        """Forget the session that was longest of no use, when there are too many."""
        if len(self._sessions) > SESSIONS:
            idle = (key for key, account in self._sessions.items() if not account.users and account.reserved == NOTHING)
            if (oldest := next(idle, None)) is not None:
                del self._sessions[oldest]


class Ticket:
    """What is set aside for one call without a run, until it is settled."""

    __slots__ = ("_accounts", "_amount", "_is_open")

    def __init__(self, accounts: tuple[Account, ...], amount: Amount) -> None:
        self._accounts = accounts
        self._amount = amount
        self._is_open = True
        for account in accounts:
            account.reserved = account.reserved.plus(amount)

    def settle(self, usage: Usage) -> bool:
        """Charge what the call used in the place of what was set aside. False: that was done before."""
        if not self._is_open:
            return False
        self._is_open = False
        for account in self._accounts:
            account.reserved = account.reserved.minus(self._amount)
            account.used = account.used.plus(amount_of(usage))
        return True


def used_of(sums: Sums) -> Amount:
    """What stored usage comes to."""
    return Amount(sums.input_tokens + sums.output_tokens, sums.cost_micro_usd or 0, sums.calls)
