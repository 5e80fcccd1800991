"""Child runs end with their parents, also where nobody could tell them in time. Part of the supervisor.

A parent that is cancelled tells its child runs and waits for them; one that ends at once, by force or by an error,
leaves them behind, and so does a daemon that dies at the wrong moment.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from behest.v1.run_pb2 import Run as RunMessage
from behest.v1.run_state_pb2 import CancelCause, CancelMode, RunState
from behestd.core.signals import Cancel
from behestd.core.state import Run
from behestd.failpoint import failpoint
from behestd.log.store import Store
from behestd.runtime.driver import Driver
from behestd.runtime.gate import Key
from behestd.runtime.house import House


def cancel_of(parent: Run | None) -> Cancel:
    """What a child run is told whose parent ends: by force when the parent is ended so."""
    cancel = parent.life.cancel if parent is not None else None
    mode = cancel.mode if cancel is not None and cancel.mode else CancelMode.CANCEL_MODE_GRACEFUL
    return Cancel(mode, CancelCause.CANCEL_CAUSE_PARENT, reason="the run that started it ends")


async def has_lost_its_parent(store: Store, run: Run) -> bool:
    """Whether a run is a child, and one of those above it has ended, is about to, or is gone."""
    above = run.created.parent.run_id
    while above:
        row = await store.run(run.created.namespace, above)
        if row is None or row.is_ended or row.state == RunState.RUN_STATE_CANCELLING:
            return True
        above = RunMessage.FromString(row.body).parent.run_id
    return False


def forsake(house: House, drivers: Mapping[Key, Driver], parent: Run) -> None:
    """Cancel the child runs of a run that has ended."""
    left = house.kin.of((parent.created.namespace, parent.id))
    if left:
        failpoint("child.before_forsake", parent.id)
        _cancel(left, drivers, cancel_of(parent))


async def cancel_orphans(house: House, drivers: Mapping[Key, Driver]) -> None:
    """Cancel the child runs here whose parent has ended, or is gone."""
    for parent in house.kin.parents():
        row = await house.log.store.run(*parent) if parent not in drivers else None
        if parent not in drivers and (row is None or row.is_ended):
            _cancel(house.kin.of(parent), drivers, cancel_of(None))


def _cancel(keys: Iterable[Key], drivers: Mapping[Key, Driver], cancel: Cancel) -> None:
    for driver in [drivers[key] for key in keys if key in drivers]:
        driver.tell(cancel)
