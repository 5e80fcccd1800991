"""The processes that a benchmark starts: a daemon with SQLite on a fresh directory, and a bare server beside it."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Process:
    """A server that was started: where it listens, its pid, and how long it took until it was ready."""

    address: str
    pid: int
    start_seconds: float

    def memory_bytes(self) -> int:
        """Resident memory."""
        pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def cpu_seconds(self) -> float:
        """Processor time used so far, user and system."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def started(*command: str, env: dict[str, str] | None = None) -> Iterator[Process]:
    """Run a server that writes its address to the descriptor behind `--ready-fd`; stop it in the end."""
    read_end, write_end = os.pipe()
    begun = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, *command, "--ready-fd", str(write_end)],
        pass_fds=(write_end,),
        stderr=subprocess.DEVNULL if not os.environ.get("BENCH_STDERR") else None,
        env={**os.environ, **(env or {})},
    )
    os.close(write_end)
    try:
        with os.fdopen(read_end) as pipe:
            address = pipe.readline().strip()
        if not address:
            raise RuntimeError(f"{command[1]} did not become ready")
        yield Process(address, process.pid, time.perf_counter() - begun)
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def daemon(*flags: str) -> Iterator[Process]:
    """A behestd with SQLite on a directory of its own."""
    with tempfile.TemporaryDirectory(prefix="behest-bench-") as folder:
        arguments = ("-m", "behestd", "serve", "--listen", "127.0.0.1:0", "--data-dir", f"{folder}/data")
        with started(*arguments, "--log-level", "warning", *flags) as process:
            yield process


@contextmanager
def bare(frames: list[bytes]) -> Iterator[Process]:
    """A grpc.aio server that answers StreamRun with these frames and no work behind it, and GetRun with the first."""
    with tempfile.NamedTemporaryFile(prefix="behest-bench-", suffix=".frames") as file:
        file.write(b"".join(len(frame).to_bytes(4) + frame for frame in frames))
        file.flush()
        with started("-m", "bench.bare", file.name) as process:
            yield process
