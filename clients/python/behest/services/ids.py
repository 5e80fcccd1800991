"""Ids that make calls repeatable."""

from __future__ import annotations

import uuid


def new_request_id() -> str:
    """Return an id that no other request has."""
    return str(uuid.uuid4())
