"""Makes context sources of their section. Above: `plan` and `tools`. Below: the catalog of sources."""

from __future__ import annotations

from behest.v1.context_pb2 import ContextFailurePolicy, ContextSource, ContextSourceKind
from behestd.config import context
from behestd.context.catalog import Sources
from behestd.context.function import Function
from behestd.core.times import duration
from behestd.tools.catalog import Catalog
from behestd.tools.function import Functions


class Registry(Functions):
    """What extensions add functions to: those that models call, and those that give context."""

    def __init__(self, catalog: Catalog, sources: Sources) -> None:
        super().__init__(catalog)
        self._sources = sources

    def context(self, function: Function, *, name: str = "", description: str = "") -> Function:
        """Add an async function that gives context, and return it unchanged; the name defaults to the function's.

        Raises ValueError for a name that is taken or not allowed.
        """
        made = name or getattr(function, "__name__", "")
        self._sources.add(made, function, description or getattr(function, "__doc__", "") or "")
        return function


def sources(section: context.Context) -> Sources:
    """Make the catalog of context sources."""
    return Sources(_source(name, source) for name, source in section.sources.items())


def _source(name: str, source: context.ContextSource) -> ContextSource:
    made = ContextSource(
        name=name,
        kind=ContextSourceKind.Value(f"CONTEXT_SOURCE_KIND_{source.kind.upper()}"),
        description=source.description,
        text=source.text,
        server=source.server,
        remote_name=(source.source or name) if source.kind == "remote" else "",
        on_failure=ContextFailurePolicy.Value(f"CONTEXT_FAILURE_POLICY_{source.on_failure.upper()}"),
        max_tokens=source.max_tokens,
        max_share_percent=source.max_share_percent,
    )
    if source.kind != "static":
        made.timeout.CopyFrom(duration(source.timeout_seconds))
    return made
