"""The section of context sources. Above: `settings`. Below: `kinds`. `planning.context` makes messages of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from annotated_types import Ge, Le, Len
from pydantic import Field, Strict, model_validator

from behestd.config.kinds import Count, Name, PositiveSeconds, Section
from behestd.core.sources import RESERVED

MAX_TEXT = 256 * 1024


class ContextSource(Section):
    """A source of context that agents can name."""

    kind: Literal["static", "function", "remote"]
    """"static": a text. "function": how the function of that name, of an extension, is asked. "remote": a registered
    server is asked."""
    text: Annotated[str, Len(0, MAX_TEXT)] = ""
    """What a static source gives: a message of the system."""
    server: str = ""
    """Name of the registered server that a remote source asks."""
    source: str = ""
    """Name of a remote source at its server. Empty: as here."""
    description: str = ""
    """What it is good for, for people."""
    timeout_seconds: PositiveSeconds = 5.0
    """How long it may take; never longer than what is left of the run's deadline."""
    on_failure: Literal["skip", "fail"] = "skip"
    """What happens when it fails or takes longer: the model is asked without it, or the run fails."""
    max_tokens: Count = 0
    """Most estimated tokens that it gives; what is over is cut. 0: no limit."""
    max_share_percent: Annotated[int, Strict(), Ge(0), Le(100)] = 0
    """Largest share of the model's window that it gives, in percent. 0: no limit."""

    @model_validator(mode="after")
    def _fits_its_kind(self) -> ContextSource:
        if (self.kind == "static") != bool(self.text):
            raise ValueError("text is for static sources, and required there")
        if (self.kind == "remote") != bool(self.server):
            raise ValueError("server is for remote sources, and required there")
        if self.source and self.kind != "remote":
            raise ValueError("source is for remote sources")
        return self


class Context(Section):
    """What models see beside the conversation."""

    sources: Mapping[Name, ContextSource] = Field(default_factory=dict)
    """The sources, by the name that agents use in context_sources."""

    @model_validator(mode="after")
    def _leaves_reserved_names(self) -> Context:
        for name in self.sources:
            if name in RESERVED:
                raise ValueError(f"{name} is a part of every call, and no name of a source")
        return self
