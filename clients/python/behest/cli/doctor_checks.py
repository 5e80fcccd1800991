"""What `behest doctor` looks at: each check is one function from what the daemon tells to what is found.

Above: `doctor`. Below: `behest.client`. Most of it needs scope `admin`; without it those checks warn that they could
not be made.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from behest.cli.pause import subject
from behest.cli.show import short_name
from behest.cli.top import size
from behest.errors import BehestError
from behest.v1 import model_pb2, run_state_pb2, server_pb2

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from behest.client import Client
    from behest.v1.daemon_service_pb2 import GetServerInfoResponse, GetStatusResponse

OK, WARN, FAIL = "ok", "warn", "fail"
SKEW_SECONDS = 2.0
SLOW_COMMIT_SECONDS = 0.25
LEAST_FREE_BYTES = 1024**3
LEAST_FREE_SHARE = 0.05
FULL_SHARE = 0.01
LEAST_FILES = 4096
CERTIFICATE_DAYS = 14
MANY_APPROVALS = 100
_REMOTE_SYSTEMS = frozenset({"nfs", "nfs4", "cifs", "smb3", "9p", "ceph", "glusterfs", "fuse.sshfs"})
_PASSING_SYSTEMS = frozenset({"tmpfs", "ramfs", "overlay"})
_CONNECT_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at. `remedy` is empty when there is nothing to mend."""

    name: str
    outcome: str
    found: str
    remedy: str = ""

    def as_dict(self) -> dict[str, str]:
        """Return it for JSON."""
        return {key: value for key, value in asdict(self).items() if value}


def unreached(address: str, error: BehestError) -> Check:
    """Tell of a daemon that does not answer, or not to this caller."""
    if error.reason.startswith("AUTH_"):
        return Check(
            "caller", FAIL, str(error), "give a valid token by BEHEST_TOKEN, or a certificate by --cert and --key"
        )
    remedy = f"start behestd, or name its address by --address or BEHEST_ADDRESS; with TLS, --tls and --ca: {address}"
    return Check("reachable", FAIL, str(error), remedy)


async def reached(client: Client) -> list[Check]:
    """Make all checks of a daemon that answers. Raises BehestError when it does not."""
    begun = time.monotonic()
    info = await client.daemon.info()
    took_ms = (time.monotonic() - begun) * 1000
    checks = [Check("reachable", OK, f"{client.address} answered in {took_ms:.0f} ms"), *_of_info(info)]
    checks += await _certificate(client)
    try:
        status = await client.daemon.status()
    except BehestError as error:
        remedy = "give a token of a principal with the scope admin"
        checks.append(Check("status", WARN, f"not shown to this caller: {error.reason}", remedy))
    else:
        checks += _of_status(status, time.time())
    return [*checks, *await _models(client), *await _servers(client), *await _approvals(client)]


# --- what the daemon is ---


def _of_info(info: GetServerInfoResponse) -> Iterator[Check]:
    mine = version("behest")
    if mine.split(".")[:2] == info.version.split(".")[:2]:
        yield Check("version", OK, f"daemon {info.version}, client {mine}")
    else:
        yield Check(
            "version", WARN, f"daemon {info.version}, client {mine}", "install the client of the daemon's version"
        )
    who = f"{info.principal} of namespace {info.namespace}, scopes {' '.join(info.scopes) or 'none'}"
    if info.local_mode:
        who += "; local mode: whoever reaches the daemon may do everything"
    yield Check("caller", OK if info.scopes else WARN, who, "" if info.scopes else "give the principal a role")
    kind = short_name(run_state_pb2.DurabilityClass.DESCRIPTOR, info.storage.durability_class)
    found = f"{info.storage.engine} {info.storage.engine_version}, durability {kind}".replace(" ,", ",")
    if info.storage.engine == "memory":
        yield Check("storage", WARN, found, "set storage.kind to sqlite: nothing outlives the process")
    elif kind == "lossy":
        yield Check("storage", WARN, found, "use an engine that keeps what it acknowledged")
    else:
        yield Check("storage", OK, found)


async def _certificate(client: Client) -> list[Check]:
    """Look at how long the daemon's certificate is valid, where there is one."""
    if client.tls is None or client.address.startswith("unix:"):
        return []
    try:
        left_days = await asyncio.to_thread(_days_left, client)
    except (OSError, ValueError) as error:
        return [Check("certificate", WARN, f"not looked at: {error}", "give its authorities by --ca")]
    found = f"valid for {left_days:.0f} more days"
    if left_days < 0:
        return [Check("certificate", FAIL, "it has expired", "renew it, and `behest reload`")]
    if left_days < CERTIFICATE_DAYS:
        return [Check("certificate", WARN, found, "renew it, and `behest reload`")]
    return [Check("certificate", OK, found)]


def _days_left(client: Client) -> float:
    """Return for how many days the daemon's certificate is valid. Raises OSError and ValueError."""
    tls = client.tls
    assert tls is not None
    ca = tls.ca.read_text() if isinstance(tls.ca, Path) else tls.ca
    context = ssl.create_default_context(cadata=ca.decode() if isinstance(ca, bytes) else ca)
    context.set_alpn_protocols(["h2"])
    host, _, port = client.address.rpartition(":")
    name = tls.server_name or host.strip("[]")
    with (
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_SECONDS) as connection,
        context.wrap_socket(connection, server_hostname=name) as secured,
    ):
        certificate: Any = secured.getpeercert()
    return (ssl.cert_time_to_seconds(certificate["notAfter"]) - time.time()) / 86_400


# --- how it does ---


def _of_status(status: GetStatusResponse, now: float) -> Iterator[Check]:
    if status.accepting:
        yield Check("accepting", OK, "it takes new runs")
    else:
        reasons = ", ".join(status.refusing_reasons)
        yield Check(
            "accepting", FAIL, f"it refuses new runs: {reasons}", "see what each reason stands for in docs/errors.md"
        )
    for pause in status.pauses:
        found = f"{subject(pause.target)} is paused by {pause.principal}: {pause.reason}"
        yield Check("pauses", WARN, found, f"`behest unpause {subject(pause.target)}` when it is over")
    yield _clock(status.load.time.ToNanoseconds() / 1e9 - now)
    yield from _disk(status)
    yield _commits(status)
    yield _files(status)


def _clock(skew_seconds: float) -> Check:
    if abs(skew_seconds) < SKEW_SECONDS:
        return Check("clock", OK, f"within {abs(skew_seconds):.1f} s of this machine")
    remedy = "set both clocks by NTP: times of logs cannot be compared, and tokens expire early or late"
    return Check("clock", WARN, f"{skew_seconds:+.1f} s from this machine", remedy)


def _disk(status: GetStatusResponse) -> Iterator[Check]:
    if not status.load.HasField("disk"):
        return
    disk = status.load.disk
    if disk.file_system in _REMOTE_SYSTEMS:
        remedy = "move the data directory to a local disk: locks and syncs cannot be trusted over a network"
        yield Check("file system", FAIL, disk.file_system, remedy)
    elif disk.file_system in _PASSING_SYSTEMS:
        yield Check("file system", WARN, disk.file_system, "move the data directory to a disk that outlives a restart")
    else:
        yield Check("file system", OK, disk.file_system or "not known")
    share = disk.free_bytes / disk.total_bytes if disk.total_bytes else 1.0
    found = f"{size(disk.free_bytes)} free of {size(disk.total_bytes)}"
    remedy = "make room, set a retention, or move the data directory"
    if share < FULL_SHARE:
        yield Check("disk", FAIL, found, remedy)
    elif share < LEAST_FREE_SHARE or disk.free_bytes < LEAST_FREE_BYTES:
        yield Check("disk", WARN, found, remedy)
    else:
        yield Check("disk", OK, found)


def _commits(status: GetStatusResponse) -> Check:
    if not status.commits.commits:
        return Check("commits", OK, "none of late")
    seconds = status.commits.p99.ToTimedelta().total_seconds()
    found = f"99 of 100 take at most {seconds * 1000:.1f} ms"
    if seconds > SLOW_COMMIT_SECONDS:
        return Check("commits", WARN, found, "give the data directory a faster disk, or the machine less to do")
    return Check("commits", OK, found)


def _files(status: GetStatusResponse) -> Check:
    load = status.load
    found = f"{load.open_files} of {load.max_open_files} open files"
    if load.max_open_files < LEAST_FILES or load.open_files > load.max_open_files * 0.8:
        return Check("open files", WARN, found, "raise the limit: LimitNOFILE= of the unit, or ulimit -n")
    return Check("open files", OK, found)


# --- what it works with ---


async def _models(client: Client) -> list[Check]:
    try:
        model = await client.models.get("")
    except BehestError as error:
        return [Check("default model", FAIL, str(error), "set models.default to a model that a provider serves")]
    name = f"{model.id} is {short_name(model_pb2.ModelHealthState.DESCRIPTOR, model.health.state)}"
    remedy = f"look at `behest models get {model.id}`, and at the provider's key and network"
    if model.paused:
        return [
            Check("default model", WARN, f"{model.id} is paused", f"`behest unpause model {model.id}` when it is over")
        ]
    if model.health.state == model_pb2.MODEL_HEALTH_STATE_OPEN:
        return [Check("default model", FAIL, f"{name}: {model.health.reason}", remedy)]
    if model.health.state == model_pb2.MODEL_HEALTH_STATE_DEGRADED:
        return [Check("default model", WARN, f"{name}: {model.health.reason}", remedy)]
    return [Check("default model", OK, name)]


async def _servers(client: Client) -> Sequence[Check]:
    try:
        servers = [server async for server in client.servers.list()]
    except BehestError as error:
        return [
            Check("servers", WARN, f"not shown to this caller: {error.reason}", "look with the scope tools:register")
        ]
    bad = [server for server in servers if server.state != server_pb2.SERVER_STATE_READY]
    checks = [
        Check(
            "servers",
            FAIL,
            f"{server.name} is {short_name(server_pb2.ServerState.DESCRIPTOR, server.state)}",
            f"see `behest servers get {server.id}`; start it, or unregister it",
        )
        for server in bad
    ]
    return checks or [Check("servers", OK, f"{len(servers)} registered, all ready")]


async def _approvals(client: Client) -> Sequence[Check]:
    try:
        count = 0
        async for _ in client.approvals.list():
            count += 1
            if count >= MANY_APPROVALS:
                break
    except BehestError as error:
        return [Check("approvals", WARN, f"not shown to this caller: {error.reason}", "look with the scope runs:read")]
    if count >= MANY_APPROVALS:
        return [Check("approvals", WARN, f"{count} calls and more wait for a word", "decide: `behest approvals list`")]
    return [Check("approvals", OK, f"{count} calls wait for a word")]
