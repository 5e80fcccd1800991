"""What an HTTP provider's refusal means: status, headers and body to a `ProviderFailure`, by tables. Pure.

Above: adapters of HTTP providers. What the vendor says reaches the text of a failure only cut and cleaned: no key,
nothing that looks like one, no control characters; what is said about a rejected key, not at all.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Any

from behestd.providers.failure import ProviderFailure
from behestd.providers.secret import Secret

MAX_TEXT = 200
MAX_BODY_BYTES = 16 * 1024
_LONGEST_RETRY_SECONDS = 86_400.0
_QUOTA_CODES = frozenset(
    {
        "insufficient_quota",
        "insufficient_balance",
        "billing_error",
        "billing_hard_limit_reached",
        "billing_not_active",
        "contract_spend_limit_reached",
        "credit_balance_too_low",
        "enforced_spend_limit_reached",
        "linked_organization_spend_limit_reached",
        "quota_exceeded",
        "spend_limit_exceeded",
    }
)
_BY_CODE = {
    "context_length_exceeded": "PROVIDER_CONTEXT_TOO_LONG",
    "context_window_exceeded": "PROVIDER_CONTEXT_TOO_LONG",
    "exceed_context_size_error": "PROVIDER_CONTEXT_TOO_LONG",
    "request_too_large": "PROVIDER_CONTEXT_TOO_LONG",
    "string_above_max_length": "PROVIDER_CONTEXT_TOO_LONG",
    "content_filter": "PROVIDER_CONTENT_REFUSED",
    "content_policy_violation": "PROVIDER_CONTENT_REFUSED",
    "invalid_prompt": "PROVIDER_CONTENT_REFUSED",
    "moderation_blocked": "PROVIDER_CONTENT_REFUSED",
    "bio_policy": "PROVIDER_CONTENT_REFUSED",
    "image_content_policy_violation": "PROVIDER_CONTENT_REFUSED",
    "misalignment_policy_violation": "PROVIDER_CONTENT_REFUSED",
    "deployment_not_found": "PROVIDER_MODEL_REJECTED",
    "model_not_found": "PROVIDER_MODEL_REJECTED",
    "model_not_supported": "PROVIDER_MODEL_REJECTED",
    "authentication_error": "PROVIDER_CREDENTIALS_REJECTED",
    "invalid_api_key": "PROVIDER_CREDENTIALS_REJECTED",
    "not_found_error": "PROVIDER_MODEL_REJECTED",
    "permission_error": "PROVIDER_CREDENTIALS_REJECTED",
}
_BY_STATUS = {
    401: "PROVIDER_CREDENTIALS_REJECTED",
    403: "PROVIDER_CREDENTIALS_REJECTED",
    404: "PROVIDER_MODEL_REJECTED",
    413: "PROVIDER_CONTEXT_TOO_LONG",
}
_STATUS_OF_CODE = {
    "invalid_request_error": 400,
    "overloaded_error": 529,
    "rate_limit_error": 429,
    "rate_limit_exceeded": 429,
    "timeout_error": 504,
}
"""The status that an error inside a stream would have had; 500 unless its code is here or is one of `_BY_CODE`."""
_TOO_LONG = re.compile(r"context (?:window|size|length|limit)|prompt is too long", re.IGNORECASE)
_SPENT = re.compile(
    r"credit balance is too low|reached your (?:specified )?\w* ?(?:usage|spend\w*) limit", re.IGNORECASE
)
"""How a vendor says with status 400 that the money is spent."""
_ESCAPES = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_LOOKS_SECRET = re.compile(r"bearer\s+\S+|(?:(?:sk|pk|rk|key|ghp|xox\w)[-_]|AIza|AKIA)[\w*.-]{8,}|[\w+/=-]{32,}", re.I)
_CODE = re.compile(r"[A-Za-z][\w.-]{0,63}")


def refused(status: int, headers: Mapping[str, str], body: bytes, secret: Secret) -> ProviderFailure:
    """Tell what a response that is no success means. `headers` is read by lower-case names."""
    error = _error(body)
    code, said = _code(error), cleaned(str(error.get("message") or ""), secret)
    wait_seconds = retry_after_seconds(headers)
    reason = _reason(status, code, said, waits=wait_seconds is not None)
    text = " ".join(filter(None, (f"the provider answered {status}", code)))
    if said and reason != "PROVIDER_CREDENTIALS_REJECTED":
        text += f": {said}"
    return ProviderFailure(reason, text, retry_after_seconds=wait_seconds, metadata={"status": str(status)})


def broke_off(error: Mapping[str, Any], secret: Secret) -> ProviderFailure:
    """Tell what an error inside a stream that began well means. An unknown one may work the next time."""
    code, said = _code(error), cleaned(str(error.get("message") or ""), secret)
    status = error.get("code")
    if not isinstance(status, int):
        status = _STATUS_OF_CODE.get(code, 400 if code in _BY_CODE else 500)
    reason = _reason(status, code, said, waits=True)
    text = " ".join(filter(None, ("the provider broke off the answer", code)))
    if said and reason != "PROVIDER_CREDENTIALS_REJECTED":
        text += f": {said}"
    return ProviderFailure(reason, text)


def cleaned(text: str, secret: Secret) -> str:
    """Cut a vendor's text, and take out keys, what looks like one, and control characters."""
    if secret:
        text = text.replace(secret.reveal(), "***")
    text = _LOOKS_SECRET.sub("***", _ESCAPES.sub("", text[: 8 * MAX_TEXT]))
    text = "".join(character if character.isprintable() else " " for character in text)
    return text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]}…"


def retry_after_seconds(headers: Mapping[str, str]) -> float | None:
    """Read how long the provider asks to wait, at most a day; a date counts from the response's own."""
    for name, scale in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        seconds = _number(headers.get(name, ""), scale)
        if seconds is not None:
            return seconds
    try:
        until, now = (parsedate_to_datetime(headers.get(name, "")) for name in ("retry-after", "date"))
        return _number(str((until - now).total_seconds()), 1.0)
    except (ValueError, TypeError):
        return None


def _number(text: str, scale: float) -> float | None:
    try:
        seconds = float(text) * scale
    except ValueError:
        return None
    return min(max(seconds, 0.0), _LONGEST_RETRY_SECONDS) if math.isfinite(seconds) else None


def _reason(status: int, code: str, said: str, *, waits: bool) -> str:
    """Choose the reason, the most specific sign first."""
    if status == 402 or code in _QUOTA_CODES or (status == 400 and _SPENT.search(said)):
        return "PROVIDER_QUOTA"
    if status in (429, 529) and waits:
        return "PROVIDER_RATE_LIMITED"
    if status == 429:
        # Without a word on when to come back, trying again is hammering.
        return "PROVIDER_QUOTA"
    if status in (408, 504):
        return "PROVIDER_TIMEOUT"
    if status >= 500 or status in (409, 425):
        return "PROVIDER_UNAVAILABLE"
    known = _BY_CODE.get(code) or _BY_STATUS.get(status)
    if known is None and _TOO_LONG.search(said):
        return "PROVIDER_CONTEXT_TOO_LONG"
    return known or "PROVIDER_REQUEST_INVALID"


def _error(body: bytes) -> Mapping[str, Any]:
    """Find the error object in a body: `{"error": {…}}`, `{"error": "…"}` or the object itself."""
    try:
        document = json.loads(body[:MAX_BODY_BYTES])
    except (ValueError, RecursionError):
        return {}
    if not isinstance(document, dict):
        return {}
    error = document.get("error", document)
    return error if isinstance(error, dict) else {"message": error}


def _code(error: Mapping[str, Any]) -> str:
    """Return the error's code, or else its type, when it looks like a word; details count where they speak of money."""
    details = error.get("details")
    detail = details.get("error_code") if isinstance(details, dict) else None
    if isinstance(detail, str) and detail in _QUOTA_CODES:
        return detail
    for value in (error.get("code"), error.get("type")):
        if isinstance(value, str) and _CODE.fullmatch(value):
            return value
    return ""
