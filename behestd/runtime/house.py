"""What the runtime is made of: the parts that `daemon` hands to the supervisor and its drivers, and their limits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from behestd.blobs.blob import LIMIT_BYTES, Blobs
from behestd.context.catalog import Sources
from behestd.core.definition import Operator
from behestd.core.route import Health, RoutePolicy
from behestd.core.signals import Validate
from behestd.core.state import Run
from behestd.log.log import Log
from behestd.providers.catalog import Catalog as Models
from behestd.providers.catalog import Resolved
from behestd.providers.leases import Leases
from behestd.providers.provider import ProviderTimeouts
from behestd.runtime.budgets import Ledger
from behestd.runtime.calibration import Calibration
from behestd.runtime.children_live import Kin
from behestd.runtime.clock import Clock, Ids, Rng, SystemClock
from behestd.runtime.compaction import Circuits
from behestd.runtime.health import Endpoints
from behestd.runtime.intake import Intake
from behestd.runtime.pauses import Switch
from behestd.telemetry.port import Listener, Silence
from behestd.tools.catalog import Catalog as Tools


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of the runtime."""

    active_runs: int = 512
    """Runs that work at once; those that wait do not count."""
    queued_runs: int = 10_000
    session_queue: int = 16
    tool_calls: int = 256
    """Tool calls of all runs at once."""
    pending_approvals: int = 1_000
    """Calls of one principal's runs that wait for an approval."""
    input_bytes: int = 1024 * 1024
    artifact_bytes: int = LIMIT_BYTES
    history_messages: int = 10_000
    """Messages of earlier runs read for a run."""
    queue_seconds: float = 900.0
    cancel_grace_seconds: float = 10.0
    sweep_seconds: float = 5.0
    clean_seconds: float = 60.0
    """Between two rounds of cleaning up."""
    blob_grace_seconds: float = 86_400.0
    """How old a blob is at least that is let go because nothing names it."""
    reconnect_seconds: float = 30.0
    """How long an attached server may be away before its tools are gone."""
    attach_heartbeat_seconds: float = 10.0
    """Longest silence on the stream of an attached server; three of them in a row end it."""
    full_retry_seconds: float = 1.0
    """Between two tries of a commit while the disk is full."""
    disconnect_grace_seconds: float = 5.0
    duplicate_window_seconds: float = 0.0
    """Within it the same input on the same session is refused; 0: never."""


class Policies(Protocol):
    """What of a plan the runtime goes by, and a reload may change."""

    @property
    def limits(self) -> Limits: ...

    @property
    def operator(self) -> Operator: ...

    @property
    def retries(self) -> RoutePolicy: ...

    @property
    def model_timeouts(self) -> ProviderTimeouts: ...

    @property
    def fallbacks(self) -> Mapping[str, Sequence[str]]: ...


@dataclass(slots=True, eq=False)
class House:
    """The parts of the runtime. Each is ready to use. None is ever replaced but those that `adopt` names."""

    log: Log
    models: Models
    tools: Tools
    blobs: Blobs
    clock: Clock
    ids: Ids
    rng: Rng
    replica: str
    validate: Validate
    ledger: Ledger
    """Who is charged for model calls."""
    limits: Limits = field(default_factory=Limits)
    operator: Operator = field(default_factory=Operator)
    retries: RoutePolicy = field(default_factory=lambda: RoutePolicy(()))
    model_timeouts: ProviderTimeouts = field(default_factory=ProviderTimeouts)
    endpoints: Endpoints = field(default_factory=lambda: Endpoints(SystemClock()))
    """What is known of the models that are called."""
    labels: Mapping[str, str] = field(default_factory=dict)
    kin: Kin = field(default_factory=Kin)
    switch: Switch = field(default_factory=Switch)
    """What operators paused."""
    circuits: Circuits = field(default_factory=Circuits)
    """How summarising sessions fares."""
    fallbacks: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Models to try after a model or alias, by its name."""

    sources: Sources = field(default_factory=Sources)
    """Where context comes from."""
    calibration: Calibration = field(default_factory=Calibration)
    """What models really count."""

    intake: Intake = field(default_factory=Intake)
    """Who may begin runs, and whether anybody may."""
    listener: Listener = field(default_factory=Silence)
    """Hears what becomes of runs."""

    leases: Leases = field(default_factory=Leases)
    """Who uses which provider."""

    def adopt(self, policies: Policies) -> None:
        """Go by other limits and policies from now on. What exists keeps what it pinned."""
        self.limits = policies.limits
        self.operator = policies.operator
        self.retries = policies.retries
        self.model_timeouts = policies.model_timeouts
        self.fallbacks = policies.fallbacks

    def resolved(self, run: Run, endpoint: str) -> Resolved:
        """The model that a run calls by the name it pinned. Raises ProviderNotFound, ModelNotFound."""
        namespace = run.created.namespace
        kept = self.leases.pinned((namespace, run.id), endpoint)
        return kept if kept is not None else self.models.of(namespace).resolve(endpoint)

    def health(self, namespace: str) -> Health:
        """The endpoints that are left alone at present, of those that a namespace sees."""
        return self.endpoints.health(namespace)
