"""What must hold of a store when the dust has settled, whatever happened to the daemons that wrote it.

The numbers are those of the invariants. Evidence is what is on the disk, what clients captured, and the ledger of
the tools; no code of the daemon takes part but the fold, whose result is compared with the state that was written down.
"""

from __future__ import annotations

from collections import Counter
from hashlib import sha256
from typing import Any

from behest.v1.event_pb2 import Event
from behestd.core.run import fold
from behestd.core.state import TERMINAL
from tests.crash.harness import LedgerFile, Remains
from tests.runs import scenes

INTENTS = {"model_requested", "tool_started"}


def check_run(remains: Remains, run_id: str) -> None:
    """Check one run's log by itself."""
    stored = remains.log(run_id)
    events = [Event.FromString(data) for data in stored]
    kinds = scenes.kinds(events)
    digest, epoch = b"", 0
    for sequence, (event, data) in enumerate(zip(events, stored, strict=True), start=1):  # I2, I11
        assert event.sequence == sequence, run_id
        assert event.prev_hash == digest, (run_id, sequence)
        digest = sha256(data).digest()
        epoch += kinds[sequence - 1] == "run_claimed"
        assert event.epoch == epoch, (run_id, sequence)
    ends = [kind for kind in kinds if kind in scenes.TERMINAL]  # I7
    assert ends == kinds[-1:], (run_id, kinds)
    if "run_cancel_requested" in kinds:  # I14
        assert not INTENTS & set(kinds[kinds.index("run_cancel_requested") :]), (run_id, kinds)
    _check_attempts(run_id, events)
    log = list(zip(events, stored, strict=True))
    run = fold(run_id, log, remains.definition(events[0].run_created.definition_hash))  # I19
    assert run.state in TERMINAL
    assert run.state == remains.state(run_id), run_id
    scenes.check_pairs([said for said in run.transcript if not _is_word_of_people(said)])  # I13


def _is_word_of_people(message: Any) -> bool:
    return all(part.HasField("text") for part in message.parts) and message.role == 2


def _check_attempts(run_id: str, events: list[Event]) -> None:
    """I12: attempts count from 1, and each step and each call has one result at most."""
    model = Counter[int]()
    for each in scenes.only(events, "model_requested"):
        model[each.step] += 1
        assert each.attempt == model[each.step], run_id
    tools = Counter[str]()
    for each in scenes.only(events, "tool_started"):
        tools[each.call_id] += 1
        assert each.attempt == tools[each.call_id], run_id
    for kind, name in (("model_completed", "step"), ("tool_completed", "call_id")):
        counts = Counter(getattr(each, name) for each in scenes.only(events, kind))
        assert set(counts.values()) <= {1}, (run_id, kind)


def check_sessions(remains: Remains) -> int:
    """I10: a session's runs are numbered without a hole, and none starts before the one before it has ended.

    Gives the length of the longest row of runs.
    """
    longest = 0
    for session_id, runs in remains.session_runs().items():
        assert [index for index, _ in runs] == list(range(1, len(runs) + 1)), session_id
        longest = max(longest, len(runs))
        ended = 0
        for _, run_id in runs:
            positions = remains.positions(run_id)
            kinds = remains.kinds(run_id)
            assert positions[kinds.index("run_started") + 1] > ended, (session_id, run_id)
            ended = positions[len(kinds)]
    return longest


def check_captures(remains: Remains, run_id: str, seen: list[Event]) -> None:
    """I1, I15: what a client saw, in order and without a gap, is what is stored."""
    stored = remains.events(run_id)
    assert seen == stored[: len(seen)], run_id
    assert not seen or seen[0].sequence == 1


def check_ledger(remains: Remains, ledger: LedgerFile, run_ids: list[str]) -> Counter[str]:
    """I4, I5, I6: each dispatch has its intent, and what must not happen twice did not. Gives dispatches by tool."""
    dispatched: Counter[str] = Counter()
    for run_id in run_ids:
        intents: set[tuple[str, int, int]] = set()
        for event in remains.events(run_id):
            if event.HasField("tool_started"):
                intents.add((event.tool_started.key, event.tool_started.attempt, event.epoch))
        effects: Counter[tuple[str, str]] = Counter()
        sent: Counter[tuple[str, str]] = Counter()
        for line in ledger.lines(run_id):
            if line["what"] == "dispatch":
                assert (line["key"], line["attempt"], line["epoch"]) in intents, (run_id, line)
                sent[line["tool"], line["key"]] += 1
                dispatched[line["tool"]] += 1
            elif line["what"] == "effect":
                effects[line["tool"], line["key"]] += 1
        for (tool, key), count in effects.items():
            assert count <= 1 or tool == "pure", (run_id, tool, key, count)
        for (tool, key), count in sent.items():
            assert count <= 1 or tool in ("pure", "idempotent"), (run_id, tool, key, count)
    return dispatched
