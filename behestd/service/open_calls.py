"""Calls that stay open: each is looked at again, and ended when its caller may no longer go on.

Above: `methods`, which enters streams, and `entrance`, which looks every minute and at each reload; below `identity`.
In local mode there is nothing to look at, and no call is kept here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from behestd.service.call import Call
    from behestd.service.identity import Identity


class OpenCalls:
    """The streams of callers with credentials."""

    def __init__(self, identity: Identity) -> None:
        self._identity = identity
        self._scopes: dict[Call, str] = {}

    def __len__(self) -> int:
        """Count them."""
        return len(self._scopes)

    def enter(self, call: Call, scope: str) -> None:
        """Keep a call in sight that needs a scope."""
        self._scopes[call] = scope

    def leave(self, call: Call) -> None:
        """Let go of a call. Idempotent."""
        self._scopes.pop(call, None)

    def look(self) -> int:
        """End every call whose caller may go on no longer; gives how many."""
        ended = 0
        for call, scope in list(self._scopes.items()):
            why = self._identity.why_not(call.caller, scope)
            if why is not None:
                del self._scopes[call]
                call.end(why)
                ended += 1
        return ended
