"""One direct call: in progress, with its outcome, or taken up from the journal after a restart.

Above: `direct_calls`, its only writer. Below: `direct_journal`, which keeps it by its key.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator
from hashlib import sha256

from behest.v1.message_pb2 import ToolResult
from behest.v1.tool_pb2 import Progress
from behest.v1.tool_service_pb2 import CallToolRequest
from behestd.core.calls import REDOABLE
from behestd.errors import BehestError, LostRace
from behestd.log.waiters import Waiters
from behestd.runtime.direct_journal import Entry, Key, Stage
from behestd.tools.tool import Answer, Call, Executor, answer

_PROGRESS_KEPT = 256


class DirectCall:
    """A call in progress, or its outcome. Written by `DirectCalls` alone; everybody else reads and waits."""

    __slots__ = (
        "_count",
        "_shown",
        "_waiters",
        "call_id",
        "digest",
        "epoch",
        "executor",
        "is_cancelled",
        "is_kept",
        "is_sent",
        "key",
        "outcome",
        "sent",
        "server_id",
    )

    def __init__(
        self,
        key: Key,
        request: CallToolRequest,
        sent: Call,
        *,
        executor: Executor | None = None,
        server_id: str = "",
    ) -> None:
        """`executor` is None for a call of an earlier daemon, which is not made here."""
        self.key = key
        self.call_id = request.call_id
        self.is_kept = bool(request.idempotency_key)
        """Whether somebody may come back for the outcome."""
        self.is_sent = self.is_cancelled = False
        """Whether it has left for the tool, and whether it was told to stop."""
        self.digest = digest_of(request)
        self.executor = executor
        self.server_id = server_id
        self.sent = sent
        self.epoch = sent.epoch
        self.outcome: Answer | BehestError | None = None
        self._shown: deque[Progress] = deque(maxlen=_PROGRESS_KEPT)
        self._count = 0
        self._waiters = Waiters()

    @property
    def size_bytes(self) -> int:
        """Bytes of the answer."""
        return sum(part.ByteSize() for part in self.outcome.parts) if isinstance(self.outcome, Answer) else 0

    @property
    def is_undone(self) -> bool:
        """Whether no attempt was executed: where one in doubt may be repeated, the last one's proof is not enough."""
        is_proof = isinstance(self.outcome, BehestError) and self.outcome.not_executed
        return is_proof and self.sent.side_effect not in REDOABLE

    def is_cut_by(self, outcome: Answer | BehestError | None) -> bool:
        """Whether an outcome says only that it was told to stop, and the next attempt may begin anew."""
        is_error = isinstance(outcome, Answer) and outcome.is_error
        return self.is_cancelled and is_error and self.sent.side_effect in REDOABLE

    async def progress(self) -> AsyncGenerator[Progress, None]:
        """Yield progress until there is an outcome; of a reader that lags the latest 256 are kept."""
        position = 0
        while True:
            missed = min(self._count - position, len(self._shown))
            position = self._count
            for shown in list(self._shown)[len(self._shown) - missed :]:
                yield shown
            if self._count > position:
                continue
            if self.outcome is not None:
                return
            await self._waiters.wait()

    async def end(self) -> None:
        """Wait for the outcome."""
        while self.outcome is None:
            await self._waiters.wait()

    def show(self, progress: Progress) -> None:
        """Take progress."""
        self._shown.append(progress)
        self._count += 1
        self._waiters.wake()

    def settle(self, outcome: Answer | BehestError) -> None:
        """Take the outcome. The first one counts."""
        self.outcome = self.outcome or outcome
        self._waiters.wake()

    def entry(self, stage: Stage, given: Answer | None = None) -> Entry:
        """What the journal keeps of it; `given` is the answer unless its outcome is there."""
        known = given or (self.outcome if isinstance(self.outcome, Answer) else None)
        return Entry(
            stage,
            self.epoch,
            self.sent.attempt,
            self.sent.name,
            self.sent.tool_hash,
            self.server_id,
            self.sent.side_effect,
            self.digest,
            known.result(self.call_id, self.sent.name) if known is not None else None,
        )


def restored(key: Key, entry: Entry) -> DirectCall:
    """Make a call of what the journal kept of it: with its answer, or in doubt."""
    sent = Call(
        namespace=key[0],
        run_id="",
        session_id="",
        call_id="",
        name=entry.tool,
        arguments_json="{}",
        key=sent_key(key),
        attempt=entry.attempt,
        epoch=entry.epoch,
        side_effect=entry.side_effect,
        tool_hash=entry.tool_hash,
    )
    call_id = "" if entry.result is None else entry.result.call_id
    request = CallToolRequest(idempotency_key=key[1], call_id=call_id)
    made = DirectCall(key, request, sent, server_id=entry.server_id)
    made.digest = entry.digest
    made.settle(lost(entry.tool) if entry.result is None else _answer(entry.result))
    return made


def _answer(result: ToolResult) -> Answer:
    return answer(result.parts, is_error=result.is_error, is_truncated=result.truncated)


def lost(tool: str) -> LostRace:
    """Make the error of a call of which nobody knows whether it took effect."""
    return LostRace("TOOL_OUTCOME_UNKNOWN", "nobody can say whether the tool took effect", tool=tool)


def digest_of(request: CallToolRequest) -> bytes:
    """What tells a repeat of a key from another request with it."""
    return sha256(f"{request.tool_name}\0{request.arguments_json or '{}'}".encode()).digest()


def sent_key(key: Key) -> str:
    """The key under which a tool's server knows the call: no client can choose that of a run, or of a stranger."""
    return sha256("\0".join(("direct", *key)).encode()).hexdigest()
