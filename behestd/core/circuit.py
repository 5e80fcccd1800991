"""What outcomes make of an endpoint: its circuit breaker and its budget of retries. Pure. Above: `runtime/health.py`.

A circuit opens after so many failures in a row. While it is open the endpoint is left alone; after a cool-down one call
at a time is let through as a probe. Its success closes the circuit, its failure opens it for twice as long. Retries
have a budget: each takes one out, each success and each second puts a part of one back, so that many runs together do
not multiply what they ask of an endpoint that fails.

Only failures that tell of the endpoint count: it could not be reached, broke, or fell silent. One that answers with a
refusal (of the request, of the key, for its quota, for going too fast) or with nonsense is up.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from behest.v1.model_event_pb2 import FailureClass
from behestd.core.times import SECOND

COUNTED = frozenset(
    {
        FailureClass.FAILURE_CLASS_NOT_SENT,
        FailureClass.FAILURE_CLASS_TRANSIENT,
        FailureClass.FAILURE_CLASS_AMBIGUOUS,
    }
)
"""Classes of failures that open a circuit."""


@dataclass(frozen=True, slots=True)
class CircuitPolicy:
    """When an endpoint is left alone, and how often it is tried again."""

    failures: int = 10
    """Failures in a row that open the circuit. 0: none do."""
    cool_down_seconds: float = 30.0
    """How long it stays open at first; twice as long after each probe that fails."""
    longest_cool_down_seconds: float = 300.0
    retries: float = 50.0
    """Retries that the full budget holds, which is what there is at the start. 0: there is no budget."""
    retries_per_success: float = 0.1
    """What a success puts back."""
    retries_per_second: float = 0.5
    """What time puts back."""


@dataclass(frozen=True, slots=True)
class Condition:
    """What is known of one endpoint. As built, it is well."""

    failures: int = 0
    """Failures in a row that count."""
    reason: str = ""
    """Of the last one."""
    opened: int = 0
    """How often the circuit opened since it was closed. 0: it is closed."""
    open_until_ns: int = 0
    """When the next probe is let through."""
    spent: float = 0.0
    """Retries taken out of the budget at `spent_ns` that nothing had put back by then."""
    spent_ns: int = 0


WELL = Condition()


def is_barred(condition: Condition, now_ns: int) -> bool:
    """Whether nothing may be sent: the circuit is open, and no probe is due."""
    return condition.opened > 0 and now_ns < condition.open_until_ns


def begun(condition: Condition, policy: CircuitPolicy, now_ns: int, *, is_retry: bool) -> Condition:
    """Let a call through: a retry is paid for, and a probe keeps others away for as long as a cool-down."""
    if is_retry and policy.retries > 0:
        condition = replace(condition, spent=_spent(condition, policy, now_ns) + 1, spent_ns=now_ns)
    if condition.opened:
        condition = replace(condition, open_until_ns=now_ns + _cool_down_ns(policy, condition.opened))
    return condition


def succeeded(condition: Condition, policy: CircuitPolicy, now_ns: int) -> Condition:
    """Take note of a success. One that closes the circuit fills the budget, since what failed before was an outage."""
    spent = _spent(condition, policy, now_ns) - policy.retries_per_success
    if condition.opened or spent <= 0:
        return WELL
    return Condition(spent=spent, spent_ns=now_ns)


def failed(
    condition: Condition, policy: CircuitPolicy, failure: tuple[int, str], now_ns: int, *, is_probe: bool
) -> Condition:
    """Take note of a failure, given as class and reason. What began before the circuit opened does not prolong it."""
    failure_class, reason = failure
    if failure_class not in COUNTED:
        return dropped(condition, now_ns, is_probe=is_probe)
    failures, opened, open_until_ns = condition.failures + 1, condition.opened, condition.open_until_ns
    if is_probe or (not opened and 0 < policy.failures <= failures):
        opened += 1
        open_until_ns = now_ns + _cool_down_ns(policy, opened)
    return replace(condition, failures=failures, reason=reason, opened=opened, open_until_ns=open_until_ns)


def dropped(condition: Condition, now_ns: int, *, is_probe: bool) -> Condition:
    """Take note of a call that says nothing of its endpoint, such as one that was cancelled: the next may probe."""
    return replace(condition, open_until_ns=now_ns) if is_probe and condition.opened else condition


def spent_until_ns(condition: Condition, policy: CircuitPolicy) -> int:
    """When the budget holds a retry again; a time that has passed when it does."""
    missing = condition.spent - (policy.retries - 1)
    if policy.retries <= 0 or missing <= 0:
        return 0
    return condition.spent_ns + int(missing / policy.retries_per_second * SECOND)


def _spent(condition: Condition, policy: CircuitPolicy, now_ns: int) -> float:
    elapsed_seconds = (now_ns - condition.spent_ns) / SECOND
    return max(condition.spent - elapsed_seconds * policy.retries_per_second, 0.0)


def _cool_down_ns(policy: CircuitPolicy, opened: int) -> int:
    doubled = policy.cool_down_seconds * 2.0 ** min(opened - 1, 32)
    return int(min(doubled, max(policy.longest_cool_down_seconds, policy.cool_down_seconds)) * SECOND)
