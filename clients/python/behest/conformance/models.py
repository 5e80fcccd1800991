"""Examines a provider server: the table of checks, and how they are made one after the other.

Above: `behest conformance models` and tests. Below: the checks of models. It makes several dozen model calls, at
whatever they cost.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from behest.conformance import models_chat, models_embed, models_error, models_list
from behest.conformance.examination import make, picked
from behest.conformance.models_probe import ModelProbe
from behest.conformance.models_survey import Prompts, survey

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from behest.conformance.models_survey import Subject
    from behest.conformance.verdict import Finding

# In this order: what is cheap first, what might hurt a server last.
CHECKS: dict[str, Callable[[Subject], Awaitable[str]]] = {
    "list.answers": models_list.answers,
    "list.names": models_list.names,
    "list.order": models_list.order,
    "list.pages": models_list.pages,
    "list.capabilities": models_list.capabilities,
    "list.figures": models_list.figures,
    "list.get": models_list.get,
    "chat.answers": models_chat.answers,
    "chat.ends": models_chat.ends,
    "chat.adds_up": models_chat.adds_up,
    "chat.pieces": models_chat.pieces,
    "chat.message": models_chat.message,
    "chat.finish": models_chat.finish,
    "chat.usage": models_chat.usage,
    "chat.frames": models_chat.frames,
    "chat.complete": models_chat.complete,
    "chat.unicode": models_chat.unicode,
    "chat.history": models_chat.history,
    "chat.at_once": models_chat.at_once,
    "chat.beside": models_chat.beside,
    "tools.calls": models_chat.calls,
    "tools.arguments": models_chat.arguments,
    "tools.choice": models_chat.choice,
    "embed.count": models_embed.count,
    "embed.lengths": models_embed.lengths,
    "embed.order": models_embed.order,
    "embed.dimensions": models_embed.dimensions,
    "embed.usage": models_embed.usage,
    "error.unknown_model": models_error.unknown_model,
    "error.invalid": models_error.invalid,
    "error.embeddings": models_error.invalid_embeddings,
    "error.capability": models_error.capability,
    "error.token": models_error.token,
    "stop.timeout": models_error.timeout,
    "stop.deadline": models_error.deadline,
    "stop.cancel": models_error.cancel,
    "error.oversize": models_error.oversize,
    "list.stable": models_list.stable,
    "alive": models_chat.alive,
}


@dataclass(frozen=True, slots=True)
class Plan:
    """What to examine, and how. Empty names of models choose the first that can; `only` picks checks by globs."""

    address: str
    model: str = ""
    embedding_model: str = ""
    prompts: Prompts = field(default_factory=Prompts)
    only: tuple[str, ...] = ()
    token: str = ""
    tls: bool = False
    # How long each answer is waited for.
    seconds: float = 60.0


def planned(plan: Plan) -> list[str]:
    """Return the names of the checks that a plan picks. Raises ValueError for a glob that picks none."""
    return picked(CHECKS, plan.only)


async def examine(plan: Plan, tell: Callable[[Finding], None] = lambda finding: None) -> list[Finding]:
    """Make the checks, in the order of the table, tell of each finding, and return them all.

    Without a list of models, what needs one is skipped. Raises ValueError for a glob that picks no check.
    """
    names = planned(plan)
    async with ModelProbe(plan.address, token=plan.token, seconds=plan.seconds, tls=plan.tls) as probe:
        subject = await survey(probe, plan.prompts, plan.model, plan.embedding_model)
        return await make(CHECKS, names, subject, "" if subject.models else "no models are listed", tell)
