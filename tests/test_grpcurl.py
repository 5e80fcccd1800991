"""What the README shows with grpcurl works to the letter, and with `buf curl` as well.

grpcurl is built by the Go toolchain where there is one, once, into `.cache/bin`; where it cannot be had, that is said.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import descriptor_pool
from google.protobuf.descriptor_pb2 import FileDescriptorProto

from behestd.service.reflection import json_name, pool_of
from tests.daemon_process import running

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
ADDRESS = "127.0.0.1:7717"
VERSION = "1.9.3"
MODULE = f"github.com/fullstorydev/grpcurl/cmd/grpcurl@v{VERSION}"
BUILD_SECONDS = 300

Command = list[str]


def commands(readme: str) -> list[Command]:
    """Read the grpcurl commands of a document, split as a shell splits them."""
    fences = re.findall(r"^```(\w*)\n(.*?)^```", readme, re.MULTILINE | re.DOTALL)
    shown = [text for language, text in fences if language in ("", "sh", "console", "bash")]
    lines = "\n".join(shown).replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True) for line in lines if line.startswith("grpcurl ")]


def grpcurl() -> tuple[str, str]:
    """Find or build grpcurl: its path, empty with the reason when it cannot be had."""
    path = ROOT / ".cache" / "bin" / f"grpcurl-{VERSION}"
    if path.exists():
        return str(path), ""
    go = shutil.which("go")
    if go is None:
        return "", "there is no Go toolchain"
    folder = path.parent / f"build-{os.getpid()}"
    folder.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "GOBIN": str(folder)}
    try:
        subprocess.run([go, "install", MODULE], env=environment, check=True, capture_output=True, timeout=BUILD_SECONDS)
        (folder / "grpcurl").replace(path)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        return "", f"{MODULE} could not be built: {error}"
    finally:
        shutil.rmtree(folder)
    return str(path), ""


def buf(command: Command) -> Command:
    """Say a grpcurl command in the words of `buf curl`."""
    words = [word for word in command[1:] if word != "-plaintext"]
    data = []
    if "-d" in words:
        at = words.index("-d")
        data = words[at : at + 2]
        del words[at : at + 2]
    address, verb = words[0], words[1]
    curl = [str(Path(sys.executable).parent / "buf"), "curl", "--protocol", "grpc", "--http2-prior-knowledge"]
    match verb:
        case "list":
            return [*curl, "--list-services", f"http://{address}"]
        case "describe":
            return [*curl, "--list-methods", f"http://{address}"]
        case _:
            return [*curl, *data, f"http://{address}/{verb}"]


@pytest.fixture(params=["grpcurl", "buf curl"])
def said(request: pytest.FixtureRequest) -> Callable[[Command], Command]:
    """How a command of the README is made one for the tool that is there."""
    if request.param == "buf curl":
        return buf
    path, reason = grpcurl()
    if reason:
        request.config.get_terminal_writer().line(f"grpcurl: {reason}; buf curl takes its place")
        return buf
    return lambda command: [path, *command[1:]]


async def output(command: Command) -> str:
    """Run a command, which must succeed, and return what it prints."""
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(20):
        stdout, stderr = await process.communicate()
    assert process.returncode == 0, stderr.decode()
    return stdout.decode()


def documents(text: str) -> list[dict[str, Any]]:
    """Read the JSON documents that stand one behind the other."""
    found, rest = [], text.strip()
    while rest:
        document, end = json.JSONDecoder().raw_decode(rest)
        found.append(document)
        rest = rest[end:].strip()
    return found


@pytest.mark.timeout(BUILD_SECONDS + 60)
async def test_the_commands_of_the_readme_list_describe_and_stream_a_run(
    said: Callable[[Command], Command], tmp_path: Path
) -> None:  # C042
    shown = commands(README.read_text())
    assert {"list", "describe", "behest.v1.RunService/StreamRun"} <= {word for each in shown for word in each}
    async with running(tmp_path) as daemon:
        printed: dict[str, str] = {}
        for command in shown:
            verb = command[command.index(ADDRESS) + 1]
            here = [daemon.address if word == ADDRESS else word for word in command]
            printed[verb] = printed.get(verb, "") + await output(said(here))
    assert {"behest.v1.RunService", "grpc.health.v1.Health"} <= set(printed["list"].split())
    assert "StreamRun" in printed["describe"]
    frames = documents(printed["behest.v1.RunService/StreamRun"])
    events = [event for frame in frames for event in frame.get("events", ())]
    assert [int(event["sequence"]) for event in events] == list(range(1, len(events) + 1))
    assert events[-1]["runCompleted"]["output"]["text"]


@pytest.mark.timeout(BUILD_SECONDS + 60)
async def test_a_field_is_known_by_its_name_and_by_its_json_name(
    said: Callable[[Command], Command], tmp_path: Path
) -> None:
    method = "behest.v1.RunService/CreateRun"
    spec = '"spec": {"input": [{"text": {"text": "hello"}}]}'
    async with running(tmp_path) as daemon:
        told = []
        for field in ("request_id", "requestId"):
            data = f'{{"{field}": "the-same", {spec}}}'
            shown = await output(said(["grpcurl", "-plaintext", "-d", data, daemon.address, method]))
            told += documents(shown)
    assert told[0]["run"]["createTime"]
    assert [run.get("replayed", False) for run in told] == [False, True]
    assert len({run["run"]["id"] for run in told}) == 1


def test_each_field_that_reflection_shows_has_the_json_name_that_the_compiler_gives_it() -> None:
    pool = pool_of(["behest.v1.RunService", "behest.v1.ToolService"])
    shown = FileDescriptorProto()
    pool.FindFileByName("behest/v1/run_service.proto").CopyToProto(shown)
    fields = [field for message in shown.message_type for field in message.field]
    default = descriptor_pool.Default().FindFileByName(shown.name)
    known = {
        (message.name, field.name): field.json_name
        for message in default.message_types_by_name.values()
        for field in message.fields
    }
    assert len(fields) == len(known)
    for message in shown.message_type:
        for field in message.field:
            assert field.HasField("json_name")
            assert field.json_name == known[message.name, field.name]
    assert [json_name(name) for name in ("run_id", "a__b", "_x", "part_1a", "id")] == [
        "runId",
        "aB",
        "X",
        "part1a",
        "id",
    ]


def test_commands_are_read_from_fences_only() -> None:
    text = "grpcurl no\n```sh\nls\ngrpcurl -d '{\"a\": 1}' \\\n  host s/M # why\n```\n`grpcurl no`\n"
    assert commands(text) == [["grpcurl", "-d", '{"a": 1}', "host", "s/M"]]
