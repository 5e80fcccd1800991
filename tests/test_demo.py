"""The demos are run as their users run them: with the built-in model, and with one behind the OpenAI interface."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.demo import PATTERN, ROOT
from tests.providers.replay import Reply, events, replaying


async def demo(directory: Path, **env: str) -> str:
    """Run the demo over a directory, and return what it prints when it succeeds."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OPENAI_")}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.demo", str(directory)),
        cwd=ROOT,
        env={**environment, **env},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    async with asyncio.timeout(50):
        output, _ = await process.communicate()
    story = output.decode()
    assert process.returncode == 0, story
    assert story.splitlines()[-1] == "demo: ok"
    return story


def files(directory: Path) -> Path:
    """Put two files into a directory, each with a heading."""
    (directory / "sub").mkdir()
    (directory / "sub" / "notes.md").write_text("# Notes\n\nfirst\n")
    (directory / "plain.txt").write_text("# Plain\n")
    return directory


def answer(delta: Mapping[str, object], reason: str) -> Reply:
    """Stream an answer as an OpenAI-compatible server does."""
    usage = {"prompt_tokens": 20, "completion_tokens": 5, "total_tokens": 25}
    common = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "some-model"}
    choice = {"index": 0, "delta": {"role": "assistant", **delta}, "finish_reason": None}
    end = {"index": 0, "delta": {}, "finish_reason": reason}
    return events(
        {**common, "choices": [choice]},
        {**common, "choices": [end]},
        {**common, "choices": [], "usage": usage},
        "[DONE]",
    )


def call(name: str, **arguments: object) -> Reply:
    """Call one tool."""
    function = {"name": name, "arguments": json.dumps(arguments)}
    return answer(
        {"tool_calls": [{"index": 0, "id": f"call_{name}", "type": "function", "function": function}]}, "tool_calls"
    )


async def test_the_demo_shows_the_main_job_over_the_files_of_a_directory(tmp_path: Path) -> None:
    # C024, C042, C045, C080, C083, C085
    story = await demo(files(tmp_path))
    assert "checked: 2 files are there, 2 hits stand in their files" in story
    assert "(attempt 2)" in story


async def test_with_a_key_the_demo_asks_the_model_of_that_key(tmp_path: Path) -> None:
    said = answer({"content": "Two files, two headings."}, "stop")
    search = call("search", pattern=PATTERN, limit=3)
    async with replaying(call("count", what="files"), search, said, search, said) as server:
        story = await demo(
            files(tmp_path),
            OPENAI_API_KEY="not-a-real-key",
            OPENAI_BASE_URL=server.base_url,
            OPENAI_MODEL="some-model",
        )
    assert "of openai/some-model" in story
    assert "Two files, two headings." in story
    assert "not-a-real-key" not in story
    assert [asked.headers["authorization"] for asked in server.asked] == ["Bearer not-a-real-key"] * 5
