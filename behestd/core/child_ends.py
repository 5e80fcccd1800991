"""The end of a child run: what it consumed is counted in its parent, its answer is the call's result. Above: `decide`.

Both are one commit, and only a call that is open takes them, so a child's usage is counted once.
"""

from __future__ import annotations

from behest.v1.model_event_pb2 import FailureClass
from behest.v1.run_event_pb2 import ChildRunEnded
from behest.v1.tool_pb2 import Executed
from behestd.core import calls, children
from behestd.core.draft import Draft
from behestd.core.signals import ChildEnded, ToolBroke, ToolEnded


def ended(draft: Draft, signal: ChildEnded) -> None:
    """Record the end of a child run, and with it that of its call. The run does not wait when this is called."""
    call = draft.run.call(signal.call_id)
    if call is None or call.child is None or call.attempt != signal.attempt or not children.is_open(call):
        return
    child_run_id = call.child.child_run_id
    draft.note(
        ChildRunEnded(
            child_run_id=child_run_id,
            call_id=signal.call_id,
            state=signal.state,  # type: ignore[arg-type]  # one of RunState's numbers
            usage=signal.usage,
        )
    )
    if signal.result is not None:
        calls.ended(draft, ToolEnded(signal.call_id, signal.attempt, signal.result, signal.elapsed_ns))
        return
    failed = ToolBroke(
        signal.call_id,
        signal.attempt,
        FailureClass.FAILURE_CLASS_PERMANENT,
        Executed.EXECUTED_YES if signal.state else Executed.EXECUTED_NO,
        signal.reason,
        signal.message,
        elapsed_ns=signal.elapsed_ns,
    )
    calls.record_failure(draft, call, failed, 0, is_final=True)
    calls.fail_if_told(draft, call, signal.reason, signal.message)
