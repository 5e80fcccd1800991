"""Where attempts of tool calls go when several servers offer the same tool. Above: `calls` and `recovery`.

Below: nothing; the shell's catalog of tools is given as `Places`. Another server than before is taken only where that
cannot make a second effect: a key is known by the server that got it, and by no other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from behest.v1.tool_pb2 import SideEffect, Tool
from behestd.core.state import Call, Phase


@dataclass(frozen=True, slots=True)
class Place:
    """The server that an attempt goes to, and for an attached one its attachment and the stream of that."""

    server_id: str
    lease_id: str = ""


class Places(Protocol):
    """What the shell knows of the servers of tools now."""

    def place(self, namespace: str, tool: Tool, key: str, *, avoid: str = "", stay: str = "") -> Place:
        """Choose a server for an attempt: the one named `stay`, else the least loaded that is there.

        The one named `avoid` is taken when there is no other.
        """
        ...

    def rejoins(self, namespace: str, server_id: str) -> bool:
        """Whether calls that an earlier owner sent to this server can be joined, now or when it is back."""
        ...


class AsPinned:
    """Knows of no server but the one that the run pinned."""

    def place(self, namespace: str, tool: Tool, key: str, *, avoid: str = "", stay: str = "") -> Place:
        """The pinned server."""
        return Place(stay or tool.server_id)

    def rejoins(self, namespace: str, server_id: str) -> bool:
        """None can be joined."""
        return False


def next_place(places: Places, namespace: str, call: Call, tool: Tool, key: str) -> Place:
    """Choose where the next attempt of a call goes."""
    if call.started is None:
        return places.place(namespace, tool, key)
    before = call.started.endpoint
    may_have_run = call.may_have_run or call.phase is Phase.STARTED
    if may_have_run and call.started.side_effect != SideEffect.SIDE_EFFECT_PURE:
        return places.place(namespace, tool, key, stay=before)
    return places.place(namespace, tool, key, avoid=before)
