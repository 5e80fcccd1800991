"""What is known of the vendor's models: abilities, limits, what a request may ask. A table, and nothing else.

Above: `anthropic_request`, and `planning`, where the configuration goes over it. Source: the vendor's public pages of
each model and its SDK, November 2026. A name that is not here is served all the same, with limits unknown.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

MAX_CACHE_MARKERS = 4
"""The most markers of prompt prefixes in one request."""
_ABILITIES = (
    "chat",
    "streaming",
    "tools",
    "parallel_tool_calls",
    "image_input",
    "file_input",
    "reasoning",
    "prompt_cache_markers",
)
_MILLION, _TWO_HUNDRED_THOUSAND = 1_000_000, 200_000


class Thinking(Enum):
    """How a model is told how much to think."""

    ALWAYS = "always"
    """It always thinks; an effort says how much."""
    BETWEEN_TOOLS = "between_tools"
    """As ADAPTIVE, but the least there is is a note between calls."""
    ADAPTIVE = "adaptive"
    """It decides by itself, an effort says how much, and it can be told not to."""
    BUDGET = "budget"
    """It thinks when it is given tokens for that."""


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of a model. A limit of 0 is unknown."""

    thinking: Thinking
    context_window_tokens: int = 0
    max_output_tokens: int = 0
    capabilities: tuple[str, ...] = (*_ABILITIES, "json_schema")
    samplers: int = 0
    """How many of temperature and top_p it takes in a request without thinking."""


_BY_FAMILY = {
    "claude-fable-5": Known(Thinking.ALWAYS, _MILLION, 128_000),
    "claude-mythos": Known(Thinking.ALWAYS),
    "claude-opus-5-5": Known(Thinking.ALWAYS, _MILLION, 128_000),
    "claude-opus-5": Known(Thinking.ADAPTIVE, _MILLION, 128_000),
    "claude-opus-4-8": Known(Thinking.ADAPTIVE, _MILLION, 128_000),
    "claude-opus-4-7": Known(Thinking.ADAPTIVE, _MILLION, 128_000),
    "claude-opus-4-6": Known(Thinking.ADAPTIVE, _MILLION, 128_000, samplers=1),
    "claude-opus-4-5": Known(Thinking.BUDGET, _TWO_HUNDRED_THOUSAND, 64_000, samplers=1),
    "claude-sonnet-5-5": Known(Thinking.BETWEEN_TOOLS, _MILLION, 128_000),
    "claude-sonnet-5": Known(Thinking.ADAPTIVE, _MILLION, 128_000),
    "claude-sonnet-4-6": Known(Thinking.ADAPTIVE, _MILLION, 128_000, samplers=1),
    "claude-sonnet-4-5": Known(Thinking.BUDGET, _TWO_HUNDRED_THOUSAND, 64_000, samplers=1),
    "claude-haiku-5-5": Known(Thinking.ADAPTIVE, _MILLION, 128_000),
    "claude-haiku-4-5": Known(Thinking.BUDGET, _TWO_HUNDRED_THOUSAND, 64_000, samplers=1),
    # Of a model of the vendor that is not here, the newest habits are assumed.
    "claude": Known(Thinking.ADAPTIVE),
    # Of a model of somebody else behind the same interface, the oldest.
    "": Known(Thinking.BUDGET, capabilities=_ABILITIES, samplers=2),
}


def known(name: str) -> Known:
    """Return what is known of a model, by the longest family that its name begins with, dates and versions aside."""
    # Clouds put their own name and a region before the vendor's.
    _, found, rest = name.partition("claude")
    parts = (found + rest).split("-")
    for count in range(len(parts), 0, -1):
        family = "-".join(parts[:count])
        if family in _BY_FAMILY:
            return _BY_FAMILY[family]
    return _BY_FAMILY[""]
