"""The port: time limits on any stream, a broken stream never complete, failures told as errors of a call."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import AsyncGenerator, Sequence

import pytest

from behest.v1.chat_service_pb2 import Chat, ChatDelta, ChatEnd
from behest.v1.embedding_service_pb2 import EmbedRequest, EmbedResponse
from behest.v1.error_reason_pb2 import ErrorReason
from behest.v1.model_pb2 import Model
from behest.v1.model_pb2 import Provider as ProviderInfo
from behestd.errors import Unauthenticated
from behestd.providers.failure import CLASSES, TRANSIENT, ProviderFailure, to_error
from behestd.providers.provider import Frame, ProviderTimeouts, complete, embed, guarded
from behestd.providers.secret import Secret

PIECE = Frame(deltas=[ChatDelta(text="a")])
END = Frame(end=ChatEnd(model="p/m"))


class Plan:
    """A provider that plays frames; a number is a wait, None waits for ever."""

    id = "p"

    def __init__(self, *steps: Frame | float | BaseException | None) -> None:
        self.steps = steps
        self.is_closed = False

    def describe(self) -> ProviderInfo:
        return ProviderInfo(id=self.id)

    def models(self) -> Sequence[Model]:
        return ()

    async def stream(self, chat: Chat) -> AsyncGenerator[Frame, None]:
        try:
            for step in self.steps:
                if isinstance(step, Frame):
                    yield step
                elif isinstance(step, BaseException):
                    raise step
                else:
                    await wait(step)
        finally:
            self.is_closed = True

    async def embed(self, request: EmbedRequest) -> EmbedResponse:
        await wait(None)
        raise AssertionError

    async def close(self) -> None: ...


async def wait(seconds: float | None) -> None:
    if seconds is None:
        await asyncio.get_running_loop().create_future()
    else:
        await asyncio.sleep(seconds)


async def frames(plan: Plan, **limits: float) -> list[Frame]:
    async with asyncio.timeout(30):
        return [frame async for frame in guarded(plan.stream(Chat()), ProviderTimeouts(**limits))]


async def refusal(plan: Plan, **limits: float) -> ProviderFailure:
    with pytest.raises(ProviderFailure) as caught:
        await frames(plan, **limits)
    assert plan.is_closed
    return caught.value


async def test_frames_pass_as_they_are_and_empty_ones_are_left_out() -> None:
    plan = Plan(Frame(), PIECE, Frame(), END, PIECE)
    assert await frames(plan) == [PIECE, END]
    assert plan.is_closed


async def test_a_stream_without_its_end_is_never_complete() -> None:
    failure = await refusal(Plan(PIECE))
    assert (failure.reason, failure.failure_class) == ("PROVIDER_STREAM_BROKEN", TRANSIENT)
    with pytest.raises(ProviderFailure):
        await complete(Plan(PIECE), Chat(), ProviderTimeouts())


# C022
@pytest.mark.parametrize(
    "plan,limits,limit",
    [
        (Plan(None), {"first_byte_seconds": 0.02}, "0.02"),
        (Plan(PIECE, None), {"stall_seconds": 0.03}, "0.03"),
        (Plan(*[PIECE, 0.01] * 100), {"total_seconds": 0.04}, "0.04"),
    ],
    ids=["first byte", "stall", "total"],
)
async def test_silence_beyond_a_limit_ends_the_attempt(plan: Plan, limits: dict[str, float], limit: str) -> None:
    failure = await refusal(plan, **limits)
    assert (failure.reason, failure.failure_class) == ("PROVIDER_TIMEOUT", TRANSIENT)
    assert failure.metadata["limitSeconds"] == limit


# C022: what ends a stream is silence; a stream that speaks may take any multiple of the stall limit.
async def test_each_frame_starts_the_stall_limit_again() -> None:
    plan = Plan(*[PIECE, 0.02, Frame(), 0.02] * 10, END)
    assert len(await frames(plan, stall_seconds=0.2, first_byte_seconds=0.2)) == 11
    assert ProviderTimeouts().total_seconds > 60


async def test_a_slow_reader_is_not_the_provider_s_silence() -> None:
    stream = guarded(Plan(PIECE, PIECE, END).stream(Chat()), ProviderTimeouts(stall_seconds=0.01))
    read = []
    async for frame in stream:
        read.append(frame)
        await asyncio.sleep(0.03)
    assert read == [PIECE, PIECE, END]


async def test_a_stream_that_swallows_the_cancellation_is_late_all_the_same() -> None:
    class Deaf(Plan):
        async def stream(self, chat: Chat) -> AsyncGenerator[Frame, None]:
            try:
                await wait(None)
            except asyncio.CancelledError:
                yield END
            finally:
                self.is_closed = True

    assert (await refusal(Deaf(), first_byte_seconds=0.01)).reason == "PROVIDER_TIMEOUT"
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_cancelling_the_reader_stays_a_cancellation() -> None:
    plan = Plan(PIECE, None)
    begun = asyncio.Event()

    async def read() -> None:
        async for _ in guarded(plan.stream(Chat()), ProviderTimeouts(stall_seconds=4)):
            begun.set()

    async with asyncio.timeout(30), asyncio.TaskGroup() as group:
        task = group.create_task(read())
        await begun.wait()
        task.cancel()
    assert task.cancelled()
    assert plan.is_closed


async def test_what_a_provider_raises_comes_through() -> None:
    failure = ProviderFailure("PROVIDER_QUOTA", "spent")
    assert await refusal(Plan(PIECE, failure)) is failure


async def test_embedding_has_the_total_limit() -> None:
    with pytest.raises(ProviderFailure) as caught:
        await embed(Plan(), EmbedRequest(), ProviderTimeouts(total_seconds=0.01))
    assert caught.value.reason == "PROVIDER_TIMEOUT"


def test_a_smaller_total_wins() -> None:
    assert ProviderTimeouts().within(5).total_seconds == 5
    assert ProviderTimeouts(total_seconds=5).within(50).total_seconds == 5


def test_every_provider_reason_of_the_contract_has_a_class_and_an_error() -> None:
    reasons = {name.removeprefix("ERROR_REASON_") for name in ErrorReason.keys() if "_PROVIDER_" in name}
    assert reasons == set(CLASSES)
    for reason in reasons:
        error = to_error(ProviderFailure(reason, "no", retry_after_seconds=2), "p/m")
        assert error.reason == reason
        assert error.metadata["model"] == "p/m"
        # C016
        assert not isinstance(error, Unauthenticated)


def test_a_secret_shows_itself_to_nobody() -> None:
    secret = Secret("sk-canary")
    assert "canary" not in f"{secret} {secret!r} {[secret]}"
    assert secret.reveal() == "sk-canary"
    assert not Secret("")
    with pytest.raises(TypeError):
        copy.copy(secret)
