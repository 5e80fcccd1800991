"""The section of retention. Above: `settings`. Below: `kinds`. `planning.retention` makes rules of it."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import Field

from behestd.config.kinds import Name, Seconds, Section


class Kept(Section):
    """How long what a run leaves behind is kept."""

    run_seconds: Seconds | None = None
    """How long the log of a run is kept after its end; its messages stay until their session is deleted. Unset: for
    ever."""


class Retention(Kept):
    """How long logs are kept. Nothing is deleted unless it is set here."""

    namespaces: Mapping[Name, Kept] = Field(default_factory=dict)
