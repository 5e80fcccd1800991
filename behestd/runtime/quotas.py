"""What a principal and a namespace may use: calls and runs a minute, and streams, watches and runs at once.

Above: the edge's admission, which enters and leaves calls, and `intake`, which asks for runs. Below: `model_limits` for
the buckets. Everything is counted in memory and anew after a restart, where the runs that are taken up again count.
Principals come from credentials, so there are as many accounts as the operator has given out; where those of an issuer
of tokens are more, accounts that hold nothing and have nothing left to forget are dropped first.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from behestd.errors import Exhausted
from behestd.runtime.clock import Clock, SystemClock
from behestd.runtime.model_limits import Bucket

MOST_ACCOUNTS = 20_000
"""Accounts from which on those that are idle are dropped. Those that are not are bounded by calls and runs at once."""
UNBOUNDED = 2**31 - 1
_SOON_SECONDS = 1.0
"""When to try again where another call or run has to end first."""


class QuotaExceeded(Exhausted):
    """Raised when a principal or a namespace is over its rate or quota; `quota` is as `principal.watches`."""

    def __init__(self, quota: str, limit: int, retry_seconds: float | None = _SOON_SECONDS) -> None:
        text = f"the quota {quota} of {limit} is used up"
        super().__init__("AUTH_QUOTA_EXCEEDED", text, quota=quota, limit=limit, retry_seconds=retry_seconds)


@dataclass(frozen=True, slots=True)
class Quota:
    """What one principal or one namespace may use; 0 is no limit."""

    requests_per_minute: int = 0
    """Calls, those of class CONTROL apart."""
    runs_per_minute: int = 0
    """Runs created; child runs do not count."""
    streams: int = 0
    """Calls at once that stream in either direction, watches among them."""
    watches: int = 0
    runs: int = 0
    """Runs that have not ended: working, waiting and queued ones. Child runs count, and are not refused."""
    active_runs: int = 0
    """Of a namespace: runs that work at once. More wait."""
    sessions: int = 0
    """Sessions, those of child runs apart."""
    artifact_bytes: int = 0
    """Of a namespace: bytes of all artifacts."""


NONE = Quota()


@dataclass(frozen=True, slots=True)
class Rules:
    """The quotas of every principal and namespace, and those of single ones instead."""

    principal: Quota = NONE
    namespace: Quota = NONE
    principals: Mapping[str, Quota] = field(default_factory=dict)
    namespaces: Mapping[str, Quota] = field(default_factory=dict)
    active_share: float = 1.0
    """Part of the runs that may work at once which one namespace may have."""
    queue_share: float = 1.0
    """Part of the runs that may be there at all which one namespace may have."""

    @property
    def has_rates(self) -> bool:
        """Whether anybody's calls are counted by the minute."""
        quotas = (self.principal, self.namespace, *self.principals.values(), *self.namespaces.values())
        return any(quota.requests_per_minute for quota in quotas)

    def of_principal(self, name: str) -> Quota:
        """The quota of a principal."""
        return self.principals.get(name, self.principal)

    def of_namespace(self, name: str) -> Quota:
        """The quota of a namespace."""
        return self.namespaces.get(name, self.namespace)


class Account:
    """What one principal, or one namespace, uses."""

    __slots__ = ("buckets", "is_bounded", "kind", "quota", "runs", "streams", "watches")

    def __init__(self, kind: str, quota: Quota, now_ns: int) -> None:
        self.kind = kind
        self.streams = self.watches = self.runs = 0
        self.set(quota, now_ns)

    def set(self, quota: Quota, now_ns: int) -> None:
        """Put a quota in force. Rates begin anew."""
        self.quota = quota
        self.is_bounded = quota != NONE
        """Whether there is anything to refuse."""
        rates = (quota.requests_per_minute, quota.runs_per_minute)
        self.buckets = tuple(Bucket(rate, now_ns) if rate else None for rate in rates)

    def check(self, name: str, used: int) -> None:
        """Refuse one more of what is counted. Raises QuotaExceeded."""
        limit = getattr(self.quota, name)
        if 0 < limit <= used:
            raise QuotaExceeded(f"{self.kind}.{name}", limit)

    def check_rate(self, which: int, now_ns: int) -> None:
        """Refuse what comes too soon. Raises QuotaExceeded with the time after which it does not."""
        bucket = self.buckets[which]
        if bucket is not None and (due_seconds := bucket.due_seconds(1, now_ns)) > 0:
            name = _RATES[which]
            raise QuotaExceeded(f"{self.kind}.{name}", getattr(self.quota, name), due_seconds)

    def take(self, which: int, now_ns: int) -> None:
        """Let one through."""
        bucket = self.buckets[which]
        if bucket is not None:
            bucket.take(1, now_ns)

    def is_idle(self, now_ns: int) -> bool:
        """Whether forgetting it changes nothing."""
        if self.streams or self.watches or self.runs:
            return False
        return all(bucket is None or bucket.is_full(now_ns) for bucket in self.buckets)


_RATES = ("requests_per_minute", "runs_per_minute")
_REQUESTS, _RUNS = range(2)
Key = tuple[str, str]
"""(namespace, principal), an empty principal being the namespace's own account."""


class Quotas:
    """The accounts of all principals and namespaces. Used on the loop alone; nothing here waits."""

    def __init__(self, rules: Rules | None = None, clock: Clock | None = None) -> None:
        self.rules = rules or Rules()
        self.has_rates = self.rules.has_rates
        """Whether every call counts, and not only those that stream."""
        self.refused = 0
        """Calls and runs refused since the start."""
        self.sessions: dict[Key, tuple[int, int]] = {}
        """When the sessions of a principal with a quota were counted, and how many they are since."""
        self._clock = clock or SystemClock()
        self._accounts: dict[Key, Account] = {}
        self._pairs: dict[Key, tuple[Account, ...]] = {}
        """The accounts of a principal, its own and its namespace's; of an empty principal the namespace's alone."""
        self._swept = 0

    def set(self, rules: Rules) -> None:
        """Put other quotas in force for what comes from now on. What is there stays, even where it is too much."""
        self.rules, self.has_rates = rules, rules.has_rates
        now_ns = self._clock.now_ns()
        for (namespace, principal), account in self._accounts.items():
            account.set(self._quota(namespace, principal), now_ns)

    def _quota(self, namespace: str, principal: str) -> Quota:
        return self.rules.of_principal(principal) if principal else self.rules.of_namespace(namespace)

    def _account(self, key: Key) -> Account:
        account = self._accounts.get(key)
        if account is None:
            kind = "principal" if key[1] else "namespace"
            account = self._accounts[key] = Account(kind, self._quota(*key), self._clock.now_ns())
        return account

    def _sweep(self) -> None:
        now_ns = self._clock.now_ns()
        self._accounts = {key: account for key, account in self._accounts.items() if not account.is_idle(now_ns)}
        self._pairs.clear()
        self._swept = len(self._accounts)

    def _both(self, namespace: str, principal: str) -> tuple[Account, ...]:
        key = (namespace, principal)
        pair = self._pairs.get(key)
        if pair is None:
            if len(self._accounts) >= max(MOST_ACCOUNTS, 2 * self._swept):
                self._sweep()
            own = (self._account(key),) if principal else ()
            pair = self._pairs[key] = (*own, self._account((namespace, "")))
        return pair

    # --- calls ---

    def enter_call(self, namespace: str, principal: str, kinds: Iterable[str]) -> None:
        """Count a call in, which is of kinds ("streams", "watches"), or count nothing. Raises QuotaExceeded."""
        accounts = self._both(namespace, principal)
        bounded = [account for account in accounts if account.is_bounded]
        if bounded:
            now_ns = self._clock.now_ns()
            try:
                for account in bounded:
                    for kind in kinds:
                        account.check(kind, getattr(account, kind))
                    account.check_rate(_REQUESTS, now_ns)
            except QuotaExceeded:
                self.refused += 1
                raise
            for account in bounded:
                account.take(_REQUESTS, now_ns)
        for account in accounts:
            for kind in kinds:
                setattr(account, kind, getattr(account, kind) + 1)

    def leave_call(self, namespace: str, principal: str, kinds: Iterable[str]) -> None:
        """Count a call out."""
        for account in self._both(namespace, principal) if kinds else ():
            for kind in kinds:
                setattr(account, kind, getattr(account, kind) - 1)

    # --- runs ---

    def check_runs(self, namespace: str, principal: str) -> None:
        """Refuse a run beyond those that may be there. Raises QuotaExceeded."""
        try:
            for account in self._both(namespace, principal):
                if account.is_bounded:
                    account.check("runs", account.runs)
        except QuotaExceeded:
            self.refused += 1
            raise

    def take_run(self, namespace: str, principal: str) -> None:
        """Count a run that is to be created against the rates. Raises QuotaExceeded, and counts nothing then."""
        accounts = [account for account in self._both(namespace, principal) if account.is_bounded]
        if not accounts:
            return
        now_ns = self._clock.now_ns()
        try:
            for account in accounts:
                account.check_rate(_RUNS, now_ns)
        except QuotaExceeded:
            self.refused += 1
            raise
        for account in accounts:
            account.take(_RUNS, now_ns)

    def run_began(self, namespace: str, principal: str) -> None:
        """Count a run in, whatever the quotas are."""
        for account in self._both(namespace, principal):
            account.runs += 1

    def run_ended(self, namespace: str, principal: str) -> None:
        """Count a run out."""
        for account in self._both(namespace, principal):
            account.runs -= 1

    def runs_of(self, namespace: str) -> int:
        """How many runs of a namespace have not ended."""
        account = self._accounts.get((namespace, ""))
        return account.runs if account is not None else 0

    def most_watches(self, namespace: str, principal: str) -> int:
        """How many watches a principal may have at once; as many as can be counted where nothing bounds them."""
        quotas = self.rules.of_principal(principal), self.rules.of_namespace(namespace)
        return min((quota.watches for quota in quotas if quota.watches), default=UNBOUNDED)

    def bounds_sessions(self, namespace: str, principal: str) -> bool:
        """Whether a namespace or a principal of it may have so many sessions only."""
        return bool(self.rules.of_namespace(namespace).sessions or self.rules.of_principal(principal).sessions)

    def share_of(self, total: int) -> int:
        """How many of so many places for work one namespace may have: at least one."""
        return max(1, int(total * self.rules.active_share))

    def active_of(self, namespace: str, capacity: int) -> int:
        """How many of so many runs at once may be of a namespace: at least one."""
        limit = self.share_of(capacity)
        own = self.rules.of_namespace(namespace).active_runs
        return min(limit, own) if own else limit

    def __len__(self) -> int:
        """How many accounts there are."""
        return len(self._accounts)
