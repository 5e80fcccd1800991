"""Cancels a run whose client went away, where the client wants it so. Above: RunService. Below: the supervisor."""

from __future__ import annotations

import asyncio

from behest.v1.run_state_pb2 import CancelCause, CancelMode
from behestd.core.signals import Cancel
from behestd.runtime.supervisor import Supervisor


def cancel_later(supervisor: Supervisor, namespace: str, run_id: str, seconds: float) -> None:
    """Cancel a run after a while. Nothing happens when it has ended by then."""

    def cancel() -> None:
        driver = supervisor.driver(namespace, run_id)
        if driver is not None:
            driver.tell(Cancel(CancelMode.CANCEL_MODE_GRACEFUL, CancelCause.CANCEL_CAUSE_DISCONNECT))

    asyncio.get_running_loop().call_later(seconds, cancel)
