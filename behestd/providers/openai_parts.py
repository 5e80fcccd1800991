"""What both of the vendor's interfaces say in the same way: roles, choices, efforts, pictures, ids of calls. Pure.

Above: `openai_request`, `openai_responses_request`. Below: the table of models.
"""

from __future__ import annotations

import json
from base64 import b64encode
from hashlib import sha256
from typing import Any

from behest.v1.chat_pb2 import ReasoningEffort, ToolChoiceMode
from behest.v1.chat_service_pb2 import Chat
from behest.v1.message_pb2 import ImagePart, Part, Role
from behestd.providers.failure import ProviderFailure
from behestd.providers.openai_models import Reasons

Json = dict[str, Any]

_MAX_CALL_ID = 40
ROLES = {Role.ROLE_SYSTEM: "system", Role.ROLE_USER: "user", Role.ROLE_ASSISTANT: "assistant"}
CHOICES = {
    ToolChoiceMode.TOOL_CHOICE_MODE_AUTO: "auto",
    ToolChoiceMode.TOOL_CHOICE_MODE_NONE: "none",
    ToolChoiceMode.TOOL_CHOICE_MODE_REQUIRED: "required",
}
_EFFORTS = {
    ReasoningEffort.REASONING_EFFORT_NONE: "none",
    ReasoningEffort.REASONING_EFFORT_LOW: "low",
    ReasoningEffort.REASONING_EFFORT_MEDIUM: "medium",
    ReasoningEffort.REASONING_EFFORT_HIGH: "high",
}


def effort_of(chat: Chat, reasons: Reasons) -> str | None:
    """Choose the vendor's word for an effort; None: it is left to the model."""
    effort = _EFFORTS.get(chat.sampling.reasoning_effort)
    if effort is None and chat.tools and reasons is Reasons.UNLESS_CALLING:
        return "none"
    return "low" if effort == "none" and reasons is Reasons.ALWAYS else effort


def options_of(chat: Chat) -> Json:
    """Read the options that go over all other fields. Raises: ProviderFailure."""
    if not chat.provider_options_json:
        return {}
    options = parsed_json(chat.provider_options_json, "provider options")
    if not isinstance(options, dict):
        raise invalid("provider options are no JSON object")
    return options


def text_of(part: Part) -> str:
    """Return the text of a part. Raises: ProviderFailure when it is none."""
    kind = part.WhichOneof("kind")
    if kind == "text":
        return part.text.text
    if kind == "json":
        return part.json.json
    raise invalid(f"this provider takes no {kind} part here")


def picture_address(image: ImagePart) -> str:
    """Return where a picture is, its bytes being an address too. Raises: ProviderFailure when it is an artifact."""
    source = image.WhichOneof("source")
    if source == "data":
        return f"data:{image.media_type};base64,{b64encode(image.data).decode()}"
    if source == "uri":
        return image.uri
    raise invalid("the picture is an artifact that was not inlined")


def call_id(ours: str) -> str:
    """Make an id that these servers take, at most 40 characters, the same each time for the same id of ours."""
    return ours if len(ours) <= _MAX_CALL_ID else sha256(ours.encode()).hexdigest()[:_MAX_CALL_ID]


def parsed_json(text: str, what: str) -> Any:
    """Read JSON of the caller's. Raises: ProviderFailure PROVIDER_REQUEST_INVALID."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise invalid(f"{what} is no JSON") from error


def invalid(problem: str) -> ProviderFailure:
    """Make the failure of a call that cannot be written."""
    return ProviderFailure("PROVIDER_REQUEST_INVALID", problem)
