"""Checks of how an agent wants its conversations kept short."""

from __future__ import annotations

from behest.v1.agent_pb2 import Agent
from behest.v1.definition_pb2 import Compaction, Pruning
from behestd.errors import InvalidRequest, NotFound
from behestd.providers.catalog import Snapshot
from behestd.service.validate import duration, max_bytes

_MAX_INSTRUCTIONS_BYTES = 16 * 1024
_MAX_NAME_BYTES = 256


def check_compaction(agent: Agent, models: Snapshot) -> None:
    """Check an agent's policies for summaries and for outputs that are left out."""
    policy = agent.compaction
    if policy.HasField("threshold") and not 0 < policy.threshold <= 1:
        raise InvalidRequest("agent.compaction.threshold", "must be above 0 and at most 1")
    _check_counts("agent.compaction", policy, least=1)
    _check_counts("agent.pruning", agent.pruning, least=0)
    if agent.pruning.HasField("block_turns") and agent.pruning.block_turns < 1:
        raise InvalidRequest("agent.pruning.block_turns", f"{agent.pruning.block_turns} is below 1")
    max_bytes("agent.compaction.instructions", policy.instructions, _MAX_INSTRUCTIONS_BYTES)
    max_bytes("agent.compaction.model", policy.model, _MAX_NAME_BYTES)
    for name, value in (("timeout", policy.timeout), ("cool_down", policy.cool_down)):
        field = f"agent.compaction.{name}"
        if policy.HasField(name) and duration(field, value) <= 0:  # type: ignore[arg-type]
            raise InvalidRequest(field, "must be longer than 0 s")
    if policy.model:
        try:
            models.resolve(policy.model)
        except NotFound as error:
            raise InvalidRequest("agent.compaction.model", error.message) from None


def _check_counts(path: str, policy: Compaction | Pruning, *, least: int) -> None:
    for field, value in policy.ListFields():
        if type(value) is int and value < least:
            raise InvalidRequest(f"{path}.{field.name}", f"{value} is below {least}")
