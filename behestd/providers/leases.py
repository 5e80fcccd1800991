"""Keeps providers open for as long as somebody uses them: one that was replaced is closed when its last user lets go.

Above: who calls models, each call inside a `Lease`, and the reload, which parts with providers. Runs that exist when a
provider is replaced by another one keep the one they were made with until they end. Used on the loop alone; nothing
here waits but `run`, which closes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from types import TracebackType

import structlog

from behestd.providers.catalog import Resolved
from behestd.providers.provider import Provider

logger = structlog.get_logger(__name__)

Key = tuple[str, str]
"""(namespace, id) of a run."""

GRACE_SECONDS = 1.0
"""How long one that is not in use is kept all the same."""
CLOSE_SECONDS = 10.0
"""How long a provider may take to close its connections."""


class Leases:
    """Counts the users of each provider: calls, and runs that keep one. `run` is its life."""

    __slots__ = ("_due", "_held", "_parted", "_pins")

    def __init__(self) -> None:
        self._held: dict[Provider, int] = {}
        self._parted: set[Provider] = set()
        self._pins: dict[Key, Mapping[str, Resolved]] = {}
        """What runs keep that were made before a reload, by endpoint."""
        self._due: asyncio.Queue[Provider | None] = asyncio.Queue()

    def hold(self, provider: Provider) -> Lease:
        """Keep a provider open, from `async with` to its end."""
        return Lease(self, provider)

    def part(self, provider: Provider) -> None:
        """Have a provider closed that nobody will be sent to any more, soon or when its last call lets go."""
        self._parted.add(provider)
        # Somebody may just have been sent to it.
        asyncio.get_running_loop().call_later(GRACE_SECONDS, self._look, provider)

    def pin(self, run: Key, models: Mapping[str, Resolved]) -> None:
        """Have a run keep models that others are put in the place of. What it keeps already comes first."""
        before = self._pins.get(run, {})
        self._pins[run] = after = {**models, **before}
        for provider in _providers(after) - _providers(before):
            self.enter(provider)

    def pinned(self, run: Key, endpoint: str) -> Resolved | None:
        """Return what a run keeps, None for what it asks the catalog for, as nearly all do."""
        return self._pins[run].get(endpoint) if run in self._pins else None

    def unpin(self, run: Key) -> None:
        """Let go of what a run keeps, as it has ended here."""
        for provider in _providers(self._pins.pop(run, {})) if self._pins else ():
            self.leave(provider)

    @property
    def parted(self) -> int:
        """How many providers were parted with and are open still."""
        return len(self._parted)

    async def run(self) -> None:
        """Close what is to be closed, until `close`."""
        while (provider := await self._due.get()) is not None:
            try:
                async with asyncio.timeout(CLOSE_SECONDS):
                    await provider.close()
            except (OSError, RuntimeError, TimeoutError) as error:
                logger.warning("provider not closed well", provider=provider.id, error=type(error).__name__)
            else:
                logger.info("provider closed", provider=provider.id)

    def close(self) -> None:
        """Close what is due, and no more."""
        self._due.put_nowait(None)

    def enter(self, provider: Provider) -> None:
        """Count a call."""
        self._held[provider] = self._held.get(provider, 0) + 1

    def leave(self, provider: Provider) -> None:
        """Count it out."""
        left = self._held[provider] - 1
        if left:
            self._held[provider] = left
            return
        del self._held[provider]
        self._look(provider)

    def _look(self, provider: Provider) -> None:
        if provider in self._parted and provider not in self._held:
            self._parted.discard(provider)
            self._due.put_nowait(provider)


def _providers(models: Mapping[str, Resolved]) -> set[Provider]:
    return {resolved.provider for resolved in models.values()}


class Lease:
    """One call at a provider. Entering and leaving never wait."""

    __slots__ = ("_leases", "_provider")

    def __init__(self, leases: Leases, provider: Provider) -> None:
        self._leases = leases
        self._provider = provider

    async def __aenter__(self) -> None:
        self._leases.enter(self._provider)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leases.leave(self._provider)
