"""The section of telemetry: what makes no sense is refused by its key, and what is missing is named."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from behestd.config.source import ConfigInvalid, Origin
from behestd.errors import Unsupported
from behestd.planning import plan as planning
from behestd.telemetry.settings import Settings
from tests.daemons import serve


def settings(text: str, home: Path) -> Settings:
    """Read a section."""
    file = home / "behestd.toml"
    file.write_text(f"[telemetry]\n{text}\n")
    return planning.plan(Origin(file, {"HOME": str(home)}, ()).load()).telemetry


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("prometheus", '"unix:/run/metrics.sock"'),
        ("prometheus", '"9464"'),
        ("otlp", '"127.0.0.1:4317"'),
        ("otlp", '"http://127.0.0.1"'),
        ("otlp", '"http://127.0.0.1:4317/v1/traces"'),
        ("otlp", '"http://me:secret@127.0.0.1:4317"'),
        ("sampling", "1.5"),
        ("sampling", "nan"),
        ("metrics_seconds", "0.0"),
        ("otlp_headers", '{"Not A Header" = "x"}'),
        ("otlp_headers", '{token = "env:NOBODY_SET_THIS"}'),
    ],
)
def test_what_makes_no_sense_is_refused_by_its_key(key: str, value: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigInvalid) as caught:
        settings(f"{key} = {value}", tmp_path)
    assert f"telemetry.{key}" in str(caught.value)
    assert "secret" not in str(caught.value).replace("secrets", "")


def test_without_a_reader_nothing_is_counted_nor_traced(tmp_path: Path) -> None:
    bare = settings("", tmp_path)
    assert (bare.counts, bare.traces) == (False, False)
    sent = settings('otlp = "http://127.0.0.1:4317"\nmetrics = false', tmp_path)
    assert (sent.counts, sent.traces) == (False, True)
    read = settings('prometheus = "127.0.0.1:9464"', tmp_path)
    assert (read.counts, read.traces) == (True, False)


@pytest.mark.parametrize(
    ("asked", "library"),
    [
        (Settings(prometheus="127.0.0.1:0"), "prometheus_client"),
        (Settings(otlp="http://127.0.0.1:9"), "opentelemetry.sdk.trace"),
    ],
)
async def test_a_missing_extra_is_named(asked: Settings, library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for part in ("prometheus", "otlp", "spans"):
        monkeypatch.delitem(sys.modules, f"behestd.telemetry.{part}", raising=False)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(Unsupported) as caught:
        async with serve(telemetry=asked):
            pass
    assert caught.value.metadata["feature"] == "behestd[telemetry]"
