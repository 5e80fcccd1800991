"""Benchmarks of model calls through the daemon, beside the same adapter called directly: first piece, pieces, CPU.

The model is a server of the OpenAI interface in a process of its own, which answers at once. What a caller waits for
the first piece, how many pieces a second eight answers bring, and what they cost, by StreamRun and by StreamChat.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from itertools import product

import grpc

from behest.v1 import chat_service_pb2 as chat
from behest.v1 import run_service_pb2 as pb
from behest.v1.chat_service_pb2_grpc import ChatServiceStub
from behest.v1.message_pb2 import Message, Role
from behest.v1.run_service_pb2_grpc import RunServiceStub
from bench.figures import Figures
from bench.load import OPTIONS, order, times
from bench.model_direct import CALLERS, LONG_CALLS, LONG_WORDS, WARM_CALLS
from bench.model_server import MODEL, WORD
from bench.processes import Process, daemon, started

WORDS = 8
"""Of an answer whose first piece is waited for."""
SHARES = (0.5, 0.99)
WAYS = ("run", "chat")
_PIECES = LONG_CALLS * LONG_WORDS
_CONFIG = """
[providers.bench]
kind = "openai"
base_url = "{url}"
models = [{{ name = "{model}", input_micro_usd = 0, output_micro_usd = 0 }}]

[models]
default = "bench/{model}"
"""

Call = Callable[[int], Awaitable[float]]
"""Reads an answer of so many words to its end, and gives the seconds until its first piece."""


@contextmanager
def served() -> Iterator[tuple[Process, str]]:
    """A daemon whose default model is the server's, and the server's URL."""
    with started("-m", "bench.model_server") as server, tempfile.NamedTemporaryFile("w", suffix=".toml") as file:
        url = f"http://{server.address}/v1"
        file.write(_CONFIG.format(url=url, model=MODEL))
        file.flush()
        with daemon("--config", file.name) as ours:
            yield ours, url


@asynccontextmanager
async def calls(address: str) -> AsyncIterator[dict[str, Call]]:
    """The ways through the daemon, over a connection of their own."""
    async with grpc.aio.insecure_channel(address, options=OPTIONS) as channel:
        await asyncio.wait_for(channel.channel_ready(), 10)
        runs, chats = RunServiceStub(channel), ChatServiceStub(channel)

        async def run(words: int) -> float:
            begun, first, size = time.perf_counter(), 0.0, 0
            async for frame in runs.StreamRun(pb.StreamRunRequest(spec=order(str(words)))):
                if frame.deltas and not first:
                    first = time.perf_counter() - begun
                size += sum(len(delta.text) for delta in frame.deltas)
            return checked(first, size, words)

        async def single(words: int) -> float:
            said = Message(role=Role.ROLE_USER, parts=order(str(words)).input)
            request = chat.StreamChatRequest(chat=chat.Chat(model=f"bench/{MODEL}", messages=[said]))
            begun, first, size = time.perf_counter(), 0.0, 0
            async for frame in chats.StreamChat(request):
                if frame.deltas and not first:
                    first = time.perf_counter() - begun
                size += sum(len(delta.text) for delta in frame.deltas)
            return checked(first, size, words)

        yield {"run": run, "chat": single}


def checked(first: float, size: int, words: int) -> float:
    """The seconds until the first piece of an answer that came whole. Raises RuntimeError for another one."""
    if size != words * len(WORD):
        raise RuntimeError(f"{size} characters came of {words * len(WORD)}")
    return first


@dataclass(frozen=True, slots=True)
class Direct:
    """What the adapter does in a process of its own: seconds to the first piece by callers, and of all long answers."""

    first: dict[str, list[float]]
    seconds: float
    cpu_seconds: float


def direct(url: str, count: int) -> Direct:
    """Measure the adapter in a process of its own."""
    command = [sys.executable, "-m", "bench.model_direct", url, str(WORDS), str(count)]
    return Direct(**json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))


@dataclass(slots=True)
class Found:
    """What the rounds found: the best figure of each name, and all ratios."""

    best: dict[str, float] = field(default_factory=dict)
    ratios: dict[str, list[float]] = field(default_factory=dict)

    def note(self, name: str, value: float, better: Callable[[float, float], float] = min) -> None:
        """Keep a figure if it is the best of its name."""
        self.best[name] = better(value, self.best.get(name, value))

    def ratio(self, name: str, value: float) -> None:
        """Keep a ratio."""
        self.ratios.setdefault(name, []).append(value)

    def first(self, way: str, callers: int, ascending: Sequence[float]) -> None:
        """Keep what callers wait for the first piece."""
        for share in SHARES:
            self.note(_waited(way, callers, share), _at(ascending, share) * 1000)

    def tell(self, figures: Figures) -> None:
        """Print everything, with what the daemon adds to the wait for the first piece."""
        for name, value in sorted(self.best.items()):
            figures.note(name, value)
        for way, callers, share in product(WAYS, CALLERS, SHARES):
            added = self.best[_waited(way, callers, share)] - self.best[_waited("direct", callers, share)]
            figures.note(f"added by the daemon: {_waited(way, callers, share)}", added)
        for name, values in sorted(self.ratios.items()):
            figures.ratio(name, values)


async def through(figures: Figures, rounds: int, count: int) -> None:
    """Everything, in turns: the yardstick, then each way through the daemon. A figure is the best of all rounds."""
    found = Found()
    with served() as (ours, url):
        async with calls(ours.address) as ways:
            for way in ways.values():
                await times(lambda way=way: way(WORDS), CALLERS[-1], WARM_CALLS)
            for _ in range(rounds):
                plain = await asyncio.to_thread(direct, url, count)
                for callers in CALLERS:
                    found.first("direct", callers, plain.first[str(callers)])
                found.note("direct: pieces/s", _PIECES / plain.seconds, max)
                found.note("direct: CPU ms a 1,000 pieces", plain.cpu_seconds / _PIECES * 1e6)
                for name, way in ways.items():
                    for callers in CALLERS:
                        first = await times(lambda way=way: way(WORDS), callers, count)
                        found.first(name, callers, first)
                        ratio = _at(plain.first[str(callers)], 0.5) / _at(first, 0.5)
                        found.ratio(f"first_piece_direct_vs_{name}_{callers}", ratio)
                    begun, cpu = time.perf_counter(), ours.cpu_seconds()
                    await times(lambda way=way: way(LONG_WORDS), LONG_CALLS, LONG_CALLS)
                    seconds, cpu_seconds = time.perf_counter() - begun, ours.cpu_seconds() - cpu
                    found.note(f"{name}: pieces/s", _PIECES / seconds, max)
                    found.note(f"{name}: CPU ms a 1,000 pieces", cpu_seconds / _PIECES * 1e6)
                    found.ratio(f"pieces_{name}_vs_direct", plain.seconds / seconds)
    found.tell(figures)


def _waited(way: str, callers: int, share: float) -> str:
    return f"{way}: first piece p{share * 100:.0f} ms, {callers} callers"


def _at(ascending: Sequence[float], share: float) -> float:
    return ascending[int(len(ascending) * share)]
