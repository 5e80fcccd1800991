"""What docs/telemetry.md shows is so: its settings are taken, its tables are those of the code."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import pytest

from behest.v1.chat_service_pb2 import Chat, CompleteChatRequest
from behest.v1.embedding_service_pb2 import EmbedRequest
from behest.v1.run_service_pb2 import CreateRunRequest
from behestd.components import TELEMETRY
from behestd.config.source import Origin
from behestd.planning import plan as planning
from behestd.telemetry.instruments import MAX_SERIES, Counter, Gauge, Instrument, Total
from behestd.telemetry.logs import Logs
from behestd.telemetry.settings import Settings
from tests.daemons import serve
from tests.providers.conformance import user
from tests.reasoning.house import said, simple
from tests.runs.scenes import OPEN, PURE, events_of, tools
from tests.telemetry.collector import collecting

GUIDE = (Path(__file__).resolve().parents[2] / "docs" / "telemetry.md").read_text()
SHOWN = re.findall(r"^```toml\n(.*?)^```", GUIDE, re.MULTILINE | re.DOTALL)


def table_of(instruments: Iterable[Instrument]) -> str:
    """Write the table of metrics."""
    rows = []
    for each in instruments:
        kind = "gauge" if isinstance(each, Gauge) else "counter" if isinstance(each, Counter | Total) else "histogram"
        about = each.about
        labels = ", ".join(f"`{label}`" for label in about.labels)
        rows.append(f"| `{about.name}` | {kind} | {about.unit} | {labels} | {about.text} |\n")
    return "".join(rows)


async def test_the_table_of_metrics_is_what_is_counted() -> None:
    async with serve(telemetry=Settings(prometheus="127.0.0.1:0"), logs=Logs(format="json", level="info")) as served:
        expected = table_of(served.daemon.lifecycle[TELEMETRY].instruments)
    shown = "".join(re.findall(r"^\| `[a-z_.]+` \| (?:counter|gauge|histogram) .*\n", GUIDE, re.MULTILINE))
    assert shown == expected, expected
    assert f"Beyond {MAX_SERIES} series" in GUIDE


@pytest.mark.parametrize("shown", SHOWN)
def test_the_settings_that_are_shown_are_taken(shown: str, tmp_path: Path) -> None:
    file = tmp_path / "behestd.toml"
    file.write_text(shown)
    loaded = Origin(file, {"HOME": str(tmp_path), "COLLECTOR_TOKEN": "Bearer a"}, ()).load()
    made = planning.plan(loaded).telemetry
    assert made.prometheus == "127.0.0.1:9464" or made.otlp == "http://127.0.0.1:4317"
    if made.otlp:
        assert (made.sampling, dict(made.headers)) == (0.1, {"authorization": "Bearer a"})
        assert "Bearer" not in repr(made)


async def test_the_table_of_spans_is_what_is_recorded() -> None:
    def look_up(key: str) -> str:
        """Look a thing up."""
        return f"{key} is 42"

    async with collecting() as collector:
        settings = Settings(otlp=collector.address, has_metrics=False)
        async with serve(telemetry=settings, tools=tools((look_up, PURE)), operator=OPEN) as served:
            await (await served.client.run('/tool look_up {"key": "it"} /next /say done')).result()
            made = await served.client.stubs.runs.CreateRun(CreateRunRequest(spec=said(graph=simple())))
            await events_of(served.client.watch(made.run.id))
            chat = Chat(model="scripted/echo", messages=[user("hi")])
            await served.client.stubs.chat.CompleteChat(CompleteChatRequest(chat=chat))
            await served.client.stubs.embeddings.Embed(EmbedRequest(model="scripted/embed", inputs=["a"]))
        found = {re.sub(r"^/behest\.v1\..*", "/", span.name.split()[0]) for span in collector.spans}
    shown = {
        name.split("/")[0] or "/" for name in re.findall(r"^\| `([^` |]+)", GUIDE, re.MULTILINE) if "." not in name
    }
    assert found == (shown - {""}) | {"/"}
