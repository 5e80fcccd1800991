"""Which endpoint to try next, when, or not at all: the only retry layer for model calls.

A run calls it from `decide`, so that every attempt is journaled; the ChatService passthrough calls it in its own loop.
What is known of the endpoints (`Health`) comes from outcomes of all calls (`circuit`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import field

from behest.v1.model_event_pb2 import FailureClass
from behestd.core.state import Failure
from behestd.core.times import SECOND
from behestd.values import dataclass

_RETRIED_HERE = frozenset(
    {
        FailureClass.FAILURE_CLASS_NOT_SENT,
        FailureClass.FAILURE_CLASS_THROTTLED,
        FailureClass.FAILURE_CLASS_TRANSIENT,
        FailureClass.FAILURE_CLASS_AMBIGUOUS,
        FailureClass.FAILURE_CLASS_MALFORMED,
    }
)


@dataclass(frozen=True, slots=True)
class RoutePolicy:
    """How attempts are spread. Delays are full jitter: random(0, min(cap, base * 2^n)) seconds."""

    endpoints: tuple[str, ...]
    attempts_per_endpoint: int = 3
    attempts_per_step: int = 5
    base_seconds: float = 0.5
    cap_seconds: float = 30.0


@dataclass(frozen=True, slots=True)
class Try:
    """Call this endpoint now."""

    endpoint: str


@dataclass(frozen=True, slots=True)
class WaitUntil:
    """Ask again at this time. Barred: every endpoint is left alone for now, for what happened to other calls."""

    due_ns: int
    is_barred: bool = False


@dataclass(frozen=True, slots=True)
class GiveUp:
    """No attempt makes sense; `failure` is the one to report."""

    failure: Failure


Next = Try | WaitUntil | GiveUp


@dataclass(frozen=True, slots=True)
class Health:
    """Endpoints that are left alone, each with the time at which it is used again."""

    open_until_ns: Mapping[str, int] = field(default_factory=dict)
    """Those whose circuit is open."""
    spent_until_ns: Mapping[str, int] = field(default_factory=dict)
    """Those whose budget of retries is spent: only what failed there already stays away."""


def next_attempt(
    policy: RoutePolicy, failures: Sequence[Failure], health: Health, now_ns: int, random: float = 0.0
) -> Next:
    """Decide on the next attempt of a step after its failures so far, oldest first. `random` is in [0, 1).

    Endpoints are used in order: each until its attempts are used up or a failure rules it out, then the next one. An
    endpoint that is left alone is passed over while another can be used; when none can, the wait is spread by chance,
    so that those who wait for one endpoint do not come back together. An attempt is due when the last failure says.
    """
    usable = [endpoint for endpoint in policy.endpoints if _is_usable(policy, failures, endpoint)]
    if not usable or len(failures) >= policy.attempts_per_step:
        return GiveUp(failures[-1])
    free = usable
    if health.open_until_ns or health.spent_until_ns:
        free = [each for each in usable if _barred_until_ns(health, failures, each) <= now_ns]
    if not free:
        until_ns, endpoint = min((_barred_until_ns(health, failures, each), each) for each in usable)
        spread_ns = int(policy.cap_seconds * SECOND)
        if until_ns == health.open_until_ns.get(endpoint):
            spread_ns = min(spread_ns, until_ns - now_ns)
        return WaitUntil(until_ns + int(random * spread_ns), is_barred=True)
    endpoint = free[0]
    due_ns = max((failure.due_ns for failure in failures if failure.endpoint == endpoint), default=0)
    return WaitUntil(due_ns) if due_ns > now_ns else Try(endpoint)


def _barred_until_ns(health: Health, failures: Sequence[Failure], endpoint: str) -> int:
    open_ns = health.open_until_ns.get(endpoint, 0)
    spent_ns = health.spent_until_ns.get(endpoint, 0)
    is_retry = spent_ns > open_ns and any(failure.endpoint == endpoint for failure in failures)
    return spent_ns if is_retry else open_ns


def _is_usable(policy: RoutePolicy, failures: Sequence[Failure], endpoint: str) -> bool:
    here = [failure for failure in failures if failure.endpoint == endpoint]
    if len(here) >= policy.attempts_per_endpoint:
        return False
    return all(failure.failure_class in _RETRIED_HERE for failure in here)


def retry_due_ns(
    policy: RoutePolicy, failure_class: int, tries: int, retry_after_ns: int, now: tuple[int, float]
) -> int:
    """When an endpoint may be tried again after its `tries`-th failure (from 1); 0 at once.

    `retry_after_ns` is the delay that the other side asked for, `now` the time and a random number in [0, 1).
    """
    now_ns, random = now
    if failure_class == FailureClass.FAILURE_CLASS_MALFORMED or failure_class not in _RETRIED_HERE:
        return 0
    ceiling = min(policy.cap_seconds, policy.base_seconds * 2.0 ** (tries - 1))
    return now_ns + max(int(random * ceiling * SECOND), retry_after_ns)
