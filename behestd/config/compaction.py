"""Sections of the configuration about conversations that grow too long: summaries, and outputs of tools left out.

Above: `config`, which puts all sections together. Below: `kinds`. Values go into messages of the contract of the
same names.
"""

from __future__ import annotations

from typing import Annotated

from annotated_types import Gt, Le, Len
from pydantic import Strict

from behest.v1 import definition_pb2 as pb
from behestd.config.kinds import Count, Flag, Positive, PositiveSeconds, Section
from behestd.core import compaction, pruning
from behestd.core.times import duration

Share = Annotated[float, Strict(), Gt(0), Le(1)]


class Compaction(Section):
    """Summaries that take the place of the oldest part of a conversation, for the model only. Agents go over it."""

    enabled: Flag = True
    """Whether conversations are summarised by themselves."""
    threshold: Share = compaction.THRESHOLD
    """The share of a model's window from which on a call is made smaller first. Where the window is not known this
    happens only when the model refused the call for its length."""
    tail_tokens: Positive | None = None
    """Most tokens of the newest messages, which are kept as they are. Unset: a quarter of the window."""
    tail_messages: Positive | None = None
    """Most messages that are kept as they are. Unset: as many as tail_tokens allows."""
    model: str = ""
    """The model that writes summaries, or an alias. Empty: that of the run."""
    instructions: Annotated[str, Len(0, 16_384)] = ""
    """What the model is told to do with the conversation. Empty: the daemon's own text."""
    summary_tokens: Positive = compaction.SUMMARY_TOKENS
    """Most tokens of a summary, which is never more than an eighth of the window."""
    timeout_seconds: PositiveSeconds = compaction.TIMEOUT_SECONDS
    """How long a summary may take."""
    failures: Positive = compaction.FAILURES
    """How many failures in a row open a session's circuit."""
    cool_down_seconds: PositiveSeconds = compaction.COOL_DOWN_SECONDS
    """How long nothing is summarised of a session whose circuit is open."""

    def policy(self) -> pb.Compaction:
        """The operator's part of every policy."""
        return pb.Compaction(
            **self.model_dump(exclude={"timeout_seconds", "cool_down_seconds"}, exclude_none=True),
            timeout=duration(self.timeout_seconds),
            cool_down=duration(self.cool_down_seconds),
        )


class Pruning(Section):
    """Old outputs of tools that the model sees no more, but a line that names them. Agents go over it."""

    enabled: Flag = True
    """Whether outputs are left out."""
    keep_turns: Count = pruning.KEEP_TURNS
    """How many of the model's latest turns keep their outputs at least."""
    output_bytes: Positive = pruning.OUTPUT_BYTES
    """The least size of an output that is left out."""
    block_turns: Positive = pruning.BLOCK_TURNS
    """How many turns lose their outputs at a time, so that calls begin alike for as many turns."""

    def policy(self) -> pb.Pruning:
        """The operator's part of every policy."""
        return pb.Pruning(**self.model_dump())
