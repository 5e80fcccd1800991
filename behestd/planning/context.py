"""Makes context sources of their section. Above: `plan` and `tools`. Below: the catalog of sources."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Mapping
from typing import Any

from behest.v1.context_pb2 import ContextFailurePolicy, ContextSource, ContextSourceKind
from behest.v1.graph_pb2 import Graph
from behest.v1.operator_pb2 import Operator, ReplyTarget
from behest.v1.tool_pb2 import ToolPolicy
from behestd.config import context
from behestd.context.catalog import Sources
from behestd.context.function import Function
from behestd.core.times import duration
from behestd.reasoning.operators import operator_of
from behestd.tools.catalog import Catalog
from behestd.tools.function import Functions

_NO_GRAPH = Graph()
_NAME = re.compile(r"[a-z0-9_]{1,64}")


class Registry(Functions):
    """What extensions add functions to: those that models call, that do an operator's work, and that give context."""

    def __init__(self, catalog: Catalog, sources: Sources) -> None:
        super().__init__(catalog)
        self._catalog = catalog
        self._sources = sources

    def operator(
        self,
        function: Function,
        *,
        name: str = "",
        intent: str = "",
        target: str = "artifact",
        reply_schema: Mapping[str, Any] | None = None,
        policy: ToolPolicy | None = None,
    ) -> Function:
        """Add a function that does the work of an operator, and return it unchanged: graphs name it as any other.

        It is a function tool too, of the same name, which a run of such a graph must have. It gets the task as text in
        its parameter `task`, and returns text, or JSON that keeps `reply_schema`; `target`, a name of ReplyTarget in
        lower case, says where that goes. Name and intent default to those of the function. Raises ValueError for a name
        that is not allowed or that of an operator that every graph has, an unknown target, and a function without such
        a parameter; InvalidRequest and ToolNameTaken as `tool` does.
        """
        made = name or function.__name__
        if not _NAME.fullmatch(made) or operator_of(_NO_GRAPH, made) is not None:
            raise ValueError(f"{made!r} is no name for an operator: it is built in, or not of a-z 0-9 _")
        if "task" not in inspect.signature(function).parameters:
            raise ValueError(f"operator {made} has no parameter named task")
        operator = Operator(
            name=made,
            intent=intent or (inspect.getdoc(function) or "").partition("\n")[0],
            reply_schema_json="" if reply_schema is None else json.dumps(reply_schema),
            target=ReplyTarget.Value(f"REPLY_TARGET_{target.upper()}"),
            tool=made,
        )
        self.tool(function, name=made, description=operator.intent, policy=policy)
        self._catalog.operators[made] = operator
        return function

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
