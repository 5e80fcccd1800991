"""Metrics: what is counted is what happened, both ways out say it, labels are few, and nobody pays who reads none."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import urllib.request
from dataclasses import replace
from typing import Any

import pytest

from behest.errors import BehestError, RunCancelledError, RunFailedError
from behest.v1.chat_service_pb2 import Chat, CompleteChatRequest
from behest.v1.definition_pb2 import PermissionAction
from behest.v1.tool_service_pb2 import CallToolRequest
from behestd.components import TELEMETRY
from behestd.core.definition import Operator
from behestd.service import listen, telemetry
from behestd.telemetry.instruments import MAX_LABEL_CHARACTERS, MAX_SERIES, OTHER, Counter, Description, Histogram
from behestd.telemetry.prometheus import READERS
from behestd.telemetry.settings import Settings
from tests.daemons import Served, refused, serve
from tests.providers.conformance import user
from tests.runs.scenes import NON_IDEMPOTENT, OPEN, PURE, tools, until_kind
from tests.telemetry.collector import Collector, collecting
from tests.telemetry.scrape import address_of, check_histograms, scrape

READ = Settings(prometheus="127.0.0.1:0")
ABOUT = Description("a.thing", "s", "A thing.", ("of",))
RUNS, TOOLS = "behest_runs_ended_total", "behest_tool_duration_seconds"
MODELS, RPCS = "gen_ai_client_operation_duration_seconds", "rpc_server_call_duration_seconds"


def look_up(key: str) -> str:
    """Look a thing up."""
    if key == "nothing":
        raise ValueError("there is no such thing")
    return f"{key} is 42"


async def do_all_kinds(served: Served) -> None:
    """Do three runs that end well, one with two calls of a tool of which one fails, one that fails and one cancelled.

    And a chat and a call of a tool without a run, and a call that is refused.
    """
    client = served.client
    for order in ("hello", "again", '/tool look_up {"key": "it"} /tool look_up {"key": "nothing"} /next /say done'):
        await (await client.run(order)).result()
    with pytest.raises(RunFailedError):
        await (await client.run("/fail CREDENTIALS_REJECTED")).result()
    run = await client.run("/stall")
    await until_kind(run, "model_requested")
    await run.cancel()
    with pytest.raises(RunCancelledError):
        await run.result()
    await client.stubs.chat.CompleteChat(CompleteChatRequest(chat=Chat(model="scripted/echo", messages=[user("hi")])))
    call = CallToolRequest(tool_name="look_up", arguments_json='{"key": "it"}')
    assert [frame async for frame in client.stubs.tools.CallTool(call)]
    await refused(client.runs.get("nobody"))
    with pytest.raises(BehestError):
        await (await client.run("")).result()


async def test_prometheus_reads_what_happened() -> None:  # C145
    async with serve("sqlite", telemetry=READ, tools=tools((look_up, PURE)), operator=OPEN) as served:
        await do_all_kinds(served)
        found = await scrape(address_of(served))
        commits = served.daemon.log.store.statistics()

    assert found.value("behest_runs_created_total", behest_namespace="default") == 5
    for state, count in (("completed", 3), ("failed", 1), ("cancelled", 1), ("timed_out", 0)):
        assert found.value(RUNS, behest_run_state=state) == count
        assert found.value("behest_run_duration_seconds_count", behest_run_state=state) == count
    assert found.value("behest_runs_current") == 0
    assert found.value("behest_run_queue_duration_seconds_count") == 5
    # The run that stalls and the one that fails show nothing.
    assert found.value("behest_run_time_to_first_delta_seconds_count") == 3
    ended = {"gen_ai_request_model": "scripted/echo", "error_type": ""}
    assert found.value(f"{MODELS}_count", **ended) == 5, "three runs, one of them in two steps, and a chat"
    assert found.value(f"{MODELS}_count", error_type="PROVIDER_CREDENTIALS_REJECTED") == 1
    assert found.value(f"{MODELS}_count", error_type="cancelled") == 1
    assert found.value("gen_ai_client_token_usage_tokens_count", gen_ai_token_type="output") >= 5
    assert found.value(f"{TOOLS}_count", gen_ai_tool_name="look_up", error_type="") == 2
    assert found.value(f"{TOOLS}_count", gen_ai_tool_name="look_up", error_type="tool_error") == 1
    rpcs = {"rpc_method": "behest.v1.RunService/CreateRun", "rpc_response_status_code": "OK"}
    assert found.value(f"{RPCS}_count", **rpcs) == 5
    assert found.value("behest_rpc_failures_total", behest_reason="RUN_NOT_FOUND") == 1
    assert found.value("behest_rpc_failures_total", behest_reason="RUN_INPUT_REJECTED") == 1  # C065
    assert found.value("behest_log_commits_total") == commits.commits
    assert found.value("behest_log_commit_duration_seconds_count") == commits.commits
    assert found.value("behest_log_events_total") == commits.events
    assert found.value("process_open_fds") > 0
    assert check_histograms(found) >= 10
    assert "run_0" not in found.text, "no id of a run is a label"


async def test_what_goes_on_now_is_read_and_histograms_rise_while_it_does() -> None:
    asking = Operator(default_permission=PermissionAction.PERMISSION_ACTION_ASK)
    async with serve(telemetry=READ, tools=tools((look_up, NON_IDEMPOTENT)), operator=asking) as served:
        stalled = await served.client.run("/stall")
        await until_kind(stalled, "model_requested")
        waits = await served.client.run('/tool look_up {"key": "it"}')
        await until_kind(waits, "run_waiting")
        watching = asyncio.ensure_future(waits.result())
        before = await scrape(address_of(served))
        assert before.value("behest_runs_current", behest_run_state="running") == 1
        assert before.value("behest_runs_current", behest_run_state="waiting") == 1
        assert before.value("behest_approvals_pending") == 1
        for number in range(20):
            await (await served.client.run(f"hello {number}")).result()
        after = await scrape(address_of(served))
        watching.cancel()
        for name in ("behest_run_duration_seconds_bucket", f"{MODELS}_bucket"):
            for sample in before.samples(name):
                assert after.value(name, **sample.labels) >= sample.value
        assert after.value("behest_watchers") >= 1
        await stalled.cancel()


async def test_a_histogram_leads_to_a_trace() -> None:  # C145: exemplars
    async with collecting() as collector:
        settings = replace(READ, otlp=collector.address, has_metrics=False)
        async with serve(telemetry=settings) as served:
            await (await served.client.run("hello")).result()
            found = await scrape(address_of(served), is_open=True)
            plain = await scrape(address_of(served))
        spans = await collector.named("invoke_agent default", "chat scripted/echo")
    run = spans["invoke_agent default"]
    pointed = {
        name: [sample.exemplar.labels for sample in found.samples(name) if sample.exemplar is not None]
        for name in (
            "behest_run_duration_seconds_bucket",
            f"{MODELS}_bucket",
            "rpc_server_call_duration_seconds_bucket",
        )
    }
    assert pointed["behest_run_duration_seconds_bucket"] == [{"trace_id": run.trace_id, "span_id": run.span_id}]
    attempt = spans["chat scripted/echo"]
    assert pointed[f"{MODELS}_bucket"] == [{"trace_id": attempt.trace_id, "span_id": attempt.span_id}]
    assert pointed[f"{RPCS}_bucket"]
    assert run.trace_id not in plain.text


async def test_a_collector_gets_the_same_numbers() -> None:  # C145
    async with collecting() as collector:
        settings = Settings(otlp=collector.address, has_traces=False, headers={"x-key": "value"}, instance="one")
        async with serve(telemetry=settings, tools=tools((look_up, PURE)), operator=OPEN) as served:
            await do_all_kinds(served)
        # What was counted last goes out when the daemon ends.
        assert points(collector, "behest.runs.created") == {("default",): 5}
        ended = points(collector, "behest.runs.ended")
        assert ended[("default", "completed")] == 3
        assert ended[("default", "cancelled")] == 1
        durations = {point.attributes[0].value.string_value: point for point in data(collector, "behest.run.duration")}
        completed = durations["completed"]
        assert completed.count == sum(completed.bucket_counts) == 3
        assert len(completed.bucket_counts) == len(completed.explicit_bounds) + 1
        assert completed.sum > 0
        assert collector.metrics["behest.run.duration"].unit == "s"
        assert collector.metrics["behest.runs.created"].sum.is_monotonic
        assert collector.resource["service.name"] == "behestd"
        assert collector.resource["service.instance.id"] == "one"
        assert collector.headers[-1]["x-key"] == "value"
        assert not collector.spans


def data(collector: Collector, name: str) -> Any:
    """The points of a metric."""
    metric = collector.metrics[name]
    return getattr(metric, metric.WhichOneof("data")).data_points


def points(collector: Collector, name: str) -> dict[tuple[str, ...], float]:
    """The values of a metric by its attributes' values."""
    return {
        tuple(pair.value.string_value for pair in point.attributes): point.as_double or point.as_int
        for point in data(collector, name)
    }


async def test_a_collector_that_is_away_costs_no_run_anything_and_does_not_hold_up_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(telemetry, "CLOSE_SECONDS", 0.1)
    settings = Settings(otlp="http://127.0.0.1:9", metrics_seconds=0.05)
    async with serve(telemetry=settings) as served:
        for _ in range(5):
            await (await served.client.run("hello")).result()


async def test_metrics_are_read_while_the_event_loop_is_held_up() -> None:
    async with serve(telemetry=READ) as served:
        await (await served.client.run("hello")).result()
        read: list[bytes] = []

        def ask(address: str) -> None:
            with urllib.request.urlopen(f"http://{address}/metrics", timeout=30) as answer:
                read.append(answer.read())

        asking = threading.Thread(target=ask, args=(address_of(served),))
        asking.start()
        asking.join()  # On the loop, which does nothing else until the answer is here.
    assert b"behest_runs_created_total" in read[0]


async def test_an_address_that_is_taken_ends_the_start() -> None:
    async with serve(telemetry=READ) as served:
        with pytest.raises(listen.AddressUnusable):
            async with serve(telemetry=Settings(prometheus=address_of(served))):
                pass


async def test_readers_that_send_nonsense_hold_up_nobody() -> None:
    async with serve(telemetry=READ) as served:
        host, port = address_of(served).rsplit(":", 1)
        silent = [await asyncio.open_connection(host, int(port)) for _ in range(READERS - 2)]
        rude = await asyncio.open_connection(host, int(port))
        rude[1].write(b"\x00\xff\r\n" * 1000 + b"\r\n\r\n")
        found = await scrape(address_of(served))
        assert found.value("behest_watchers") == 0
        for _, writer in (*silent, rude):
            writer.close()


async def test_nothing_is_counted_for_nobody() -> None:
    async with serve() as served:
        found = served.daemon.lifecycle[TELEMETRY]
        assert type(served.daemon.house.listener).__name__ == "Silence"
        assert type(served.daemon.house.endpoints).__name__ == "Endpoints"
        assert type(served.daemon.rooms.calls).__name__ == "DirectCalls"
        assert (found.observers, found.interceptors, found.address) == ((), (), "")


_STARTED = """
import asyncio, sys
from behestd.daemon import Daemon
from behestd.plan import Plan
from behestd.planning import plan
from behestd.cli.serve import serve
from behestd.providers.catalog import snapshot
from behestd.providers.scripted import Scripted

async def main():
    models = snapshot([Scripted()], default_model="scripted/echo")
    async with Daemon(Plan(models=models, addresses=["127.0.0.1:0"], drain_seconds=0.1)):
        loaded = [name for name in sys.modules if name.split(".")[0] in ("opentelemetry", "prometheus_client")]
        print(loaded)

asyncio.run(main())
"""


def test_a_daemon_without_telemetry_loads_no_library_for_it() -> None:
    done = subprocess.run([sys.executable, "-c", _STARTED], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "[]"


def test_what_comes_beyond_the_bound_is_counted_as_other() -> None:
    counter, histogram = Counter(ABOUT), Histogram(ABOUT, (1.0,))
    for number in range(MAX_SERIES + 500):
        counter.add((f"model-{number}",))
        histogram.observe(0.5, (f"model-{number}",))
    assert len(counter.series) == len(histogram.series) == MAX_SERIES + 1
    assert counter.series[(OTHER,)] == 500
    assert sum(sum(each.counts) for each in histogram.series.values()) == MAX_SERIES + 500
    short = Counter(ABOUT)
    short.add(("x" * 10_000,))
    assert max(len(label) for labels in short.series for label in labels) == MAX_LABEL_CHARACTERS


@pytest.mark.parametrize(("value", "bucket"), [(0.0, 0), (1.0, 0), (1.5, 1), (2.0, 1), (2.1, 2)])
def test_a_value_on_a_bound_belongs_to_the_bucket_below(value: float, bucket: int) -> None:
    histogram = Histogram(ABOUT, (1.0, 2.0))
    histogram.observe(value, ("a",))
    assert [index for index, count in enumerate(histogram.series[("a",)].counts) if count] == [bucket]
