"""Too fast or out of money: what a model server sees of runs that it refuses with 429, over restarts too."""

from __future__ import annotations

from pathlib import Path

import pytest

from behest.v1.model_event_pb2 import FailureClass
from behest.v1.run_state_pb2 import RunState, WaitReason
from behestd.core.route import RoutePolicy
from behestd.providers.catalog import snapshot
from tests import daemons
from tests.daemons import refused
from tests.routing.test_circuit import chat
from tests.routing.vendor import FINE, Answer, Vendor, vendor
from tests.runs.scenes import events_of, kinds, only, until_kind

QUICK = RoutePolicy((), base_seconds=0.01)


def plan(at: Vendor) -> dict[str, object]:
    return {"models": snapshot([at.provider()], default_model="v/m"), "retries": QUICK}


async def test_a_server_that_asks_to_wait_is_left_in_peace_until_then_by_a_restarted_daemon_too(
    tmp_path: Path,
) -> None:  # row 36
    async with vendor() as at:
        at.says(Answer(429, headers={"retry-after": "3600"}), FINE)
        async with daemons.serve("sqlite", tmp_path, **plan(at)) as served:
            run = await served.client.run("hello", run_id="asked-to-wait")
            events = await until_kind(run, "run_waiting")
        (failed,), (waiting,) = only(events, "model_failed"), only(events, "run_waiting")
        assert failed.failure_class == FailureClass.FAILURE_CLASS_THROTTLED
        assert waiting.reason == WaitReason.WAIT_REASON_BACKOFF
        assert waiting.until == failed.retry_time
        async with daemons.serve("sqlite", tmp_path, **plan(at)) as served:
            got = await served.client.runs.get("asked-to-wait")
            assert (got.state, got.wait.until) == (RunState.RUN_STATE_WAITING, waiting.until)
            await served.client.runs.cancel("asked-to-wait")
        assert at.requests == 1


@pytest.mark.parametrize(
    "answer", [Answer(429, code="rate_limit_exceeded"), Answer(402), Answer(429, code="insufficient_quota")]
)
async def test_a_spent_quota_is_not_hammered(answer: Answer) -> None:  # row 37
    async with vendor() as at:
        at.says(answer)
        async with daemons.serve(**plan(at)) as served:
            run = await served.client.run("hello")
            (waiting,) = only(await until_kind(run, "run_waiting"), "run_waiting")
            assert waiting.reason == WaitReason.WAIT_REASON_QUOTA
            assert at.requests == 1
            assert (await refused(served.client.chat.complete(chat()))).reason == "PROVIDER_QUOTA"
            assert at.requests == 2


async def test_a_quota_with_a_time_is_asked_for_once_more_and_then_the_run_ends() -> None:  # row 37
    async with vendor() as at:
        at.says(Answer(429, code="insufficient_quota", headers={"retry-after": "1"}))
        async with daemons.serve(**plan(at)) as served:
            events = await events_of(await served.client.run("hello"))
        assert at.requests == 2
        assert kinds(events)[-1] == "run_failed"
        assert "PROVIDER_QUOTA" in str(only(events, "run_failed")[0].error)
        first, second = (event for event in events if event.HasField("model_requested"))
        assert second.record_time.ToNanoseconds() - first.record_time.ToNanoseconds() >= 1e9
