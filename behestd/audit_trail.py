"""Records reloads for the audit, whoever asked for them: an operator's call or a signal.

Above: `composition`. Below: the audit log. The names of keys are recorded, never their values.
"""

from __future__ import annotations

import time

from behestd.errors import BehestError
from behestd.log.audit import Row
from behestd.log.audit_writer import AuditLog
from behestd.reload import Outcome

METHOD = "daemon:reload"


class ReloadTrail:
    """Hears of reloads."""

    def __init__(self, log: AuditLog) -> None:
        self._log = log

    def begins(self, by: str) -> None:
        """Nothing has changed yet."""

    def ended(self, by: str, outcome: Outcome | None, error: BehestError | None) -> None:
        """Record what a reload changed, or why it changed nothing."""
        code, reason = ("OK", "") if error is None else ("FAILED", error.reason)
        targets = {"changed": ",".join(outcome.changed_keys)} if outcome is not None and outcome.changed_keys else {}
        self._log.note(Row(time.time_ns(), METHOD, principal=by, targets=targets, code=code, reason=reason))
