"""What docs/tool-servers.md shows of each method with grpcurl is what happens, with grpcurl and with `buf curl`."""

from __future__ import annotations

import asyncio
import json
import re
import shlex
import sys
from asyncio.subprocess import PIPE
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.broken_server import serving
from tests.test_grpcurl import BUILD_SECONDS, documents, grpcurl

ROOT = Path(__file__).resolve().parent.parent.parent
DOCUMENT = ROOT / "docs" / "tool-servers.md"
ADDRESS = "127.0.0.1:7801"
SECONDS = 30.0

Command = list[str]


@dataclass(frozen=True)
class Shown:
    """A command of the document, and what is printed under it. One in the background ends when its time comes."""

    command: Command
    output: str
    is_background: bool

    @property
    def method(self) -> str:
        """The method that is called."""
        return self.command[-1].rpartition("/")[2]


def transcript(text: str) -> list[Shown]:
    """Read the commands and outputs of a document."""
    consoles = re.findall(r"^```console\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    found = []
    for shown in "".join(consoles).replace("\\\n", " ").split("$ grpcurl ")[1:]:
        line, _, output = shown.partition("\n")
        words = shlex.split("grpcurl " + line)
        is_background = words[-1] == "&"
        found.append(Shown(words[:-1] if is_background else words, output, is_background))
    return found


def of_grpcurl(path: str) -> Callable[[Command], Command]:
    """Say a command to the grpcurl at a path."""
    return lambda command: [path, *command[1:]]


def of_buf(command: Command) -> Command:
    """Say a command in the words of `buf curl`."""
    data, (address, method) = command[command.index("-d") + 1], command[-2:]
    curl = [str(Path(sys.executable).parent / "buf"), "curl", "--schema", "proto"]
    return [*curl, "--protocol", "grpc", "--http2-prior-knowledge", "-d", data, f"http://{address}/{method}"]


@pytest.fixture(params=["grpcurl", "buf curl"])
def said(request: pytest.FixtureRequest) -> Callable[[Command], Command]:
    """How a command is made one for the tool that is there."""
    path, reason = grpcurl() if request.param == "grpcurl" else ("", "")
    if reason:
        request.config.get_terminal_writer().line(f"grpcurl: {reason}; buf curl takes its place")
    return of_grpcurl(path) if path else of_buf


def told(output: str, errors: str) -> Any:
    """Read what a call printed: documents, or code and message of its error."""
    if output.strip():
        return documents(output)
    if "Code:" in errors:
        code, message = (re.search(rf"{word}: (\S+)", errors) for word in ("Code", "Message"))
        assert code is not None and message is not None
        return code[1].lower(), message[1]
    error = json.loads(errors[errors.index("{") :])
    return error["code"].replace("_", ""), error["message"]


def expected(shown: Shown) -> Any:
    """Read what the document says that a call prints."""
    return told("", shown.output) if shown.output.startswith("ERROR") else documents(shown.output)


@pytest.mark.timeout(BUILD_SECONDS + 120)
async def test_the_transcript_of_each_method_is_what_happens(said: Callable[[Command], Command]) -> None:  # N14
    every = transcript(DOCUMENT.read_text())
    assert {shown.method for shown in every} == {"ListTools", "GetTool", "CallTool", "GetCallStatus", "CancelCall"}
    background: list[tuple[Shown, asyncio.subprocess.Process, bytes]] = []
    async with serving() as address, asyncio.timeout(SECONDS * 3):
        for shown in every:
            here = [address if word == ADDRESS else word for word in shown.command]
            process = await asyncio.create_subprocess_exec(*said(here), cwd=ROOT, stdout=PIPE, stderr=PIPE)
            if shown.is_background:
                assert process.stdout is not None
                # Its first frame: from here on it runs.
                background.append((shown, process, await process.stdout.readline()))
                continue
            output, errors = await process.communicate()
            assert told(output.decode(), errors.decode()) == expected(shown), shown.command
        for shown, process, first in background:
            output, errors = await process.communicate()
            frames = documents((first + output).decode())
            assert (frames[0], frames[-1]) == (expected(shown)[0], expected(shown)[-1]), errors.decode()


def test_every_reason_of_the_document_is_one_of_the_contract() -> None:
    reasons = set(re.findall(r"\| ((?:TOOL|AUTH)_[A-Z_]+) \|", DOCUMENT.read_text()))
    known = (ROOT / "proto" / "behest" / "v1" / "error_reason.proto").read_text()
    assert reasons and all(f"ERROR_REASON_{reason} =" in known for reason in reasons)
