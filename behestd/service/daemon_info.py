"""DaemonService: what clients should know of the daemon, how it does, and its end. Above: the edge. Below: the runtime.

Pauses are in `pauses`, the configuration is in `configuration`.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from behest.v1 import daemon_service_pb2 as pb
from behestd import __version__
from behestd.core.state import Phase
from behestd.core.times import duration, timestamp
from behestd.log.sqlite import SQLITE_VERSION
from behestd.runtime.direct_calls import DirectCalls
from behestd.runtime.house import House
from behestd.runtime.supervisor import Supervisor
from behestd.service import pages, tools, validate
from behestd.service.call import Call
from behestd.service.configuration import Reloading, Status, component
from behestd.service.loads import load_of
from behestd.service.methods import Handler
from behestd.service.settings import Settings

INLINE_PAYLOAD_BYTES = 256 * 1024
_NAME = "/behest.v1.DaemonService/"
_MOST_MODELS = 100
_VERSIONS = {"sqlite": SQLITE_VERSION}
_IN_FLIGHT = (Phase.STARTED, Phase.ASKING)


@dataclass(frozen=True, slots=True)
class Controls:
    """What the composition root lets be seen and done."""

    start_ns: int
    heartbeat_seconds: Callable[[], float]
    is_local: bool
    watchers: Callable[[], int]
    data_dir: Path | None
    """Where the data is. None: in memory."""
    drain: Callable[[float | None], int]
    """Begins the end, within so many seconds (None: as configured); gives when that is over, in unix nanoseconds."""
    statuses: Callable[[], Sequence[Status]]
    """How the components do."""
    reloading: Reloading


class DaemonInfo:
    """Handlers of DaemonService."""

    def __init__(
        self, house: House, supervisor: Supervisor, calls: DirectCalls, settings: Settings, controls: Controls
    ) -> None:
        self._house = house
        self._supervisor = supervisor
        self._calls = calls
        self._settings = settings
        self._controls = controls

    def handlers(self) -> Mapping[str, Handler]:
        """The handlers by full name."""
        return {
            _NAME + "GetServerInfo": self.get_server_info,
            _NAME + "GetStatus": self.get_status,
            _NAME + "Drain": self.drain,
        }

    async def get_server_info(self, request: pb.GetServerInfoRequest, call: Call) -> pb.GetServerInfoResponse:
        """Tell what a client should know."""
        store, keepalive = self._house.log.store, self._settings.keepalive
        return pb.GetServerInfoResponse(
            version=__version__,
            replica=self._house.replica,
            start_time=timestamp(self._controls.start_ns),
            namespace=call.namespace,
            principal=call.caller.principal,
            scopes=sorted(call.caller.scopes),
            limits=self._limits(call),
            storage=pb.StorageInfo(
                engine=store.name,
                engine_version=_VERSIONS.get(store.name, ""),
                durability_class=store.durability,  # type: ignore[arg-type]  # one of DurabilityClass's numbers
            ),
            keepalive=pb.Keepalive(
                interval=duration(keepalive.interval_seconds),
                timeout=duration(keepalive.timeout_seconds),
                min_interval=duration(keepalive.min_interval_seconds),
            ),
            local_mode=self._controls.is_local,
        )

    def _limits(self, call: Call) -> pb.ClientLimits:
        settings, schemas = self._settings, self._house.tools.validators.limits
        quotas = self._house.intake.quotas
        return pb.ClientLimits(
            request_bytes=settings.request_bytes,
            response_bytes=settings.response_bytes,
            metadata_bytes=settings.metadata_bytes,
            inline_payload_bytes=INLINE_PAYLOAD_BYTES,
            artifact_bytes=self._house.limits.artifact_bytes,
            chunk_bytes=tools.CHUNK_BYTES,
            page_size=pages.MAX_SIZE,
            labels=validate.MAX_LABELS,
            streams_per_connection=settings.streams_per_connection,
            watchers=min(quotas.most_watches(call.namespace, call.caller.principal), settings.watches),
            session_queue=self._house.limits.session_queue,
            run_timeout=duration(validate.MAX_DURATION_SECONDS),
            watch_heartbeat=duration(self._controls.heartbeat_seconds()),
            default_deadline=duration(settings.unary_seconds),
            schema_bytes=schemas.schema_bytes,
            schema_depth=schemas.depth,
            schema_nodes=schemas.nodes,
            pending_approvals=self._house.limits.pending_approvals,
            input_bytes=self._house.limits.input_bytes,
        )

    async def get_status(self, request: pb.GetStatusRequest, call: Call) -> pb.GetStatusResponse:
        """Tell how the daemon does."""
        house, runs = self._house, self._supervisor.runs()
        states = Counter(run.state for run in runs)
        in_flight = sum(call.phase in _IN_FLIGHT for run in runs for call in run.calls)
        reasons = self._refusing()
        mine = [run for run in runs if run.created.namespace == call.namespace]
        return pb.GetStatusResponse(
            accepting=not reasons,
            refusing_reasons=reasons,
            overload_causes=house.intake.causes,
            refused_runs=house.intake.refused,
            quota_refusals=house.intake.quotas.refused,
            runs=[pb.RunCount(state=state, runs=states[state]) for state in sorted(states)],  # type: ignore[arg-type]
            max_active_runs=house.limits.active_runs,
            max_queued_runs=house.limits.queued_runs,
            tool_calls=in_flight + self._calls.statistics().in_flight,
            tools=len(house.tools.snapshot(call.namespace).tools),
            watchers=self._controls.watchers(),
            commits=_commits(house.log.store.statistics().commit_seconds),
            memory_bytes=_resident_bytes(),
            unhealthy_models=self._unhealthy(call.namespace)[:_MOST_MODELS],
            pauses=house.switch.shown(call.namespace),
            components=map(component, self._controls.statuses()),
            config_time=timestamp(self._controls.reloading.config_time_ns),
            restart_keys=self._controls.reloading.restart_keys,
            load=load_of(mine, house, self._latency_seconds(call.namespace), self._controls.data_dir),
        )

    def _latency_seconds(self, namespace: str) -> Callable[[str], float]:
        endpoints, models = self._house.endpoints, self._house.models.of(namespace).models

        def of(model: str) -> float:
            found = models.get(model)
            return endpoints.latency_seconds(found.endpoint) if found is not None else 0.0

        return of

    def _unhealthy(self, namespace: str) -> list[str]:
        endpoints, models = self._house.endpoints, self._house.models.of(namespace).models
        return [name for name, found in models.items() if endpoints.condition(found.endpoint).failures]

    def _refusing(self) -> list[str]:
        causes = set(self._house.intake.causes)
        reasons = {
            "RUNTIME_DRAINING": self._supervisor.is_draining,
            "RUNTIME_OVERLOADED": bool(causes - {"disk"}),
            "STORAGE_FULL": self._house.log.store.is_degraded or "disk" in causes,
        }
        return [reason for reason, holds in reasons.items() if holds]

    async def drain(self, request: pb.DrainRequest, call: Call) -> pb.DrainResponse:
        """Begin the end."""
        seconds = validate.duration("timeout", request.timeout) if request.HasField("timeout") else None
        runs = len(self._supervisor.runs())
        return pb.DrainResponse(runs=runs, deadline=timestamp(self._controls.drain(seconds)))


def _commits(seconds: tuple[float, ...]) -> pb.CommitStatus:
    """How the last commits did: the store keeps the times of so many, not of a stretch of time."""
    if not seconds:
        return pb.CommitStatus()
    ordered = sorted(seconds)
    median, p99 = ordered[(len(ordered) - 1) // 2], ordered[-(-len(ordered) * 99 // 100) - 1]
    return pb.CommitStatus(commits=len(ordered), median=duration(median), p99=duration(p99))


def _resident_bytes() -> int:
    """Resident memory of the process; 0 where the kernel does not say."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0
