"""What tests of compaction share: daemons whose scripted model keeps facts, and short words for what sessions hold.

The scripted model `small` refuses what is longer than its window of 4,096 tokens, so a session that goes on has stayed
within it. Told `/recall`, it answers with the facts of the conversation: that is its summary.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from behest.v1.agent_pb2 import Agent
from behest.v1.definition_pb2 import Compaction, PermissionAction, Pruning
from behest.v1.event_pb2 import Event
from behest.v1.message_pb2 import Message
from behestd.core.definition import Operator
from tests import daemons
from tests.daemons import Served
from tests.runs.scenes import events_of, put_agent, text_of

SMALL = "scripted/small"
FILLER = "word " * 150
"""About 160 tokens, said and echoed by each turn: some ten turns fill the small window."""


@asynccontextmanager
async def serve(
    store: str = "memory", home: Path | None = None, *, pruning: Pruning | None = None, **policy: Any
) -> AsyncIterator[Served]:
    """A daemon whose conversations are summarised by their facts, unless the policy says otherwise."""
    overrides = {name: policy.pop(name) for name in ("tools", "clock", "models") if name in policy}
    operator = Operator(
        default_permission=PermissionAction.PERMISSION_ACTION_ALLOW,
        compaction=Compaction(**{"instructions": "/recall"} | policy),
        pruning=pruning or Pruning(),
    )
    async with daemons.serve(store, home, operator=operator, **overrides) as served:
        yield served


async def agent(served: Served, **fields: Any) -> str:
    """An agent on the small model."""
    await put_agent(served, Agent(**{"id": "small", "model": SMALL} | fields))
    return "small"


async def say(served: Served, session_id: str, said: str, **order: Any) -> list[Event]:
    """Have a run on a session to its end."""
    return await events_of(await served.client.run(said, session_id=session_id, **{"model": SMALL} | order))


async def begin(served: Served, said: str = "fact city = Bern", **order: Any) -> str:
    """A session with one run."""
    run = await served.client.run(said, **{"model": SMALL} | order)
    await events_of(run)
    return (await run.get()).session_id


async def fill(served: Served, session_id: str, turns: int, **order: Any) -> list[Event]:
    """Have turns that each take their part of the window. Gives the events of all."""
    return [
        event for number in range(turns) for event in await say(served, session_id, f"turn {number} {FILLER}", **order)
    ]


async def answer(served: Served, session_id: str, said: str, **order: Any) -> str:
    """What a run on a session answers."""
    async with asyncio.timeout(20):
        run = await served.client.run(said, session_id=session_id, **{"model": SMALL} | order)
        return (await run.result()).text


async def messages(served: Served, session_id: str, *, summaries: bool = False) -> list[Message]:
    """All messages of a session."""
    return [said async for said in served.client.sessions.messages(session_id, include_summaries=summaries)]


def summaries_of(found: list[Message]) -> list[str]:
    """The texts of the summaries among messages."""
    return [text_of(message) for message in found if message.summary_upto_message_id]
