"""What this daemon knows of the models that it calls: circuits, budgets of retries, and the operator's limits.

Above: who calls models, each attempt inside an `Attempt`, and ModelService, which tells. Below: `core/circuit.py`,
which says what outcomes mean, and `model_limits`. Everything is in memory and of this daemon alone: after a restart all
endpoints count as well. While they are well, nothing is kept of them but the time of the last success.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import TracebackType
from typing import Self

import structlog

from behest.v1.usage_pb2 import Usage
from behestd.core import circuit
from behestd.core.circuit import WELL, CircuitPolicy, Condition
from behestd.core.route import Health
from behestd.core.times import SECOND
from behestd.providers.catalog import parted
from behestd.providers.failure import NOT_SENT, ProviderFailure
from behestd.runtime.clock import Clock
from behestd.runtime.model_limits import Allowance, Gate

logger = structlog.get_logger(__name__)

_ALL_WELL = Health()
_LATEST = 0.2
"""How much the latest answer counts in the average of times."""


class Endpoints:
    """The condition of every endpoint that is called. Used on the loop alone; nothing here waits but an `Attempt`."""

    __slots__ = ("_allowances", "_clock", "_conditions", "_gates", "_health", "_latency", "_policy", "_success_ns")

    def __init__(
        self,
        clock: Clock,
        policy: CircuitPolicy | None = None,
        allowances: Mapping[str, Allowance] | None = None,
    ) -> None:
        self._clock = clock
        self._policy = policy or CircuitPolicy()
        self._allowances = allowances or {}
        self._gates = {endpoint: Gate(allowance, clock) for endpoint, allowance in self._allowances.items()}
        self._conditions: dict[str, Condition] = {}
        self._success_ns: dict[str, int] = {}
        self._latency: dict[str, float] = {}
        self._health: dict[str, Health] = {}

    def set(self, policy: CircuitPolicy, allowances: Mapping[str, Allowance]) -> None:
        """Put another policy and other limits in force. Calls that wait for their turn go by the limits they met."""
        self._policy = policy
        kept = {name: gate for name, gate in self._gates.items() if self._is_same(name, allowances)}
        added = {name: Gate(allowance, self._clock) for name, allowance in allowances.items() if name not in kept}
        self._allowances, self._gates = allowances, {**kept, **added}

    def _is_same(self, endpoint: str, allowances: Mapping[str, Allowance]) -> bool:
        name = endpoint if endpoint in allowances else parted(endpoint)[1]
        before = self._allowances.get(endpoint) or self._allowances.get(name)
        return allowances.get(name) == before

    def health(self, namespace: str) -> Health:
        """What decisions go by: one value until an outcome changes it, the same one whenever all is well.

        Of models of the namespace's own and of everybody's.
        """
        health = self._health
        return health.get(namespace) or health.get("", _ALL_WELL) if health else _ALL_WELL

    def condition(self, endpoint: str) -> Condition:
        """What is known of an endpoint."""
        return self._conditions.get(endpoint, WELL)

    def success_ns(self, endpoint: str) -> int:
        """When a call last succeeded; 0: none did since the start."""
        return self._success_ns.get(endpoint, 0)

    def latency_seconds(self, endpoint: str) -> float:
        """How long answers took of late, on average, the latest counting most; 0: not known."""
        return self._latency.get(endpoint, 0.0)

    def waiting(self, endpoint: str) -> int:
        """How many calls wait for the operator's limits of an endpoint."""
        gate = self._gates.get(endpoint)
        return gate.waiting if gate is not None else 0

    def took(self, endpoint: str, seconds: float) -> None:
        """Take note of how long a whole answer took."""
        before = self._latency.get(endpoint, seconds)
        self._latency[endpoint] = before + (seconds - before) * _LATEST

    def attempt(self, endpoint: str, deadline_ns: int, *, is_retry: bool, tokens: int, namespace: str = "") -> Attempt:
        """Make one attempt at an endpoint, to be entered around it. `tokens` is what it is likely to send.

        Namespaces take turns where attempts have to wait.
        """
        return Attempt(self, endpoint, self._gate(endpoint), (deadline_ns, is_retry, tokens, namespace))

    def _gate(self, endpoint: str) -> Gate | None:
        """The gate of a model that has limits; models of one name have one for each namespace."""
        gate = self._gates.get(endpoint)
        allowance = self._allowances.get(parted(endpoint)[1]) if gate is None and self._gates else None
        if allowance is not None:
            gate = self._gates[endpoint] = Gate(allowance, self._clock)
        return gate

    @property
    def has_limits(self) -> bool:
        """Whether any model has limits of the operator's."""
        return bool(self._gates)

    def left_seconds(self, deadline_ns: int) -> float:
        """How long until a time; negative when it has passed."""
        return (deadline_ns - self._clock.now_ns()) / SECOND

    # --- what attempts tell ---

    def begin(self, endpoint: str, *, is_retry: bool) -> bool:
        """Let a call leave, and tell whether it is a probe. Raises ProviderFailure while the circuit is open."""
        condition = self._conditions.get(endpoint, WELL)
        if condition is WELL and not is_retry:
            return False
        now_ns = self._clock.now_ns()
        if circuit.is_barred(condition, now_ns):
            left_seconds = (condition.open_until_ns - now_ns) / SECOND
            raise ProviderFailure(
                "PROVIDER_UNAVAILABLE",
                "it failed too often a moment ago and is left alone",
                failure_class=NOT_SENT,
                retry_after_seconds=left_seconds,
            )
        self._set(endpoint, circuit.begun(condition, self._policy, now_ns, is_retry=is_retry))
        return condition.opened > 0

    def succeed(self, endpoint: str) -> None:
        """Take note of a success."""
        now_ns = self._clock.now_ns()
        self._success_ns[endpoint] = now_ns
        condition = self._conditions.get(endpoint)
        if condition is not None:
            self._set(endpoint, circuit.succeeded(condition, self._policy, now_ns))

    def fail(self, endpoint: str, failure: ProviderFailure, *, is_probe: bool) -> None:
        """Take note of a failure of the endpoint's own."""
        condition, now_ns = self._conditions.get(endpoint, WELL), self._clock.now_ns()
        told = (failure.failure_class, failure.reason)
        self._set(endpoint, circuit.failed(condition, self._policy, told, now_ns, is_probe=is_probe))

    def drop(self, endpoint: str, *, is_probe: bool) -> None:
        """Take note of a call of which nobody can say whether it would have succeeded."""
        condition = self._conditions.get(endpoint)
        if condition is not None:
            self._set(endpoint, circuit.dropped(condition, self._clock.now_ns(), is_probe=is_probe))

    def _set(self, endpoint: str, after: Condition) -> None:
        before = self._conditions.get(endpoint, WELL)
        if after is before:
            return
        if after is WELL:
            del self._conditions[endpoint]
        else:
            self._conditions[endpoint] = after
        if bool(after.opened) != bool(before.opened):
            say = logger.warning if after.opened else logger.info
            namespace, model = parted(endpoint)
            say("model circuit opened" if after.opened else "model circuit closed", model=model, namespace=namespace)
        namespaces = {parted(endpoint)[0] for endpoint in self._conditions}
        self._health = {namespace: self._told(namespace) for namespace in namespaces | {""}} if namespaces else {}

    def _told(self, namespace: str) -> Health:
        policy = self._policy
        seen = [(*parted(endpoint), each) for endpoint, each in self._conditions.items()]
        mine = [(model, each) for owner, model, each in seen if owner in ("", namespace)]
        opened = {model: each.open_until_ns for model, each in mine if each.opened}
        spent = {model: circuit.spent_until_ns(each, policy) for model, each in mine if each.spent}
        spent = {model: until_ns for model, until_ns in spent.items() if until_ns}
        return Health(opened, spent) if opened or spent else _ALL_WELL


Asked = tuple[int, bool, int, str]
"""Deadline, whether it is a retry, tokens, and namespace."""


class Attempt:
    """One attempt at an endpoint: entered, it may leave; left, its outcome has been taken note of.

    Entering waits for the operator's limits. Raises ProviderFailure when the wait is too long, or the circuit open;
    neither counts as a failure of the endpoint.
    """

    __slots__ = ("_asked", "_begun_seconds", "_endpoint", "_endpoints", "_gate", "_is_probe", "_usage")

    def __init__(self, endpoints: Endpoints, endpoint: str, gate: Gate | None, asked: Asked) -> None:
        self._endpoints = endpoints
        self._endpoint = endpoint
        self._gate = gate
        self._asked = asked
        self._usage: Usage | None = None
        self._is_probe = False
        self._begun_seconds = 0.0

    def used(self, usage: Usage) -> None:
        """Say what the attempt used, for the limit of tokens; else what it was likely to send counts."""
        self._usage = usage

    async def __aenter__(self) -> Self:
        deadline_ns, is_retry, tokens, namespace = self._asked
        endpoints = self._endpoints
        if self._gate is not None:
            await self._gate.enter(tokens, endpoints.left_seconds(deadline_ns), namespace)
        try:
            self._is_probe = endpoints.begin(self._endpoint, is_retry=is_retry)
        except ProviderFailure:
            if self._gate is not None:
                self._gate.leave(-tokens)
            raise
        self._begun_seconds = time.monotonic()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self._endpoints.succeed(self._endpoint)
            self._endpoints.took(self._endpoint, time.monotonic() - self._begun_seconds)
        elif isinstance(error, ProviderFailure):
            self._endpoints.fail(self._endpoint, error, is_probe=self._is_probe)
        else:
            self._endpoints.drop(self._endpoint, is_probe=self._is_probe)
        if self._gate is not None:
            usage, tokens = self._usage, self._asked[2]
            self._gate.leave(usage.input_tokens + usage.output_tokens - tokens if usage is not None else 0)
