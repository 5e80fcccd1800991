"""The inputs that a run received, known by their ids and told apart by what they say. Above: `decide` and the edge."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256

from behest.v1.message_pb2 import Message, Part
from behestd.core.state import Run
from behestd.errors import RequestIdReused


def digest(parts: Sequence[Part]) -> bytes:
    """SHA-256 of what an input says."""
    return sha256(Message(parts=parts).SerializeToString(deterministic=True)).digest()


def known(run: Run, input_id: str, parts: Sequence[Part]) -> int:
    """The sequence of an input, 0 when the run has not received it.

    Raises RequestIdReused when the run has one of that id that says something else.
    """
    for (received_id, sequence), said in zip(run.turns.input_ids, run.turns.input_digests, strict=True):
        if received_id == input_id:
            if said != digest(parts):
                raise RequestIdReused(input_id)
            return sequence
    return 0
