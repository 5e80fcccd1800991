"""What every client does with a real daemon, in every language: it orders, follows over restarts and cancels."""

from __future__ import annotations

import signal
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from behest.client import Client
from tests.daemon_process import running
from tests.interop.common.languages import BUILD_SECONDS, LANGUAGES, Language, Program, program, told
from tests.systemd.manager import listening

pytestmark = pytest.mark.timeout(BUILD_SECONDS + 180)

WATCHES = 6
CONFIG = "[limits]\ndrain_seconds = 0.1\n"
WORDS = 120
SLOW = f"/delay 40 /words {WORDS}"


def sequences(seen: list[dict[str, Any]]) -> list[int]:
    """The sequences of the events."""
    return [fact["sequence"] for fact in seen if "sequence" in fact]


def said(seen: list[dict[str, Any]]) -> str:
    """The text, as far as it was not taken back."""
    text = ""
    for fact in seen:
        text = "" if "discarded" in fact else text + fact.get("text", "")
    return text


async def test_a_run_is_ordered_followed_and_watched_from_any_event(language: Language, tmp_path: Path) -> None:  # C042
    async with running(tmp_path, config=CONFIG) as daemon:
        seen, end = await told(language, daemon.address, "follow", "hello 漢字 🙂")
        async with Client(daemon.address) as client:
            head = [event.sequence async for event in client.watch(end["run"]).events()][-1]
        later, same = await told(language, daemon.address, "watch", end["run"], "2")
        nothing, again = await told(language, daemon.address, "watch", end["run"], str(head))
        _, cancelled = await told(language, daemon.address, "cancel", "/stall")
        _, unknown = await told(language, daemon.address, "watch", "run_none", "0")
        _, failed = await told(language, daemon.address, "follow", "/fail CONTENT_REFUSED")
    assert sequences(seen) == list(range(1, head + 1))
    assert (said(seen), end["output"], end["end"]) == ("hello 漢字 🙂", "hello 漢字 🙂", "completed")
    assert sequences(later) == list(range(3, head + 1))
    assert (nothing, same, again) == ([], end, end)
    assert cancelled["end"] == "cancelled"
    assert (unknown["end"], unknown["reason"]) == ("", "RUN_NOT_FOUND")
    assert (failed["end"], failed["reason"]) == ("failed", "PROVIDER_CONTENT_REFUSED")


async def test_a_stream_goes_on_over_restarts_without_a_lost_or_repeated_event(  # C081, C083, C085
    language: Language, tmp_path: Path
) -> None:
    async with (
        running(tmp_path, config=CONFIG) as daemon,
        program(language, "client", daemon.address, "follow", SLOW) as client,
    ):
        seen: list[dict[str, Any]] = []
        ends = [daemon.kill, daemon.terminate]
        is_new = True
        async for fact in client.facts():
            seen.append(fact)
            is_new |= "sequence" in fact
            # At the first piece of an attempt: a client that comes late gets many words in one.
            if ends and is_new and "text" in fact:
                is_new = False
                await ends.pop(0)()
                await daemon.start()
        assert await client.end() == 0
    end = seen[-1]
    assert ends == []
    assert sequences(seen) == list(range(1, sequences(seen)[-1] + 1))
    assert end["end"] == "completed"
    assert len(end["output"].split()) == WORDS
    assert said(seen).endswith(end["output"])


async def test_watches_of_all_languages_go_on_over_a_reload_and_a_restart_without_an_error(tmp_path: Path) -> None:
    lacking: list[str] = []  # N06
    async with AsyncExitStack() as stack:
        manager = await stack.enter_async_context(listening())
        env = {"NOTIFY_SOCKET": manager.address}
        daemon = await stack.enter_async_context(running(tmp_path, config=CONFIG, env=env))
        asker = await stack.enter_async_context(Client(daemon.address))
        run_id = (await asker.run("/stall")).run_id
        programs: list[Program] = []
        for each in LANGUAGES:
            order = (each, "client", daemon.address, "watches", run_id, str(WATCHES))
            try:
                programs.append(await stack.enter_async_context(program(*order)))
            except pytest.skip.Exception as reason:
                lacking.append(f"{each}: {reason}")
        seen = [[await watcher.fact() for _ in range(WATCHES)] for watcher in programs]
        await manager.heard("READY")
        daemon.send_signal(signal.SIGHUP)
        await manager.heard("READY", times=2)
        assert await daemon.terminate() == 0
        await daemon.start()
        await asker.runs.cancel(run_id, force=True)
        for watcher, facts in zip(programs, seen, strict=True):
            facts += [fact async for fact in watcher.facts()]
            assert await watcher.end() == 0
        head = (await asker.runs.get(run_id)).head_sequence
    for *facts, end in seen:
        assert end["end"] == "cancelled"
        for number in range(WATCHES):
            of_one = [fact for fact in facts if fact["watch"] == number]
            assert sequences(of_one) == list(range(1, head + 1))
    if lacking:
        pytest.skip("; ".join(lacking))
