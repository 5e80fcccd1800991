"""Failover in mid-stream: wherever a stream breaks, nobody ever sees text of two attempts in one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest

from behest.errors import BehestError
from behest.updates import Discarded
from behest.v1.chat_pb2 import FinishReason
from behest.v1.chat_service_pb2 import Chat, ChatDelta, ChatEnd
from behest.v1.delta_pb2 import Delta
from behest.v1.event_pb2 import Event
from behest.v1.message_pb2 import Message, Part, Role, TextPart
from behest.v1.usage_pb2 import Usage, UsageSource
from behestd.core.circuit import CircuitPolicy
from behestd.core.route import RoutePolicy
from behestd.providers.catalog import snapshot
from behestd.providers.failure import ProviderFailure
from behestd.providers.provider import Frame
from behestd.providers.scripted import Scripted
from tests import daemons
from tests.daemons import Served, serve
from tests.routing.test_circuit import chat
from tests.runs.scenes import updates_of

TOKENS = 24
NO_LIMITS = CircuitPolicy(failures=0, retries=0.0)
FAILURES = ("PROVIDER_UNAVAILABLE", "PROVIDER_STREAM_BROKEN", "PROVIDER_MALFORMED_OUTPUT", "PROVIDER_REQUEST_INVALID")
"""One that may work the next time, a stream without its end, nonsense, and one that only another model can mend."""


def words(name: str, attempt: int) -> list[str]:
    """What an attempt says, every word its own."""
    return [f"{name}{attempt}.{number} " for number in range(TOKENS)]


class Breaking(Scripted):
    """Says one token a frame, and breaks after as many as it is told: `breaks times position reason key`."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.attempts: dict[str, int] = {}

    async def stream(self, chat: Chat) -> AsyncGenerator[Frame, None]:
        times, position, reason, key = chat.messages[-1].parts[0].text.text.split()
        self.attempts[key] = attempt = self.attempts.get(key, 0) + 1
        breaks = self.id == "first" and attempt <= int(times)
        said = words(self.id, attempt)
        for word in said[: int(position)] if breaks else said:
            yield Frame(deltas=[ChatDelta(text=word)])
            await asyncio.sleep(0)
        if breaks and reason == "PROVIDER_STREAM_BROKEN":
            return
        if breaks:
            raise ProviderFailure(reason, "as the test said")
        message = Message(role=Role.ROLE_ASSISTANT, parts=[Part(text=TextPart(text="".join(said)))])
        yield Frame(
            end=ChatEnd(
                message=message,
                finish_reason=FinishReason.FINISH_REASON_STOP,
                usage=Usage(input_tokens=1, output_tokens=TOKENS),
                usage_source=UsageSource.USAGE_SOURCE_REPORTED,
            )
        )


def house() -> dict[str, object]:
    models = snapshot([Breaking("first"), Breaking("second")], aliases={"pair": "first/echo"}, default_model="pair")
    retries = RoutePolicy((), attempts_per_endpoint=2, base_seconds=0.001)
    return {"models": models, "fallbacks": {"pair": ["second/echo"]}, "retries": retries, "circuits": NO_LIMITS}


async def shown(served: Served, said: str) -> tuple[list[str], str]:
    """Follow a run as somebody's screen does: every text that stood on it, and the outcome."""
    screen, texts, final = "", [""], ""
    for update in await updates_of(served.client.stream(said), seconds=50):
        match update:
            case Delta():
                screen += update.text
            case Discarded():
                screen = ""
            case Event() if update.HasField("run_completed"):
                final = update.run_completed.output.text
        texts.append(screen)
    return texts, final


@pytest.mark.parametrize("reason", FAILURES)
async def test_a_stream_that_breaks_at_any_token_never_shows_text_of_two_attempts(reason: str) -> None:  # C021 N11
    # Once, so that the same model answers, and twice, so that the second one does.
    cases = [(times, position) for times in (1, 2) for position in range(TOKENS + 1)]
    async with daemons.serve(**house()) as served:
        seen = await asyncio.gather(
            *(shown(served, f"{times} {position} {reason} {times}x{position}") for times, position in cases)
        )
    whole = ["".join(words(name, attempt)) for name in ("first", "second") for attempt in (1, 2)]
    for (times, _), (texts, final) in zip(cases, seen, strict=True):
        stays = times == 1 and reason != "PROVIDER_REQUEST_INVALID"
        assert final == "".join(words("first", 2) if stays else words("second", 1))
        assert texts[-1] in ("", final) or final.startswith(texts[-1])
        assert all(any(answer.startswith(text) for answer in whole) for text in texts)
    assert any("first1." in text for texts, _ in seen for text in texts), "nothing was ever seen to be taken back"


@pytest.mark.parametrize("reason", FAILURES)
async def test_a_single_call_that_showed_a_piece_ends_with_its_failure_and_shows_nothing_else(
    reason: str,
) -> None:  # C021 N11
    async def follow(served: Served, position: int) -> tuple[str, str, str]:
        text, whole, failed = "", "", ""
        try:
            async for piece in served.client.chat.stream(chat(f"2 {position} {reason} at{position}", "pair")):
                if isinstance(piece, ChatEnd):
                    whole = piece.message.parts[0].text.text
                else:
                    text += piece.text
        except BehestError as error:
            failed = error.reason
        return text, whole, failed

    async with serve(**house()) as served:
        seen = await asyncio.gather(*(follow(served, position) for position in range(TOKENS + 1)))
    answer = "".join(words("second", 1))
    assert seen[0] == (answer, answer, "")
    for position, got in enumerate(seen[1:], 1):
        assert got == ("".join(words("first", 1)[:position]), "", reason)
