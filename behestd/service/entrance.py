"""What stands between the network and the methods: who callers are, TLS, and streams whose callers may no longer go on.

Above: `server`, which binds and keeps time; below `identity`, `open_calls` and `rotation`. What a reload may change is
changed as a whole, and what only a restart may change is refused before anything is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from behestd.errors import InvalidRequest
from behestd.service.identity import Identity
from behestd.service.open_calls import OpenCalls
from behestd.service.rotation import Rotation

if TYPE_CHECKING:
    from collections.abc import Callable

    import grpc

    from behestd.service.credentials import Credentials
    from behestd.service.tls import Tls


class Secured(Protocol):
    """The part of a daemon's plan that is in force here."""

    @property
    def credentials(self) -> Credentials:
        """All credentials."""
        ...

    @property
    def tls(self) -> Tls | None:
        """TLS of every TCP address."""
        ...


class Entrance:
    """The way in. `open_calls` is None in local mode, where nobody's credential can end."""

    def __init__(self, plan: Secured, *, is_local: bool, look_seconds: float) -> None:
        self.identity = Identity(plan.credentials, is_local=is_local)
        self.open_calls = None if is_local else OpenCalls(self.identity)
        self._rotation = Rotation(plan.tls) if plan.tls is not None else None
        self._look_seconds = look_seconds
        self._due_seconds = 0.0

    def port_credentials(self) -> grpc.ServerCredentials | None:
        """Make the credentials of one TCP port. None: it is plain."""
        return None if self._rotation is None else self._rotation.credentials()

    def look(self, now_seconds: float) -> None:
        """Look at open streams when that is due; the time is the loop's."""
        if self.open_calls is not None and now_seconds >= self._due_seconds:
            self._due_seconds = now_seconds + self._look_seconds
            self.open_calls.look()

    def prepare(self, plan: Secured) -> Callable[[], None]:
        """Check other credentials and another certificate; what is returned puts them in force and ends open streams.

        Raises InvalidRequest for what only a restart can change: the mode, and whether there is TLS on either side.
        """
        tls, rotation = plan.tls, self._rotation
        if self.identity.is_local != plan.credentials.is_empty:
            raise _restart("auth", "credentials for a daemon in local mode, or none for one that had some")
        if _shape(tls) != _shape(rotation.tls if rotation is not None else None):
            raise _restart("server.tls", "TLS or client_ca for a daemon without, or none for one that had it")

        def swap() -> None:
            self.identity.replace(plan.credentials)
            if rotation is not None and tls is not None and tls != rotation.tls:
                rotation.replace(tls)
            if self.open_calls is not None:
                self.open_calls.look()

        return swap


def _restart(key: str, what: str) -> InvalidRequest:
    return InvalidRequest(key, f"{what}: that needs a restart", reason="RUNTIME_CONFIG_INVALID")


def _shape(tls: Tls | None) -> tuple[bool, bool]:
    return tls is not None, tls is not None and bool(tls.client_authorities)
