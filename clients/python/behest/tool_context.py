"""What the code of a tool knows of its call and may tell about it: the context.

Above: the functions of tool servers. Below: `tool_calls`, which runs them. It is the same in both modes, dialled and
attached; only artifacts need a connection to the daemon, which a dialled server has not.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from behest.services.artifacts import measure
from behest.services.ids import new_request_id
from behest.v1.tool_pb2 import Progress

if TYPE_CHECKING:
    from behest.services.artifacts import Artifacts
    from behest.v1.artifact_pb2 import Artifact
    from behest.v1.tool_service_pb2 import CallToolRequest

_log = logging.getLogger("behest.tools")

PROGRESS_TEXT_BYTES = 64 * 1024


class ToolError(Exception):
    """Raised by a tool to fail with a text of its own, which the model is told.

    raise ToolError("there is no account 17: known are 12 and 14")
    """


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a call came from: its W3C trace context, and where its artifacts go (None: nowhere, it was dialled)."""

    traceparent: str = ""
    artifacts: Artifacts | None = None


class Progressing(Protocol):
    """Contract: a call that shows progress, and knows whether it was cancelled."""

    @property
    def is_cancelled(self) -> bool: ...

    def show(self, progress: Progress) -> None: ...


class Context:
    """What a function may know of its call and tell about it: a parameter of this type gets it. Safe in threads.

    @server.tool
    async def index(context: Context, path: str) -> int:
        for number, name in enumerate(names(path)):
            context.progress(f"reading {name}", current=number)
    """

    def __init__(
        self, request: CallToolRequest, call: Progressing, loop: asyncio.AbstractEventLoop, origin: Origin
    ) -> None:
        self._request = request
        self._call = call
        self._loop = loop
        self._origin = origin
        self._text: list[str] = []

    @property
    def idempotency_key(self) -> str:
        """The key of the call: equal over all its attempts, different for different calls. Empty for a bare call."""
        return self._request.idempotency_key

    @property
    def attempt(self) -> int:
        """The number of the attempt, from 1."""
        return self._request.attempt

    @property
    def epoch(self) -> int:
        """The fencing token: of two attempts, the one with the lower epoch is stale."""
        return self._request.epoch

    @property
    def call_id(self) -> str:
        """Id of the call. Empty for a direct call."""
        return self._request.call_id

    @property
    def run_id(self) -> str:
        """Id of the run that calls. Empty for a direct call."""
        return self._request.run_id

    @property
    def session_id(self) -> str:
        """Id of the session of the run. Empty for a direct call."""
        return self._request.session_id

    @property
    def traceparent(self) -> str:
        """W3C trace context of the call, to be handed on. Empty when the caller traces nothing."""
        return self._origin.traceparent

    @property
    def deadline(self) -> datetime | None:
        """When the result is no longer waited for, in UTC; None: no such time."""
        if not self._request.HasField("deadline"):
            return None
        return self._request.deadline.ToDatetime(tzinfo=UTC)

    @property
    def is_cancelled(self) -> bool:
        """Whether the call was cancelled. A plain function should look now and then; an async one is stopped."""
        return self._call.is_cancelled

    def progress(self, text: str = "", *, current: float | None = None, total: float | None = None) -> None:
        """Show how far the work is, for example `progress("3 of 9 files", current=3, total=9)`.

        It is also the sign of life of a tool with a heartbeat. Never stored, and never shown to the model; a text of
        more than 64 KiB is cut.
        """
        text = text.encode(errors="replace")[:PROGRESS_TEXT_BYTES].decode(errors="ignore")
        self._loop.call_soon_threadsafe(self._call.show, Progress(text=text, current=current, total=total))

    def log(self, text: str, *values: object, level: int = logging.INFO) -> None:
        """Write a line to the log of this process, with the ids of the call: `log("took %d rows", rows)`.

        Goes to the logger `behest.tools`; the ids are also fields of the record: `call_id`, `run_id`, `session_id`.
        """
        if _log.isEnabledFor(level):
            fields = {"call_id": self.call_id, "run_id": self.run_id, "session_id": self.session_id}
            said = text % values if values else text
            _log.log(level, "%s: %s", self.call_id or self._request.tool_name, said, extra=fields)

    def write(self, text: str) -> None:
        """Add to the text of the result, before what the function returns. For results made piece by piece."""
        self._text.append(text)

    @property
    def written(self) -> str:
        """What was written so far."""
        return "".join(self._text)

    async def artifact(self, content: bytes | Path, *, name: str = "", media_type: str = "") -> Artifact:
        """Store what is too large for a result, up to 2 GiB, in the session of the run, and return it once it is safe.

            report = await context.artifact(Path("report.pdf"), media_type="application/pdf")
            return {"artifact_id": report.id}

        The same content of the same call is stored once, whatever the attempt. Raises ToolError where the server is not
        attached, since a dialled one knows no daemon; BehestError when the daemon refuses, OSError for the file.
        """
        if self._origin.artifacts is None:
            raise ToolError("artifacts need a server that is attached to its daemon")
        _, digest = await asyncio.to_thread(measure, content)
        name = name or (content.name if isinstance(content, Path) else "")
        same = f"{self.idempotency_key}\0{name}\0{media_type}\0".encode() + digest
        return await self._origin.artifacts.upload(
            content,
            name=name,
            media_type=media_type,
            session_id=self.session_id,
            request_id=hashlib.sha256(same).hexdigest() if self.idempotency_key else new_request_id(),
        )
