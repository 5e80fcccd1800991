"""A real process reads its configuration again: by SIGHUP, by a call, with words to the service manager."""

from __future__ import annotations

import json
import signal
import socket
from pathlib import Path

import grpc

from behest.v1.daemon_service_pb2 import GetConfigRequest, GetStatusRequest, ReloadRequest
from behest.v1.daemon_service_pb2_grpc import DaemonServiceStub
from tests.test_cli_behestd import SECONDS, Running, events_of, serving

CANARY = "canary-5512ab"


def settings(address: str) -> dict[str, tuple[str, str]]:
    """The configuration in force: values as JSON, with their sources."""
    with grpc.insecure_channel(address) as channel:
        told = DaemonServiceStub(channel).GetConfig(GetConfigRequest(), timeout=SECONDS).settings
    return {each.key: (each.value_json, each.source) for each in told}


def until(daemon: Running, event: str) -> dict[str, object]:
    """Read the daemon's log up to an event."""
    assert daemon.process.stderr is not None
    for line in daemon.process.stderr:
        daemon.lines.append(line.rstrip("\n"))
        if f'"{event}' in line:
            found: dict[str, object] = json.loads(line)
            return found
    raise AssertionError(daemon.lines)


def write(file: Path, text: str) -> None:
    """Write a configuration with a secret in it."""
    key = file.parent / "key"
    if not key.exists():
        key.write_text(CANARY)
        key.chmod(0o600)
    file.write_text(
        '[server]\nlisten = ["127.0.0.1:0"]\n[storage]\nkind = "memory"\n[log]\nformat = "json"\n'
        f'[providers.x]\nkind = "openai"\napi_key = "file:{key}"\nheaders = {{ x-team = "{CANARY}" }}\n' + text
    )


def test_a_process_reads_its_file_again_on_sighup_and_keeps_what_it_has_when_that_is_wrong(  # C135, C138
    tmp_path: Path,
) -> None:
    file = tmp_path / "behestd.toml"
    write(file, "[limits]\nactive_runs = 7\n")
    manager = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.bind(manager)
        channel.settimeout(SECONDS)

        def told(word: str) -> str:
            """Wait for a word to the service manager."""
            while word not in (text := channel.recv(4096).decode()):
                pass
            return text

        with serving(tmp_path, "--config", str(file), environ={"NOTIFY_SOCKET": manager}) as daemon:
            told("READY=1")
            assert settings(daemon.address)["limits.active_runs"] == ("7", str(file))

            write(file, "[limits]\nactive_runs = 8\n")
            daemon.process.send_signal(signal.SIGHUP)
            assert "MONOTONIC_USEC=" in told("RELOADING=1")
            told("READY=1")
            assert until(daemon, "configuration reloaded")["changed"] == "limits.active_runs"
            assert settings(daemon.address)["limits.active_runs"] == ("8", str(file))

            write(file, "[limits]\nactive_rums = 9\n")
            daemon.process.send_signal(signal.SIGHUP)
            told("RELOADING=1")
            assert "not reloaded" in told("READY=1")
            problems = until(daemon, "configuration not reloaded")["problems"]
            assert problems == f"{file}: limits.active_rums: unknown key, did you mean active_runs?"
            assert settings(daemon.address)["limits.active_runs"] == ("8", str(file))
            assert events_of(daemon.address)[-1] == "run_completed"
            assert daemon.end() == 0
    assert CANARY not in "\n".join(daemon.lines)


def test_a_call_reloads_and_no_answer_shows_a_secret(tmp_path: Path) -> None:  # C135, C138
    file = tmp_path / "behestd.toml"
    write(file, "")
    with serving(tmp_path, "--config", str(file)) as daemon, grpc.insecure_channel(daemon.address) as channel:
        stub = DaemonServiceStub(channel)
        write(file, "[limits]\nsession_queue = 2\n")
        told = stub.Reload(ReloadRequest(), timeout=SECONDS)
        assert (list(told.changed_keys), list(told.restart_keys)) == (["limits.session_queue"], [])
        shown = settings(daemon.address)
        assert shown["providers.x.headers.x-team"][0] == '"***"'
        assert shown["providers.x.api_key"][0] == f'"file:{tmp_path / "key"}"'
        status = stub.GetStatus(GetStatusRequest(), timeout=SECONDS)
        assert status.config_time.seconds > 0
        assert CANARY not in f"{told}{shown}{status}"
        assert daemon.end() == 0
    assert CANARY not in "\n".join(daemon.lines)
