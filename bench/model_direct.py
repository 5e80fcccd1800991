"""The daemon's own adapter without the daemon, in a process of its own: the yardstick of the models' bench.

python -m bench.model_direct URL WORDS CALLS, which prints what `bench.models` reads: a JSON object.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time

from behest.v1.chat_service_pb2 import Chat
from behest.v1.message_pb2 import Message, Part, Role, TextPart
from behest.v1.model_pb2 import Model, ModelCapabilities
from behestd.providers.openai import OpenAi, OpenAiSettings
from behestd.providers.provider import ProviderTimeouts, guarded
from bench.load import times
from bench.model_server import MODEL

CALLERS = (1, 64)
LONG_WORDS, LONG_CALLS = 2_000, 8
"""Answers whose pieces are counted, all at once."""
WARM_CALLS = 32


async def call(provider: OpenAi, words: int) -> float:
    """Read an answer to its end; gives the seconds until its first piece."""
    said = Message(role=Role.ROLE_USER, parts=[Part(text=TextPart(text=str(words)))])
    begun, first = time.perf_counter(), 0.0
    async for frame in guarded(provider.stream(Chat(model=f"direct/{MODEL}", messages=[said])), ProviderTimeouts()):
        if frame.deltas and not first:
            first = time.perf_counter() - begun
    return first


async def main(url: str, words: int, calls: int) -> None:
    """Measure, and print."""
    model = Model(id=f"direct/{MODEL}", capabilities=ModelCapabilities(chat=True, streaming=True))
    provider = OpenAi(OpenAiSettings(id="direct", base_url=url), [model])
    await times(lambda: call(provider, words), CALLERS[-1], WARM_CALLS)
    first = {str(callers): await times(lambda: call(provider, words), callers, calls) for callers in CALLERS}
    begun, cpu = time.perf_counter(), time.process_time()
    await times(lambda: call(provider, LONG_WORDS), LONG_CALLS, LONG_CALLS)
    seconds, cpu_seconds = time.perf_counter() - begun, time.process_time() - cpu
    await provider.close()
    print(json.dumps({"first": first, "seconds": seconds, "cpu_seconds": cpu_seconds}))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
