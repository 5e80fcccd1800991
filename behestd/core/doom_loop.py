"""Detection of doom loops: a model that repeats a call, or a cycle of two to four calls, without getting anywhere.

A call is the same when name and argument bytes are the same. Calls of one turn that are the same count once. Polling
tools are exempt by the operator's policy. What was seen is part of the run's state, so it survives a restart.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256

from behest.v1.message_pb2 import Message, Part, Role, TextPart
from behest.v1.run_event_pb2 import DoomLoopDetected

LONGEST_CYCLE = 4


def fingerprint(name: str, arguments_json: str) -> bytes:
    """What makes a call the same as another: 16 bytes."""
    return sha256(f"{name}\0{arguments_json}".encode()).digest()[:16]


def find_cycle(fingerprints: Sequence[bytes], repeats: int) -> int:
    """The length of the shortest cycle that the sequence ends with `repeats` times, 0 when there is none."""
    for length in range(1, LONGEST_CYCLE + 1):
        needed = length * repeats
        if len(fingerprints) < needed:
            return 0
        tail = fingerprints[-needed:]
        if all(tail[index] == tail[index % length] for index in range(needed)):
            return length
    return 0


def warning(detected: DoomLoopDetected) -> Message:
    """What the model is told when a doom loop is detected and the run goes on."""
    calls = ", ".join(detected.cycle)
    text = (
        f"You have made the same calls ({calls}) {detected.repeats} times with the same arguments. "
        "Do not repeat them: use what you know, try something else, or answer."
    )
    return Message(role=Role.ROLE_USER, parts=[Part(text=TextPart(text=text))])
