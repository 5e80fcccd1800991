"""What the runtime is made of: the parts that `daemon` hands to the supervisor and its drivers, and their limits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from behestd.blobs.blob import LIMIT_BYTES, Blobs
from behestd.context.catalog import Sources
from behestd.core.definition import Operator
from behestd.core.route import Health, RoutePolicy
from behestd.core.signals import Validate
from behestd.log.log import Log
from behestd.providers.catalog import Catalog as Models
from behestd.providers.provider import ProviderTimeouts
from behestd.runtime.budgets import Ledger
from behestd.runtime.calibration import Calibration
from behestd.runtime.children_live import Kin
from behestd.runtime.clock import Clock, Ids, Rng, SystemClock
from behestd.runtime.compaction import Circuits
from behestd.runtime.health import Endpoints
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


@dataclass(frozen=True, slots=True)
class House:
    """The parts of the runtime. Each is ready to use."""

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
    circuits: Circuits = field(default_factory=Circuits)
    """How summarising sessions fares."""
    fallbacks: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Models to try after a model or alias, by its name."""

    sources: Sources = field(default_factory=Sources)
    """Where context comes from."""
    calibration: Calibration = field(default_factory=Calibration)
    """What models really count."""

    def health(self) -> Health:
        """The endpoints that are left alone at present."""
        return self.endpoints.health()
