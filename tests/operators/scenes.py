"""What tests of operators' words share: targets of pauses, and waiting until a run waits."""

from __future__ import annotations

from behest.client import Client
from behest.v1.daemon_service_pb2 import PauseTarget
from behest.v1.event_pb2 import Event
from behest.v1.run_event_pb2 import RunWaiting
from behest.v1.run_state_pb2 import WaitReason
from tests.runs.scenes import kind_of, until_kind

ECHO = PauseTarget(model="scripted/echo")
LOOK = PauseTarget(tool_name="look")
ALL = PauseTarget(all=True)
LOOK_UP = "/tool look {} /next /say done"


async def waiting(client: Client, run_id: str, count: int = 1) -> RunWaiting:
    """Follow a run until it waits for what is paused, for the count-th time."""
    events = await until_kind(client.watch(run_id), "run_waiting", count)
    wait: RunWaiting = last(events, "run_waiting").run_waiting
    assert wait.reason == WaitReason.WAIT_REASON_PAUSED
    return wait


def last(events: list[Event], kind: str) -> Event:
    """The last event of a kind."""
    return next(event for event in reversed(events) if kind_of(event) == kind)
