"""What operators are told of the tools of servers: claims that differ from the operator's class, and changes.

Above: `offers`, which asks whenever a server lists. Below: the log. What a server says of its tools is text of a
stranger: it is shown, cut and escaped by the log, and never obeyed. A run keeps the tools that it has pinned.
"""

from __future__ import annotations

from collections.abc import Iterable

import structlog

from behest.v1.tool_pb2 import SideEffect, Tool
from behestd.tools.policy import hint_differs

logger = structlog.get_logger(__name__)

_SHOWN = 20
"""Tools of one server that are told of at once."""
_DESCRIPTION_CHARACTERS = 256


def alarm(server: str, before: Iterable[Tool], after: Iterable[Tool]) -> None:
    """Tell what is to be looked at in what a server lists now, against what it listed before."""
    known = {tool.name: tool for tool in before}
    changed = [tool for tool in after if tool.name in known and known[tool.name].hash != tool.hash]
    for tool in changed[:_SHOWN]:
        logger.warning(
            "tool of a server changed",
            server=server,
            tool=tool.name,
            description=tool.description[:_DESCRIPTION_CHARACTERS],
            before=known[tool.name].description[:_DESCRIPTION_CHARACTERS],
            hash=tool.hash.hex(),
        )
    for tool in [tool for tool in after if hint_differs(tool) and not _is_known(known.get(tool.name), tool)][:_SHOWN]:
        logger.warning(
            "tool of a server claims another class of effect than the operator set",
            server=server,
            tool=tool.name,
            claimed=_name(tool.hints.side_effect),
            in_force=_name(tool.policy.side_effect),
        )


def _is_known(before: Tool | None, now: Tool) -> bool:
    """Whether the same claim was told of before."""
    if before is None:
        return False
    return (before.hints.side_effect, before.policy.side_effect) == (now.hints.side_effect, now.policy.side_effect)


def _name(side_effect: SideEffect.ValueType) -> str:
    known = SideEffect.DESCRIPTOR.values_by_number.get(side_effect)
    return known.name.removeprefix("SIDE_EFFECT_").lower() if known is not None else str(int(side_effect))
