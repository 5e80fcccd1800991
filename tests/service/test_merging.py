"""Frames of an answer on their way to a client: what comes while one is sent goes with the next."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest

from behest.v1.chat_service_pb2 import ChatDelta, ChatEnd
from behestd.errors import BehestError, Unavailable, WatchStalled
from behestd.providers.provider import Frame
from behestd.runtime.merging import LIMIT_PIECES, forward


def piece(text: str) -> Frame:
    """A frame of one piece."""
    return Frame(deltas=[ChatDelta(text=text)])


async def answer(*frames: Frame, failure: BehestError | None = None) -> AsyncGenerator[Frame, None]:
    """Frames that are all there at once."""
    for frame in frames:
        yield frame
    if failure is not None:
        raise failure


def said(frames: list[Frame]) -> list[str]:
    """What the pieces of frames say."""
    return [delta.text for frame in frames for delta in frame.deltas]


async def test_what_comes_while_a_frame_is_sent_goes_with_the_next_in_order() -> None:
    words = [str(number) for number in range(100)]
    sent: list[Frame] = []

    async def send(frame: Frame) -> None:
        sent.append(frame)
        for _ in range(5):
            await asyncio.sleep(0)

    await forward(answer(*map(piece, words), Frame(end=ChatEnd(model="m"))), send)

    assert said(sent) == words
    assert len(sent) <= 2
    assert [frame.end.model for frame in sent if frame.HasField("end")] == ["m"]
    assert sent[-1].HasField("end")


async def test_a_piece_is_sent_before_the_next_one_comes() -> None:
    sent: list[Frame] = []
    is_sent = asyncio.Event()

    async def slow() -> AsyncGenerator[Frame, None]:
        yield piece("first")
        await is_sent.wait()
        yield piece("second")

    async def send(frame: Frame) -> None:
        sent.append(frame)
        is_sent.set()

    async with asyncio.timeout(30):
        await forward(slow(), send)

    assert [said([frame]) for frame in sent] == [["first"], ["second"]]


async def test_a_failure_comes_after_what_was_said_before_it() -> None:
    sent: list[Frame] = []

    async def send(frame: Frame) -> None:
        sent.append(frame)

    with pytest.raises(Unavailable):
        await forward(answer(piece("half"), failure=Unavailable("PROVIDER_UNAVAILABLE", "gone")), send)

    assert said(sent) == ["half"]


async def test_a_client_that_does_not_read_ends_the_reading() -> None:
    async def send(frame: Frame) -> None:
        raise WatchStalled(0)

    async def endless() -> AsyncGenerator[Frame, None]:
        while True:
            yield piece("more")
            await asyncio.sleep(0)

    async with asyncio.timeout(30), aclosing(endless()) as frames:
        with pytest.raises(WatchStalled):
            await forward(frames, send)


async def test_no_more_is_read_than_may_wait() -> None:
    read = 0
    may_send = asyncio.Event()

    async def counted() -> AsyncGenerator[Frame, None]:
        nonlocal read
        for _ in range(3 * LIMIT_PIECES):
            read += 1
            yield piece("x")

    async def send(frame: Frame) -> None:
        if not may_send.is_set():
            for _ in range(20):
                await asyncio.sleep(0)
            assert read <= 2 * LIMIT_PIECES, "what is being sent, and what waits"
            may_send.set()

    async with asyncio.timeout(30):
        await forward(counted(), send)

    assert read == 3 * LIMIT_PIECES
