"""What a run ended with, read from its terminal event or from its record.

Above: `runs`, `watch` and the command line. Below: the messages of the contract. No I/O.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import grpc
from google.rpc import status_pb2

from behest.errors import RunCancelledError, RunFailedError, RunTimedOutError
from behest.v1 import run_state_pb2

if TYPE_CHECKING:
    from behest.v1 import event_pb2, run_pb2

CANCELLED = grpc.StatusCode.CANCELLED.value[0]
ENDED = frozenset(
    {
        run_state_pb2.RUN_STATE_COMPLETED,
        run_state_pb2.RUN_STATE_FAILED,
        run_state_pb2.RUN_STATE_CANCELLED,
        run_state_pb2.RUN_STATE_TIMED_OUT,
    }
)


def has_ended(state: int) -> bool:
    """Whether a state is terminal."""
    return state in ENDED


def outcome_of_event(event: event_pb2.Event) -> run_state_pb2.RunOutput:
    """Return the output that a terminal event carries. Raises RunEndedError when the run did not complete."""
    match event.WhichOneof("payload"):
        case "run_failed":
            raise RunFailedError(event.run_id, event.run_failed.error)
        case "run_cancelled":
            raise RunCancelledError(event.run_id, cancelled_status(event.run_id, event.run_cancelled.error))
        case "run_timed_out":
            raise RunTimedOutError(event.run_id, event.run_timed_out.error)
        case _:
            return event.run_completed.output


def outcome_of_run(run: run_pb2.Run) -> run_state_pb2.RunOutput:
    """Return the output of a run that has ended. Raises RunEndedError when it did not complete."""
    match run.state:
        case run_state_pb2.RUN_STATE_FAILED:
            raise RunFailedError(run.id, run.error)
        case run_state_pb2.RUN_STATE_CANCELLED:
            raise RunCancelledError(run.id, cancelled_status(run.id, run.error))
        case run_state_pb2.RUN_STATE_TIMED_OUT:
            raise RunTimedOutError(run.id, run.error)
        case _:
            return run.output


def cancelled_status(run_id: str, error: status_pb2.Status) -> status_pb2.Status:
    """Return the error that forced a run's end, or the plain word that it was cancelled."""
    return error if error.code else status_pb2.Status(code=CANCELLED, message=f"run {run_id} was cancelled")
