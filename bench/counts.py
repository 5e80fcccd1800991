"""What one run costs, counted and not timed: commits, fsyncs, hops back to the loop, reads, events and frames.

The daemon is in this process, on SQLite, so that its store can be asked; tests/test_counts.py checks the store's word
from outside.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from behestd.daemon import Daemon
from behestd.plan import Plan
from behestd.providers.catalog import snapshot
from behestd.providers.scripted import Scripted
from bench.figures import Figures
from bench.load import runs, stream

_COUNTED = {"commits": "commits", "syncs": "fsyncs", "hops": "hops back", "reads": "reads", "events": "events"}
_RUNS = 20


async def of_a_run(figures: Figures) -> None:
    """Count twenty runs of one turn, one after the other, that nothing runs beside; the figures are for one of them."""
    with tempfile.TemporaryDirectory(prefix="behest-bench-") as folder:
        models = snapshot([Scripted()], default_model="scripted/echo")
        plan = Plan(models=models, data_dir=Path(folder) / "data", addresses=["127.0.0.1:0"])
        async with Daemon(plan) as daemon, runs(daemon.addresses[0]) as stub:
            await stream(stub)
            before = daemon.log.store.statistics()
            frames = [len(await stream(stub)) for _ in range(_RUNS)]
            after = daemon.log.store.statistics()
    for name, said in _COUNTED.items():
        figures.note(f"{said} a run", (getattr(after, name) - getattr(before, name)) / _RUNS)
    figures.note("frames a run", sum(frames) / _RUNS)
