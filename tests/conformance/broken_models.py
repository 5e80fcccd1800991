"""A provider server written from the contract alone, without the SDK, that breaks it in one way for each switch.

With no fault switched on it keeps the contract. Its chat model repeats what it is told (`echo`), calls the tools that
are named in it, and speaks for ever when it is told so (`for ever`). Above: `test_models`, whose table says which check
must find which fault.

    python -m tests.conformance.broken_models [HOST:PORT [FAULT …]]
"""

from __future__ import annotations

import asyncio
import json
import math
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from hashlib import blake2b
from typing import Any

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status

from behest.v1.chat_pb2 import FinishReason, ToolChoiceMode
from behest.v1.chat_service_pb2 import (
    Chat,
    ChatDelta,
    ChatEnd,
    CompleteChatRequest,
    CompleteChatResponse,
    StreamChatRequest,
    StreamChatResponse,
    ToolCallDelta,
)
from behest.v1.embedding_service_pb2 import Embedding, EmbedRequest, EmbedResponse
from behest.v1.message_pb2 import ImagePart, Message, Part, ReasoningPart, Role, TextPart, ToolCall
from behest.v1.model_pb2 import Model, ModelCapabilities, ModelLimits, Price
from behest.v1.model_service_pb2 import GetModelRequest, GetModelResponse, ListModelsRequest, ListModelsResponse
from behest.v1.usage_pb2 import Usage, UsageSource

LIMIT_BYTES = 4 * 1024 * 1024
FOR_EVER = "for ever"
SLOTS = 4
"""How many answers are given at once where leaving them frees nothing."""
DIMENSIONS = 8
REFUSALS = {
    "PROVIDER_MODEL_NOT_FOUND": grpc.StatusCode.NOT_FOUND,
    "PROVIDER_CAPABILITY_MISSING": grpc.StatusCode.FAILED_PRECONDITION,
    "PROVIDER_TIMEOUT": grpc.StatusCode.DEADLINE_EXCEEDED,
    "PROVIDER_RATE_LIMITED": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "REQUEST_INVALID": grpc.StatusCode.INVALID_ARGUMENT,
    "AUTH_REQUIRED": grpc.StatusCode.UNAUTHENTICATED,
    "RUNTIME_INTERNAL": grpc.StatusCode.INTERNAL,
}


class Broken:
    """The server, with its faults."""

    def __init__(self, faults: frozenset[str], token: str) -> None:
        self.faults = faults
        self._token = token
        self._listed = 0
        self._slots = SLOTS
        self._last = ""
        self._alone = asyncio.Lock()

    def has(self, fault: str) -> bool:
        """Whether a fault is switched on."""
        return fault in self.faults

    # --- models ---

    def _models(self) -> list[Model]:
        limits, price = ModelLimits(context_window_tokens=1000), Price(input_micro_usd=1)
        if self.has("figure-negative"):
            limits.context_window_tokens = -1
        if self.has("price-negative"):
            price.output_micro_usd = -5
        able = ModelCapabilities(chat=True, streaming=True, tools=True)
        made = [
            Model(id="echo", capabilities=able, limits=limits, prices=[price]),
            Model(id="plain", capabilities=ModelCapabilities(chat=True)),
            Model(
                id="vectors",
                capabilities=ModelCapabilities(embeddings=True),
                limits=ModelLimits(embedding_dimensions=5 if self.has("dimensions-lie") else DIMENSIONS),
            ),
        ]
        if self.has("name-illegal"):
            made[1].id = "no name"
        if self.has("name-twice"):
            made[1].id = "echo"
        if self.has("able-to-nothing"):
            made[1].capabilities.Clear()
        if self.has("order-lost"):
            made.reverse()
        return [] if self.has("list-empty") else made

    async def list_models(self, request: ListModelsRequest, context: Any) -> ListModelsResponse:
        """ListModels."""
        await self._check_token(context)
        self._listed += 1
        if request.page_size < 0 and not self.has("negative-page-taken"):
            await self._refuse(context, "REQUEST_INVALID")
        models = self._models()
        if self.has("list-changes") and self._listed > 1:
            models[0].display_name = f"call {self._listed}"
        wanted = [field.name for field, _ in request.capabilities.ListFields()]
        if not self.has("filter-ignored"):
            models = [each for each in models if all(getattr(each.capabilities, name) for name in wanted)]
        start = int(request.page_token or 0)
        size = 50 if self.has("page-size-ignored") else abs(request.page_size) or 50
        end = start + size
        token = str(end) if end < len(models) else ""
        if self.has("pages-without-end"):
            token = str(end % max(len(models), 1)) if request.page_size else ""
        return ListModelsResponse(models=models[start:end], next_page_token=token)

    async def get_model(self, request: GetModelRequest, context: Any) -> GetModelResponse:
        """GetModel."""
        await self._check_token(context)
        for model in self._models():
            if model.id == request.model:
                model.display_name += "Another" if self.has("get-differs") else ""
                return GetModelResponse(model=model)
        return await self._refuse(context, "PROVIDER_MODEL_NOT_FOUND")

    # --- chats ---

    async def stream_chat(self, request: StreamChatRequest, context: Any) -> AsyncIterator[StreamChatResponse | bytes]:
        """StreamChat."""
        await self._check_token(context)
        await self._check(request.chat, context)
        limit = request.chat.timeout.ToMilliseconds() / 1000 if request.chat.HasField("timeout") else None
        if self.has("timeout-ignored"):
            limit = None
        if self.has("fails-always"):
            await self._refuse(context, "RUNTIME_INTERNAL")
        if self.has("slots-leak") and self._slots == 0:
            await self._refuse(context, "PROVIDER_RATE_LIMITED")
        self._slots -= 1
        has_ended = False
        try:
            async with asyncio.timeout(limit):
                if self.has("one-at-a-time"):
                    await self._alone.acquire()
                async for frame in self._frames(request.chat):
                    yield frame
            has_ended = True
        except TimeoutError:
            await self._refuse(context, "RUNTIME_INTERNAL" if self.has("timeout-untyped") else "PROVIDER_TIMEOUT")
        finally:
            if has_ended or not self.has("slots-leak"):
                self._slots += 1
            if has_ended and self._alone.locked():
                self._alone.release()

    async def _frames(self, chat: Chat) -> AsyncIterator[StreamChatResponse | bytes]:
        """The answer, frame by frame."""
        said = self._said(chat)
        if said == FOR_EVER:
            while True:
                yield _piece("again ")
                await asyncio.sleep(0.05)
        parts = self._parts(chat, said)
        if self.has("answers-mixed"):
            await asyncio.sleep(0.02)
            parts = self._parts(chat, self._last)
        for frame in self._shown(parts):
            yield frame
        end = self._end(chat, parts)
        if self.has("end-differs"):
            end.message.parts[0].text.text += "."
        if self.has("bad-utf8"):
            yield StreamChatResponse(end=end).SerializeToString().replace(said[:1].encode(), b"\xff")
            return
        if not self.has("end-missing"):
            yield StreamChatResponse(end=end)
        if self.has("end-twice"):
            yield StreamChatResponse(end=end)
        if self.has("frame-after-end"):
            yield _piece("more")

    def _shown(self, parts: list[Part]) -> list[StreamChatResponse]:
        if self.has("pieces-missing"):
            return []
        frames = []
        for index, part in enumerate(parts):
            index += 20_000 if self.has("part-far-away") else 0
            if part.HasField("tool_call"):
                name = "" if self.has("call-unnamed-piece") else part.tool_call.name
                shown = ToolCallDelta(name=name, arguments_json=part.tool_call.arguments_json)
                frames.append(StreamChatResponse(deltas=[ChatDelta(part=index, tool_call=shown)]))
                continue
            text = part.text.text
            half = len(text) // 2
            frames += [_piece(text[:half], index), _piece(text[half:], index)]
        if self.has("piece-of-no-kind"):
            frames.append(StreamChatResponse(deltas=[ChatDelta(part=0)]))
        if self.has("frame-huge"):
            frames.append(_piece("a" * (LIMIT_BYTES + 1)))
        return frames

    def _said(self, chat: Chat) -> str:
        texts = [part.text.text for message in chat.messages for part in message.parts if part.HasField("text")]
        self._last = texts[-1] if texts else ""
        return self._last

    def _parts(self, chat: Chat, said: str) -> list[Part]:
        if self.has("unicode-mangled"):
            said = said.encode("ascii", "replace").decode()
        parts = [Part(text=TextPart(text=said))]
        if self.has("part-of-wrong-kind"):
            parts.append(Part(image=ImagePart(uri="https://example.com/x.png")))
        may_call = chat.tool_choice.mode != ToolChoiceMode.TOOL_CHOICE_MODE_NONE or self.has("choice-ignored")
        if not may_call or said.startswith("echo"):
            return parts
        for number, tool in enumerate(tool for tool in chat.tools if tool.name in said):
            needs = "required" in json.loads(tool.input_schema_json)
            made = json.dumps({"id": 7}) if needs else "" if self.has("arguments-empty") else "{}"
            made = "[7]" if needs and self.has("arguments-no-object") else made
            name = "nothing" if self.has("call-of-no-tool") else tool.name
            call_id = "1" if self.has("call-ids-repeat") else str(number)
            parts.append(Part(tool_call=ToolCall(name=name, arguments_json=made, provider_call_id=call_id)))
        return parts

    def _end(self, chat: Chat, parts: list[Part]) -> ChatEnd:
        has_calls = any(part.HasField("tool_call") for part in parts)
        finish = FinishReason.FINISH_REASON_TOOL_CALLS if has_calls else FinishReason.FINISH_REASON_STOP
        if self.has("finish-missing"):
            finish = FinishReason.FINISH_REASON_UNSPECIFIED
        if self.has("finish-of-calls"):
            finish = FinishReason.FINISH_REASON_TOOL_CALLS
        usage = Usage(input_tokens=0 if self.has("usage-empty") else 3, output_tokens=2, attempts=1)
        if self.has("usage-negative"):
            usage.reasoning_tokens = -1
        role = Role.ROLE_USER if self.has("role-wrong") else Role.ROLE_ASSISTANT
        source = UsageSource.USAGE_SOURCE_REPORTED
        if self.has("kind-changes"):
            parts = [Part(reasoning=ReasoningPart(text=parts[0].text.text)), *parts[1:]]
        return ChatEnd(
            message=Message(role=role, parts=parts),
            finish_reason=finish,
            usage=None if self.has("usage-missing") else usage,
            usage_source=UsageSource.USAGE_SOURCE_UNSPECIFIED if self.has("source-missing") else source,
            model=chat.model,
        )

    async def complete_chat(self, request: CompleteChatRequest, context: Any) -> CompleteChatResponse:
        """CompleteChat."""
        await self._check_token(context)
        await self._check(request.chat, context)
        parts = self._parts(request.chat, self._said(request.chat))
        end = self._end(request.chat, parts)
        if self.has("complete-differs"):
            end.message.parts[0].text.text += " indeed"
        return CompleteChatResponse(end=end)

    async def _check(self, chat: Chat, context: Any) -> None:
        """Refuse what may not be asked."""
        model = next((each for each in self._models() if each.id == chat.model), None)
        if model is None:
            await self._refuse(context, "RUNTIME_INTERNAL" if self.has("unknown-fails") else "PROVIDER_MODEL_NOT_FOUND")
            raise AssertionError
        is_empty = not chat.messages or not all(message.parts for message in chat.messages)
        if is_empty and not self.has("empty-taken"):
            await self._refuse(context, "REQUEST_INVALID")
        if self.has("history-refused") and any(message.role == Role.ROLE_TOOL for message in chat.messages):
            await self._refuse(context, "REQUEST_INVALID")
        is_able = model.capabilities.chat and (model.capabilities.tools or not chat.tools)
        if not is_able and not self.has("capability-ignored"):
            await self._refuse(context, "PROVIDER_CAPABILITY_MISSING")
        if self.has("oversize-breaks") and len(chat.provider_options_json) > 64 * 1024:
            await self._refuse(context, "RUNTIME_INTERNAL")

    # --- vectors ---

    async def embed(self, request: EmbedRequest, context: Any) -> EmbedResponse:
        """Embed."""
        await self._check_token(context)
        if request.model != "vectors":
            await self._refuse(context, "PROVIDER_MODEL_NOT_FOUND")
        is_empty = not request.inputs or not all(request.inputs)
        if is_empty and not self.has("empty-texts-taken"):
            await self._refuse(context, "REQUEST_INVALID")
        size = request.dimensions or DIMENSIONS
        if request.dimensions and self.has("dimensions-ignored"):
            size = DIMENSIONS
        made = [Embedding(values=_vector(text, size)) for text in request.inputs]
        if self.has("vectors-swapped"):
            made.reverse()
        if self.has("vector-missing") and len(made) > 1:
            made.pop()
        if self.has("vector-shorter") and len(made) > 1:
            made[-1] = Embedding(values=made[-1].values[:-1])
        if self.has("vector-no-number"):
            made[0] = Embedding(values=[math.nan, *made[0].values[1:]])
        usage = Usage(input_tokens=0 if self.has("embed-usage-missing") else len(request.inputs), attempts=1)
        return EmbedResponse(embeddings=made, model=request.model, usage=usage)

    async def _check_token(self, context: Any) -> None:
        told = dict(context.invocation_metadata()).get("authorization", "")
        if self._token and told != f"Bearer {self._token}" and not self.has("token-ignored"):
            await self._refuse(context, "AUTH_REQUIRED")

    async def _refuse(self, context: Any, reason: str) -> Any:
        """End a call with a status and its reason, less what the faults leave out."""
        code = grpc.StatusCode.INTERNAL if self.has("refusals-internal") else REFUSALS[reason]
        detail = AnyMessage()
        detail.Pack(ErrorInfo(reason=reason, domain="behest"))
        told = Status(code=code.value[0], message=reason, details=[detail])
        details = (("grpc-status-details-bin", told.SerializeToString()),)
        await context.abort(code, reason, () if self.has("refusals-untyped") else details)


def _piece(text: str, part: int = 0) -> StreamChatResponse:
    return StreamChatResponse(deltas=[ChatDelta(part=part, text=text)])


def _vector(text: str, size: int) -> list[float]:
    digest = blake2b(text.encode(), digest_size=64).digest()
    return [digest[index % 64] / 256 - 0.5 for index in range(size)]


@asynccontextmanager
async def serving(*faults: str, token: str = "", address: str = "127.0.0.1:0") -> AsyncIterator[str]:
    """Serve with faults, on a free port unless an address is given; gives the address."""
    options = (("grpc.max_receive_message_length", LIMIT_BYTES), ("grpc.max_send_message_length", -1))
    server = grpc.aio.server(options=options)
    server.add_generic_rpc_handlers(tuple(_handlers(Broken(frozenset(faults), token))))
    port = server.add_insecure_port(address)
    await server.start()
    try:
        yield f"{address.rpartition(':')[0]}:{port}"
    finally:
        await server.stop(0)


def _handlers(broken: Broken) -> list[grpc.GenericRpcHandler]:
    def unary(method: Any, request: Any) -> Any:
        return grpc.unary_unary_rpc_method_handler(method, request.FromString, _bytes)

    stream = grpc.unary_stream_rpc_method_handler(broken.stream_chat, StreamChatRequest.FromString, _bytes)
    methods = {
        "ChatService": {"StreamChat": stream, "CompleteChat": unary(broken.complete_chat, CompleteChatRequest)},
        "EmbeddingService": {"Embed": unary(broken.embed, EmbedRequest)},
        "ModelService": {
            "ListModels": unary(broken.list_models, ListModelsRequest),
            "GetModel": unary(broken.get_model, GetModelRequest),
        },
    }
    return [grpc.method_handlers_generic_handler(f"behest.v1.{name}", made) for name, made in methods.items()]


def _bytes(message: Any) -> bytes:
    return message if isinstance(message, bytes) else bytes(message.SerializeToString())


async def main() -> None:
    """Serve until the process ends."""
    wanted, *faults = sys.argv[1:] or ["127.0.0.1:0"]
    async with serving(*faults, address=wanted) as address:
        sys.stdout.write(f"ready {address} {time.time():.0f}\n")
        sys.stdout.flush()
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
