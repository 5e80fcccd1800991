"""A draft of what is about to be committed: payloads, and the run as it will be. Made and used within one decision."""

from __future__ import annotations

from google.protobuf.any_pb2 import Any as AnyMessage
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status

from behestd.core.run import Payload, apply
from behestd.core.signals import Given
from behestd.core.state import Run

DOMAIN = "behest"


class Draft:
    """Payloads decided so far and the fold of the run over them. Not shared: it lives within one call of `decide`."""

    def __init__(self, run: Run, given: Given) -> None:
        self.run = run
        self.given = given
        self.payloads: list[Payload] = []

    def note(self, payload: Payload) -> None:
        """Decide on one more event."""
        self.run = apply(self.run, payload, self.given.now_ns)
        self.payloads.append(payload)

    def go_back(self, run: Run, count: int) -> None:
        """Decide otherwise: the run is as it was when there were so many events."""
        self.run = run
        del self.payloads[count:]


_UNKNOWN = 2
"""google.rpc.Code.UNKNOWN: the reason is what counts, the code of a run's end says nothing."""


def failure_status(reason: str, message: str, **metadata: object) -> Status:
    """Make the Status of a run's end, with its one ErrorInfo."""
    info = ErrorInfo(reason=reason, domain=DOMAIN, metadata={key: str(value) for key, value in metadata.items()})
    detail = AnyMessage()
    detail.Pack(info)
    return Status(code=_UNKNOWN, message=message, details=[detail])
