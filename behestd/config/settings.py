"""What can be configured: one frozen model, every section and key of it, with its default and its limits.

Above: `source`, which fills it from file, environment and flags, `document`, which writes the reference from
the texts below, and `planning`, which turns it into the parts of a daemon. Names are those of the contract; times are
seconds, sizes bytes. An unknown key is an error everywhere, and secrets are references (`secret`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Literal

from annotated_types import Ge, Le, Len
from pydantic import AfterValidator, Field, Strict, model_validator

from behestd.config.auth import Auth, ListenTls
from behestd.config.budgets import Budgets
from behestd.config.compaction import Compaction, Pruning
from behestd.config.context import Context
from behestd.config.kinds import MIB, Count, Flag, Name, Positive, PositiveSeconds, Seconds, Section
from behestd.config.parts import Models, Provider, Tools
from behestd.config.quotas import Overload, Quotas
from behestd.config.retention import Retention
from behestd.config.telemetry import Telemetry
from behestd.service import listen


def _address(text: str) -> str:
    return str(listen.parse(text))


def _absolute(text: str) -> str:
    if text and not text.startswith("/"):
        raise ValueError("it must be an absolute path")
    return text


def _pattern(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise ValueError(f"it is no regular expression: {error}") from None
    return text


Address = Annotated[str, AfterValidator(_address)]
Repeats = Annotated[int, Strict(), Ge(2)]
AbsolutePath = Annotated[str, AfterValidator(_absolute)]


class Server(Section):
    """Where and how the daemon listens."""

    listen: tuple[Address, ...] = ("127.0.0.1:7717",)
    """Addresses, each HOST:PORT (port 0: any that is free) or unix:PATH. Beyond this machine only with TLS and
    credentials."""
    unix: AbsolutePath = ""
    """Path of a Unix socket to listen on as well, with mode 0660. Empty: none."""
    tls: ListenTls | None = None
    """TLS. Unset: plaintext, which only this machine may hear."""
    reflection: Flag | None = None
    """Whether tools such as grpcurl may ask for the contract, beyond local mode with the scope admin. Unset: in local
    mode only."""
    ready_fd: Count | None = None
    """File descriptor to which the first address is written, with a newline, once the daemon serves."""
    request_bytes: Positive = 4 * MIB
    """Largest request."""
    response_bytes: Positive = 4 * MIB
    """Largest response; clients that set nothing take no more."""
    metadata_bytes: Positive = 16 * 1024
    """Largest metadata of a call; beyond half of it calls are refused at random."""
    streams_per_connection: Positive = 1000
    """Calls at once on one connection; more wait in the client."""
    watches: Positive = 10_000
    """Watches at once."""
    lists: Positive = 1_000
    """Lists and other reads at once."""
    unary_seconds: PositiveSeconds = 60.0
    """Deadline of a unary call that brings none."""
    write_seconds: PositiveSeconds = 30.0
    """How long one write of a stream may wait for its reader before WATCH_STALLED."""
    heartbeat_seconds: PositiveSeconds = 15.0
    """Longest silence of a watch."""
    keepalive_interval_seconds: PositiveSeconds = 20.0
    """Between our pings on a silent connection."""
    keepalive_timeout_seconds: PositiveSeconds = 10.0
    """How long we wait for the answer to a ping."""
    keepalive_min_interval_seconds: PositiveSeconds = 5.0
    """Least time between a client's pings; two that come sooner end the connection."""

    @model_validator(mode="after")
    def _listens(self) -> Server:
        if not self.listen and not self.unix:
            raise ValueError("neither listen nor unix names a place to listen")
        return self

    @property
    def addresses(self) -> tuple[str, ...]:
        """Every address to listen on."""
        return (*self.listen, f"{listen.UNIX_PREFIX}{self.unix}") if self.unix else self.listen


class Storage(Section):
    """Where runs are kept."""

    kind: Literal["sqlite", "memory"] = "sqlite"
    """"sqlite": on disk, survives a power cut. "memory": gone with the process."""
    data_dir: AbsolutePath = ""
    """The data directory, on a local file system, of one daemon at a time. Default: $STATE_DIRECTORY, else
    $XDG_STATE_HOME/behestd, else ~/.local/state/behestd."""


class RunLimits(Section):
    """Limits of one run, where its agent sets none."""

    max_steps: Positive = 10
    """Turns of the model. A run that follows a reasoning graph has 10,000."""
    max_tool_calls: Count | None = None
    """Tool calls in all. Unset: no limit."""
    max_total_tokens: Count | None = None
    """Tokens in all, sent and received. Unset: no limit."""
    max_cost_micro_usd: Count | None = None
    """Money, in millionths of a US dollar; models without a price are refused then. Unset: no limit."""
    timeout_seconds: PositiveSeconds = 3600.0
    """The deadline, counted while the run works."""
    max_parallel_tool_calls: Positive = 4
    """Tool calls at once."""
    max_length_recoveries: Count = 3
    """How often an answer that was cut by its length is continued."""
    tool_output_lines: Positive = 2000
    """Lines of a tool's output that the model sees."""
    tool_output_bytes: Positive = 51_200
    """Bytes of a tool's output that the model sees."""
    max_history_messages: Count | None = None
    """Messages of earlier runs that the model sees. Unset: as many as its window holds."""
    max_history_tokens: Count | None = None
    """Estimated tokens of earlier runs that the model sees. Unset: as many as its window holds."""
    max_depth: Count = 3
    """Levels of child runs below the run."""
    max_children: Count = 32
    """Child runs that the run starts in all."""
    max_parallel_children: Positive = 4
    """Child runs of the run at once."""
    max_events: Positive = 20_000
    """Events of the log."""
    max_log_bytes: Positive = 64 * MIB
    """Bytes of the log."""
    doom_loop: Literal["stop", "warn", "off"] = "stop"
    """What repeated identical tool calls lead to."""
    doom_loop_repeats: Repeats = 3
    """How often the same call, or the same cycle of calls, is seen before it counts."""
    doom_loop_warnings: Count = 0
    """Detections that only warn the model before the run is stopped."""


class Limits(Section):
    """Limits of the daemon."""

    active_runs: Positive = 512
    """Runs that work at once; those that wait do not count."""
    queued_runs: Positive = 10_000
    """Runs that queue; more are refused."""
    session_queue: Count = 16
    """Runs that queue for one session."""
    tool_calls: Positive = 256
    """Tool calls of all runs at once."""
    pending_approvals: Positive = 1_000
    """Calls of one principal's runs that wait for an approval at once; further ones are refused."""
    input_bytes: Positive = MIB
    """Largest input of a run."""
    artifact_bytes: Positive = 2048 * MIB
    """Largest artifact."""
    schema_bytes: Positive = 64 * 1024
    """Largest JSON Schema of a tool or an answer."""
    schema_depth: Annotated[int, Strict(), Ge(1), Le(64)] = 32
    """Most levels of brackets of a schema."""
    schema_nodes: Positive = 2_000
    """Most subschemas of a schema."""
    history_messages: Positive = 10_000
    """Messages of earlier runs that are read for a run."""
    queue_seconds: PositiveSeconds = 900.0
    """How long a run may queue before it ends TIMED_OUT."""
    cancel_grace_seconds: Seconds = 10.0
    """How long a cancelled run waits for its tools."""
    sweep_seconds: PositiveSeconds = 5.0
    """Between two looks for work that was missed."""
    clean_seconds: PositiveSeconds = 60.0
    """Between two rounds of cleaning up: scratch data that has expired, content that nothing names."""
    blob_grace_seconds: Seconds = 86_400.0
    """How old content is at least that is deleted because nothing names it."""
    reconnect_seconds: PositiveSeconds = 30.0
    """How long an attached tool server whose stream broke may stay away before its calls are in doubt."""
    attach_heartbeat_seconds: PositiveSeconds = 10.0
    """Longest silence on the stream of an attached tool server; three times that ends it."""
    full_retry_seconds: PositiveSeconds = 1.0
    """Between two tries of a commit while the disk is full."""
    disconnect_grace_seconds: Seconds = 5.0
    """How long a run with cancel_on_disconnect waits for its client."""
    drain_seconds: Seconds = 25.0
    """How long running runs get when the daemon stops; what is left then is taken up at the next start."""
    run: RunLimits = RunLimits()


class Rule(Section):
    """What becomes of tool calls that match it; within a list the last match wins."""

    tool: Annotated[str, Len(1, 64)]
    """Name of a tool, or a glob."""
    action: Literal["allow", "ask", "deny"]
    """The answer."""
    arguments: Mapping[str, str] = Field(default_factory=dict)
    """Globs over top-level arguments, by name; all must match."""
    reason: str = ""
    """Why, for the audit and for the model that is refused."""


class Permissions(Section):
    """Which tool calls go ahead. The stricter of this and the agent's own rules holds."""

    default: Literal["auto", "allow", "ask", "deny"] = "auto"
    """What a call gets that no rule matches, pure tools apart. "auto": allow in local mode, else ask."""
    approval_seconds: PositiveSeconds = 86_400.0
    """How long a call waits for an approval before it counts as refused."""
    own_approvals: bool = False
    """Whether whoever ordered a run may decide about its calls. In local mode it always may."""
    rules: Annotated[tuple[Rule, ...], Len(0, 256)] = ()
    """The operator's rules."""


class Extensions(Section):
    """Trusted code inside the daemon."""

    modules: tuple[str, ...] = ()
    """Modules that are imported at the start, each with register(registry)."""


class Reject(Section):
    """A kind of input that is refused."""

    name: Name
    """Name of the rule, which the refusal tells."""
    pattern: Annotated[str, Len(1, 1024), AfterValidator(_pattern)]
    """Regular expression that is searched in the texts of an input."""


class Admission(Section):
    """What inputs are refused before a run exists."""

    duplicate_window_seconds: Seconds = 0.0
    """Within it the same input on the same session is refused. 0: never."""
    reject: tuple[Reject, ...] = ()
    """Kinds of inputs that are refused."""


class Log(Section):
    """The daemon's own log, on stderr."""

    format: Literal["auto", "console", "json"] = "auto"
    """"auto": console on a terminal, else json."""
    level: Literal["debug", "info", "warning", "error"] = "info"
    """The least level that is written."""


class Settings(Section):
    """Everything that can be configured."""

    server: Server = Server()
    auth: Auth = Auth()
    storage: Storage = Storage()
    limits: Limits = Limits()
    models: Models = Models()
    providers: Mapping[Name, Provider] = Field(default_factory=dict)
    tools: Tools = Tools()
    context: Context = Context()
    permissions: Permissions = Permissions()
    extensions: Extensions = Extensions()
    admission: Admission = Admission()
    budgets: Budgets = Budgets()
    quotas: Quotas = Quotas()
    overload: Overload = Overload()
    compaction: Compaction = Compaction()
    pruning: Pruning = Pruning()
    retention: Retention = Retention()
    telemetry: Telemetry = Telemetry()
    log: Log = Log()

    @model_validator(mode="after")
    def _keeps_scripted(self) -> Settings:
        found = self.providers.get("scripted")
        if found is not None and found.kind != "scripted":
            raise ValueError("the provider named scripted is the built-in one")
        return self
