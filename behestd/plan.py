"""The plan of a daemon: everything that its composition is made from, as values and policies.

Above: `planning`, which makes it from settings, and tests, which make it by hand. Below: every room. `composition`
reads it at the start; what can change in a daemon that runs is read from a new one at a reload.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from behest.v1.server_pb2 import Server
from behest.v1.tool_pb2 import ToolPolicy
from behestd.config.source import Configuration
from behestd.context.catalog import Sources
from behestd.core.circuit import CircuitPolicy
from behestd.core.definition import Operator
from behestd.core.route import RoutePolicy
from behestd.providers.catalog import Snapshot
from behestd.providers.provider import ProviderTimeouts
from behestd.runtime import overload
from behestd.runtime.admission import Rules
from behestd.runtime.budgets import Rules as Budgets
from behestd.runtime.house import Limits
from behestd.runtime.model_limits import Allowance
from behestd.runtime.quotas import Rules as Quotas
from behestd.runtime.retention import Rules as Retention
from behestd.secret import Vault, parse
from behestd.service.credentials import Credentials
from behestd.service.server import DEFAULT_ADDRESS, is_local
from behestd.service.settings import Settings as EdgeSettings
from behestd.service.tls import Tls
from behestd.telemetry.logs import Logs
from behestd.telemetry.settings import Settings as Telemetry
from behestd.tools.catalog import Catalog as Tools
from behestd.tools.schema import SchemaLimits, Validators
from behestd.wire import endpoint
from behestd.wire.remote_channel import Resolve, system_resolve


def read_secret(reference: str) -> str:
    """Read the secret that a reference names. Raises LookupError and ValueError."""
    return Vault(os.environ).read(parse(reference)).reveal()


@dataclass(frozen=True, slots=True)
class Plan:
    """What a daemon is made of. `data_dir` None keeps everything in memory."""

    models: Snapshot
    tools: Callable[[Validators], Tools] = Tools
    tool_policies: Mapping[str, ToolPolicy] = field(default_factory=dict)
    """Policies of tools, by name or glob. At the start they are in `tools` already."""
    data_dir: Path | None = None
    addresses: Sequence[str] = (DEFAULT_ADDRESS,)
    limits: Limits = field(default_factory=Limits)
    schemas: SchemaLimits = field(default_factory=SchemaLimits)
    """How much of the schemas of strangers is taken."""
    operator: Operator = field(default_factory=Operator)
    rules: Rules = field(default_factory=Rules)
    retries: RoutePolicy = field(default_factory=lambda: RoutePolicy(()))
    model_timeouts: ProviderTimeouts = field(default_factory=ProviderTimeouts)
    edge: EdgeSettings = field(default_factory=EdgeSettings)
    credentials: Credentials = field(default_factory=Credentials)
    """Who may call. None at all and local addresses only: everybody, which is local mode."""
    tls: Tls | None = None
    """TLS of every TCP address."""
    has_reflection: bool | None = None
    """Whether the contract may be asked for. None: in local mode only."""
    servers: Sequence[Server] = ()
    """Tool servers of the configuration."""
    endpoints: endpoint.AllowList = field(default_factory=endpoint.AllowList)
    """Addresses that callers may register."""
    resolve: Resolve = system_resolve
    """Looks up the names of servers."""
    fallbacks: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Models to try after a model or alias, by its name."""
    circuits: CircuitPolicy = field(default_factory=CircuitPolicy)
    model_limits: Mapping[str, Allowance] = field(default_factory=dict)
    """The operator's limits of models, by id."""
    budgets: Budgets = field(default_factory=Budgets)
    """The operator's budgets of namespaces."""
    quotas: Quotas = field(default_factory=Quotas)
    """What principals and namespaces may use."""
    overload: overload.Limits = field(default_factory=overload.Limits)
    """From where on the daemon has too much to do."""
    sources: Sources = field(default_factory=Sources)
    """Where context comes from."""
    retention: Retention = field(default_factory=Retention)
    """How long logs are kept."""
    telemetry: Telemetry = field(default_factory=Telemetry)
    """What the daemon tells of itself, and whom."""
    logs: Logs | None = None
    """The log of the process. None: it is somebody else's."""
    secrets: Callable[[str], str] = read_secret
    configuration: Configuration | None = None
    """What it was made from. None: it was made by hand."""
    again: Callable[[Plan], Plan] | None = None
    """Reads everything again, given the plan in force; providers of which nothing changed are kept. Raises BehestError.
    Called in a thread of its own."""
    secret_digests: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    """SHA-256 of each secret that the configuration names, by key, so that one that was rotated is noticed."""
    heartbeat_seconds: float = 15.0
    drain_seconds: float = 25.0

    @property
    def is_local(self) -> bool:
        """Tell whether this is local mode: nobody else can reach the daemon, and no credential is configured."""
        return is_local(self.addresses, self.credentials)
