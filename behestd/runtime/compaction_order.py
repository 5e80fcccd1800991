"""Pins a run to how its conversation is kept short: the agent's policies over the operator's, and who summarises.

Above: `orders`, which makes definitions. Below: the catalog of models.
"""

from __future__ import annotations

from collections.abc import Callable

from behest.v1.agent_pb2 import Agent
from behest.v1.definition_pb2 import PinnedCompaction, RunDefinition
from behest.v1.model_pb2 import Model, Price
from behestd.core import compaction, pruning
from behestd.providers.catalog import Snapshot
from behestd.runtime.house import House

PriceAt = Callable[[Model], Price]


def pin(definition: RunDefinition, agent: Agent, house: House, models: Snapshot, price_at: PriceAt) -> None:
    """Set a definition's policies. Raises ModelNotFound and ProviderNotFound for the model that is to summarise."""
    found = pinned(agent, house, models, price_at)
    if found is not None:
        definition.compaction.CopyFrom(found)
    pruned = pruning.in_force(agent.pruning, house.operator.pruning)
    if pruned.enabled:
        definition.pruning.CopyFrom(pruned)


def pinned(agent: Agent, house: House, models: Snapshot, price_at: PriceAt) -> PinnedCompaction | None:
    """What runs of an agent are pinned to, None when nothing of theirs is ever summarised. Raises as `pin`."""
    policy = compaction.in_force(agent.compaction, house.operator.compaction)
    if not policy.enabled:
        return None
    if not policy.model:
        return PinnedCompaction(policy=policy)
    model = models.resolve(policy.model).model
    policy.model = model.id
    return PinnedCompaction(policy=policy, window=model.limits.context_window_tokens, price=price_at(model))
