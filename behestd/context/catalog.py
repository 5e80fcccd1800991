"""The catalog: which context sources agents can name, and how those of registered servers are named.

Above: the runtime, which pins runs to them and asks them, and ContextService, which lists them. Filled by `planning`
from the configuration and by extensions; sources of registered servers need no entry: `SERVER/NAME` names them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping

from behest.v1.context_pb2 import ContextFailurePolicy, ContextSource, ContextSourceKind
from behestd.context.function import Function, FunctionSource
from behestd.context.source import DEFAULT_TIMEOUT_SECONDS, SourceNotFound
from behestd.core.sources import HISTORY, HISTORY_SOURCE, RESERVED
from behestd.core.times import duration
from behestd.errors import InvalidRequest

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_OF_SERVER = re.compile(r"([A-Za-z0-9_-]{1,64})/([A-Za-z0-9_-]{1,64})")
_FUNCTION = ContextSourceKind.CONTEXT_SOURCE_KIND_FUNCTION
_SKIP = ContextFailurePolicy.CONTEXT_FAILURE_POLICY_SKIP


class Sources:
    """The sources of a daemon. `configured` says of functions how they are asked, and is all of the others."""

    def __init__(self, configured: Iterable[ContextSource] = ()) -> None:
        self._configured: Mapping[str, ContextSource] = {source.name: source for source in configured}
        self._functions: dict[str, tuple[ContextSource, FunctionSource]] = {}

    def add(self, name: str, function: Function, description: str = "") -> None:
        """Add a function, as it is configured, else with the defaults. Raises ValueError for a name that is taken."""
        if not _NAME.fullmatch(name) or name in RESERVED:
            raise ValueError(f"{name!r} is no name of a context source")
        known = self._configured.get(name)
        if name in self._functions or (known is not None and known.kind != _FUNCTION):
            raise ValueError(f"there is a context source {name} already")
        self._functions[name] = (_of_function(name, description, known), FunctionSource(name, function))

    def prepare(self, other: Sources) -> Callable[[], None]:
        """Check another configuration beside the functions that are here; what is returned puts it in force.

        Raises InvalidRequest for a name that a function of an extension has.
        """
        configured = other._configured
        functions = {}
        for name, (old, function) in self._functions.items():
            known = configured.get(name)
            if known is not None and known.kind != _FUNCTION:
                raise InvalidRequest(f"context.sources.{name}", "a function of an extension has this name")
            functions[name] = (_of_function(name, old.description, known), function)

        def swap() -> None:
            self._configured, self._functions = configured, functions

        return swap

    def forget_functions(self) -> None:
        """Take out all functions: extensions are about to add theirs."""
        self._functions.clear()

    def find(self, name: str) -> ContextSource:
        """Find a source by its name. Raises SourceNotFound."""
        if name == HISTORY:
            return HISTORY_SOURCE
        if name in self._functions:
            return self._functions[name][0]
        found = self._configured.get(name)
        if found is not None and found.kind != _FUNCTION:
            return found
        named = _OF_SERVER.fullmatch(name)
        if named is None:
            raise SourceNotFound(name)
        return ContextSource(
            name=name,
            kind=ContextSourceKind.CONTEXT_SOURCE_KIND_REMOTE,
            server=named[1],
            remote_name=named[2],
            timeout=duration(DEFAULT_TIMEOUT_SECONDS),
            on_failure=_SKIP,
        )

    def function(self, name: str) -> FunctionSource:
        """The function of that name. Raises SourceNotFound."""
        if name not in self._functions:
            raise SourceNotFound(name)
        return self._functions[name][1]

    def names(self) -> list[str]:
        """The names that agents can use, ascending, without those of registered servers."""
        configured = (name for name, source in self._configured.items() if source.kind != _FUNCTION)
        return sorted({HISTORY, *configured, *self._functions})


def _of_function(name: str, description: str, known: ContextSource | None) -> ContextSource:
    """Make the source of a function, as it is configured, else with the defaults."""
    made = ContextSource(
        name=name,
        kind=_FUNCTION,
        description=description,
        timeout=duration(DEFAULT_TIMEOUT_SECONDS),
        on_failure=_SKIP,
    )
    if known is not None:
        made.CopyFrom(known)
        made.description = known.description or description
    return made
