"""How busy tools and models are, and how full the disk is: a part of GetStatus. Above: DaemonInfo. Below: runs."""

from __future__ import annotations

import os
import resource
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from behest.v1 import daemon_load_pb2 as pb
from behest.v1.run_state_pb2 import RunState
from behestd.core.pauses import MODEL, Pauses
from behestd.core.state import Phase, Run
from behestd.core.times import duration, timestamp
from behestd.runtime.house import House

_MOST = 100
_MOST_INT32 = (1 << 31) - 1
_IN_FLIGHT = (Phase.STARTED, Phase.ASKING)


def load_of(
    runs: Sequence[Run], house: House, latency_seconds: Callable[[str], float], data_dir: Path | None
) -> pb.DaemonLoad:
    """How busy the daemon is with the runs of a namespace, and what the machine has left."""
    pauses = house.switch.current
    return pb.DaemonLoad(
        time=timestamp(house.clock.now_ns()),
        tools=_tool_loads(runs, pauses),
        models=_model_loads(runs, pauses, latency_seconds),
        disk=disk_status(data_dir) if data_dir is not None else None,
        open_files=_open_files(),
        max_open_files=_most_open_files(),
    )


def _tool_loads(runs: Iterable[Run], pauses: Pauses) -> list[pb.ToolLoad]:
    """The tools that runs have calls of, the busiest first."""
    busy: Counter[str] = Counter()
    held: Counter[str] = Counter()
    for run in runs:
        for call in run.calls:
            busy[call.call.name] += call.phase in _IN_FLIGHT
            held[call.call.name] += pauses.holds(run, call) is not None
    return [pb.ToolLoad(tool_name=name, in_flight=busy[name], held=held[name]) for name in _busiest(busy, held)]


def _model_loads(runs: Iterable[Run], pauses: Pauses, latency_seconds: Callable[[str], float]) -> list[pb.ModelLoad]:
    """The models that runs have calls of, the busiest first. `latency_seconds` is by model, 0: not known."""
    busy: Counter[str] = Counter()
    held: Counter[str] = Counter()
    for run in runs:
        for _, attempt in run.attempts:
            busy[attempt.endpoint] += 1
        if run.compaction.open is not None:
            busy[run.compaction.open.endpoint] += 1
        if _is_held(run, pauses):
            held[_held_model(run)] += 1
    loads = [pb.ModelLoad(model=name, in_flight=busy[name], held=held[name]) for name in _busiest(busy, held)]
    for load in loads:
        seconds = latency_seconds(load.model)
        if seconds:
            load.latency.CopyFrom(duration(seconds))
    return loads


def _is_held(run: Run, pauses: Pauses) -> bool:
    """Whether a run waits for its next call of a model because of a pause."""
    wait = run.life.wait
    if wait is None or not wait.subject or run.state != RunState.RUN_STATE_WAITING:
        return False
    return all(pauses.holds(run, call) is None for call in run.calls) and bool(run.definition.models)


def _held_model(run: Run) -> str:
    """The model that a run waits for: one that a node of its graph names, if that is paused, else its first."""
    subject = run.life.wait.subject if run.life.wait is not None else ""
    named = (model.endpoint for model in run.definition.node_models)
    return next((model for model in named if subject == f"{MODEL} {model}"), run.definition.models[0])


def _busiest(busy: Counter[str], held: Counter[str]) -> Iterator[str]:
    names = [name for name in busy.keys() | held.keys() if busy[name] or held[name]]
    yield from sorted(names, key=lambda name: (-busy[name] - held[name], name))[:_MOST]


def disk_status(data_dir: Path) -> pb.DiskStatus:
    """How full the disk of a directory is."""
    found = os.statvfs(data_dir)
    return pb.DiskStatus(
        file_system=file_system(data_dir, Path("/proc/self/mountinfo")),
        free_bytes=found.f_bavail * found.f_frsize,
        total_bytes=found.f_blocks * found.f_frsize,
    )


def file_system(path: Path, mounts: Path) -> str:
    """The type of the file system that a path is on, by a table of mounts (proc(5)); empty where that says nothing."""
    try:
        device, text = path.stat().st_dev, mounts.read_text()
    except OSError:
        return ""
    number = f"{os.major(device)}:{os.minor(device)}"
    for line in text.splitlines():
        head, _, tail = line.partition(" - ")
        if head.split()[2:3] == [number]:
            return tail.split()[0] if tail.split() else ""
    return ""


def _open_files() -> int:
    """How many files and sockets the process has open; 0 where the kernel does not say."""
    try:
        return len(os.listdir("/proc/self/fd"))
    except OSError:
        return 0


def _most_open_files() -> int:
    """How many it may have open."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return min(soft, _MOST_INT32) if soft != resource.RLIM_INFINITY else _MOST_INT32
