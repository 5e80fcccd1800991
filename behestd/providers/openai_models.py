"""What is known of the vendor's models: abilities, limits, when they reason. A table, and nothing else.

Above: `openai_request`, and `planning`, where the configuration goes over it. Source: the vendor's public pages and its
SDK's list of models, November 2026; models whose shutdown has passed are left out. Of a name that is not here, of this
vendor or another behind the same interface, nothing is known.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from enum import Enum

_ABILITIES = ("chat", "streaming", "image_input", "json_object", "json_schema")
_TOOLS = ("tools", "parallel_tool_calls")
_SNAPSHOT = re.compile(r"-\d{4}-\d{2}-\d{2}$")


class Reasons(Enum):
    """When a model reasons. While it does, it takes no temperature and no top_p."""

    NEVER = "never"
    WHEN_ASKED = "when_asked"
    """Not unless an effort is asked for."""
    UNLESS_TOLD = "unless_told"
    """Unless the effort is "none"."""
    UNLESS_CALLING = "unless_calling"
    """As UNLESS_TOLD, and tools are refused unless it is told so."""
    ALWAYS = "always"

    def by(self, effort: str | None) -> bool:
        """Whether it reasons when it is told an effort, or none is said."""
        if self in (Reasons.NEVER, Reasons.ALWAYS):
            return self is Reasons.ALWAYS
        return effort != "none" if effort is not None else self is not Reasons.WHEN_ASKED


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of a model. A limit of 0 is unknown, or does not apply."""

    context_window_tokens: int
    max_output_tokens: int = 0
    capabilities: tuple[str, ...] = (*_ABILITIES, *_TOOLS)
    embedding_dimensions: int = 0
    reasons: Reasons = Reasons.NEVER


# On POST /chat/completions: these call tools on POST /responses only.
_NEVER_CALLS = Known(1_050_000, 128_000, _ABILITIES, reasons=Reasons.ALWAYS)
_REASONS_OR_CALLS = Known(1_050_000, 128_000, reasons=Reasons.UNLESS_CALLING)
_BY_NAME = {
    "gpt-6.2-astra": _NEVER_CALLS,
    "gpt-6.2-sol": _NEVER_CALLS,
    "gpt-6.1-sol": _NEVER_CALLS,
    "gpt-6.1-terra": _REASONS_OR_CALLS,
    "gpt-6-astra": _NEVER_CALLS,
    "gpt-6-sol": _REASONS_OR_CALLS,
    "gpt-6-luna": _REASONS_OR_CALLS,
    "gpt-5.6": _REASONS_OR_CALLS,
    "gpt-5.6-sol": _REASONS_OR_CALLS,
    "gpt-5.6-terra": _REASONS_OR_CALLS,
    "gpt-5.6-luna": _REASONS_OR_CALLS,
    "gpt-5.5": Known(1_050_000, 128_000, reasons=Reasons.UNLESS_TOLD),
    "gpt-5.4": Known(1_050_000, 128_000, reasons=Reasons.WHEN_ASKED),
    "gpt-5.4-mini": Known(400_000, 128_000, reasons=Reasons.WHEN_ASKED),
    "gpt-5.4-nano": Known(400_000, 128_000, reasons=Reasons.WHEN_ASKED),
    "gpt-5.2": Known(400_000, 128_000, reasons=Reasons.WHEN_ASKED),
    "gpt-5.1": Known(400_000, 128_000, reasons=Reasons.WHEN_ASKED),
    "gpt-5": Known(400_000, 128_000, reasons=Reasons.ALWAYS),
    "gpt-5-mini": Known(400_000, 128_000, reasons=Reasons.ALWAYS),
    "gpt-5-nano": Known(400_000, 128_000, reasons=Reasons.ALWAYS),
    "gpt-4.1": Known(1_047_576, 32_768),
    "gpt-4.1-mini": Known(1_047_576, 32_768),
    "gpt-4o": Known(128_000, 16_384),
    "gpt-4o-mini": Known(128_000, 16_384),
    "o3": Known(200_000, 100_000, reasons=Reasons.ALWAYS),
    "text-embedding-3-large": Known(8192, capabilities=("embeddings",), embedding_dimensions=3072),
    "text-embedding-3-small": Known(8192, capabilities=("embeddings",), embedding_dimensions=1536),
    "text-embedding-ada-002": Known(8192, capabilities=("embeddings",), embedding_dimensions=1536),
}


def known(name: str, interface: str = "chat_completions") -> Known | None:
    """Return what is known of a model, by its whole name, the date of a snapshot aside; None: nothing."""
    found = _BY_NAME.get(_SNAPSHOT.sub("", name))
    if found is None or interface != "responses" or "chat" not in found.capabilities:
        return found
    # All of them call tools there, while they reason too.
    return replace(found, capabilities=(*_ABILITIES, *_TOOLS))
