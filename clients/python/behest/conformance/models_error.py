"""Checks of what a provider server refuses, and of calls that nobody waits for any more.

Above: `models`, the table. Below: `models_survey`. A refusal has a status of the contract with its reason. That work
stops cannot be seen from outside; that it holds up nothing can.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import grpc

from behest.conformance.models_survey import TOOLS, chat_of
from behest.conformance.verdict import expect, skip
from behest.v1.chat_service_pb2 import Chat, CompleteChatRequest, CompleteChatResponse
from behest.v1.embedding_service_pb2 import EmbedRequest, EmbedResponse
from behest.v1.message_pb2 import Message, Role
from behest.v1.model_service_pb2 import ListModelsRequest, ListModelsResponse

if TYPE_CHECKING:
    from behest.conformance.models_survey import Subject
    from behest.conformance.wire import Ending

NO_MODEL = "no-such-model"
OVERSIZE_BYTES = 20 * 1024 * 1024
NESTING = 20_000
ABANDONED = 16
DEADLINE_SECONDS = 1.0
_FAULTS = (grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL, grpc.StatusCode.UNAVAILABLE)


async def unknown_model(subject: Subject) -> str:
    """A model that is not there is NOT_FOUND, PROVIDER_MODEL_NOT_FOUND."""
    chat = chat_of(NO_MODEL, "hello")
    _expect_not_found("a chat", (await subject.probe.chat(chat)).ending)
    request = CompleteChatRequest(chat=chat)
    got = await subject.probe.unary("ChatService/CompleteChat", request, CompleteChatResponse)
    _expect_not_found("CompleteChat", got.ending)
    if subject.embedding_model:
        wanted = EmbedRequest(model=NO_MODEL, inputs=["a"])
        _expect_not_found("Embed", (await subject.probe.unary("EmbeddingService/Embed", wanted, EmbedResponse)).ending)
    return "NOT_FOUND PROVIDER_MODEL_NOT_FOUND"


async def invalid(subject: Subject) -> str:
    """A chat that makes no sense is refused as INVALID_ARGUMENT, and not by a fault."""
    _need_chat(subject)
    empty, mute = Chat(model=subject.chat_model), Chat(model=subject.chat_model)
    mute.messages.append(Message(role=Role.ROLE_USER))
    for what, chat in (("a chat without messages", empty), ("a message without parts", mute)):
        _expect_invalid(what, (await subject.probe.chat(chat)).ending)
    return "INVALID_ARGUMENT"


async def invalid_embeddings(subject: Subject) -> str:
    """Texts that are none are refused as INVALID_ARGUMENT."""
    if not subject.embedding_model:
        skip("no embedding model is listed")
    for what, inputs in (("no texts", []), ("an empty text", ["a", ""])):
        request = EmbedRequest(model=subject.embedding_model, inputs=inputs)
        got = await subject.probe.unary("EmbeddingService/Embed", request, EmbedResponse)
        _expect_invalid(what, got.ending)
    return "INVALID_ARGUMENT"


async def capability(subject: Subject) -> str:
    """What a model cannot do is refused as PROVIDER_CAPABILITY_MISSING, before it is tried."""
    tried = 0
    for model in subject.models:
        if model.capabilities.chat and not model.capabilities.tools:
            ending = (await subject.probe.chat(chat_of(model.id, "hello", tools=TOOLS))).ending
        elif not model.capabilities.chat:
            ending = (await subject.probe.chat(chat_of(model.id, "hello"))).ending
        else:
            continue
        tried += 1
        is_refused = ending.reason == "PROVIDER_CAPABILITY_MISSING"
        expect(is_refused, f"{model.id}, asked for what it cannot do, ended with {ending}")
        if tried == 3:
            break
    if not tried:
        skip("every model can do everything")
    return f"{tried} refused"


async def token(subject: Subject) -> str:
    """A call without the token is UNAUTHENTICATED."""
    if not subject.probe.token:
        skip("no token is asked for")
    listed = await subject.probe.unary(
        "ModelService/ListModels", ListModelsRequest(), ListModelsResponse, has_token=False
    )
    request = CompleteChatRequest(chat=chat_of(subject.chat_model, "hello"))
    chatted = await subject.probe.unary("ChatService/CompleteChat", request, CompleteChatResponse, has_token=False)
    for what, ending in (("ListModels", listed.ending), ("CompleteChat", chatted.ending)):
        is_refused = ending.code is grpc.StatusCode.UNAUTHENTICATED
        expect(is_refused, f"{what} without the token ended with {ending}, not UNAUTHENTICATED")
    return "UNAUTHENTICATED"


async def oversize(subject: Subject) -> str:
    """A request of 20 MiB is refused, and the server lives on; so is JSON of great depth."""
    _need_chat(subject)
    reply = await subject.probe.chat(subject.chat("a" * OVERSIZE_BYTES))
    expect(not reply.is_open, "a chat of 20 MiB was not answered")
    is_fault = reply.ending.code in _FAULTS
    expect(not is_fault, f"a chat of 20 MiB ended with {reply.ending}")
    depth = '{"a":' * NESTING + "1" + "}" * NESTING
    deep = await subject.probe.chat(subject.chat(provider_options_json=depth))
    expect(not deep.is_open, "options of great depth were not answered")
    expect(deep.ending.code not in _FAULTS, f"options of great depth ended with {deep.ending}")
    return f"{reply}, {deep}"


async def cancel(subject: Subject) -> str:
    """Chats that were cancelled hold up nothing."""
    return await _abandoned(subject, None)


async def deadline(subject: Subject) -> str:
    """Chats whose deadline has passed hold up nothing."""
    return await _abandoned(subject, DEADLINE_SECONDS)


async def timeout(subject: Subject) -> str:
    """A chat that may take a second ends by then, as DEADLINE_EXCEEDED PROVIDER_TIMEOUT."""
    _need_chat(subject)
    asked = subject.long()
    asked.timeout.FromMilliseconds(int(DEADLINE_SECONDS * 1000))
    reply = await subject.probe.chat(asked)
    if reply.is_good:
        skip("the long answer ended too soon: say what makes a longer one with --long")
    expect(not reply.is_open, f"a chat that may take {DEADLINE_SECONDS:g} s gave {reply}")
    told = (reply.ending.code, reply.ending.reason)
    is_told = told == (grpc.StatusCode.DEADLINE_EXCEEDED, "PROVIDER_TIMEOUT")
    expect(is_told, f"a chat that may take {DEADLINE_SECONDS:g} s ended with {reply.ending}")
    return f"{reply.ending} after {reply.seconds:.1f} s"


async def _abandoned(subject: Subject, deadline_seconds: float | None) -> str:
    """Make long chats, leave them, and have another one answered."""
    _need_chat(subject)
    started = [subject.probe.start(subject.long(), deadline_seconds=deadline_seconds) for _ in range(ABANDONED)]
    went_on = [await each.begun(1.0) for each in started]
    patience = 0.0 if deadline_seconds is None else 3 * deadline_seconds
    given = [await each.finish(patience) for each in started]
    if not any(went_on) or all(reply.is_good for reply in given):
        skip("the long answers ended too soon: say what makes longer ones with --long")
    if deadline_seconds is not None:
        late = [reply for reply in given if reply.is_open]
        expect(not late, f"{len(late)} chats went on after their deadline")
    reply = await subject.probe.chat(subject.chat())
    expect(reply.is_good, f"after {ABANDONED} chats were left, another one gave {reply}")
    return f"answered after {ABANDONED} were left"


def _need_chat(subject: Subject) -> None:
    if not subject.chat_model:
        skip("no chat model is listed")


def _expect_not_found(what: str, ending: Ending) -> None:
    told = (ending.code, ending.reason)
    is_told = told == (grpc.StatusCode.NOT_FOUND, "PROVIDER_MODEL_NOT_FOUND") and not ending.garbage
    expect(is_told, f"{what} of no model ended with {ending}, not NOT_FOUND PROVIDER_MODEL_NOT_FOUND")


def _expect_invalid(what: str, ending: Ending) -> None:
    is_told = ending.code is grpc.StatusCode.INVALID_ARGUMENT and bool(ending.reason) and not ending.garbage
    expect(is_told, f"{what} ended with {ending}, not INVALID_ARGUMENT with a reason")
