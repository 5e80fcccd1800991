"""The provider that ships with the daemon: echoes, and obeys directives in the user's input. No key, no network.

Above: the catalog. Below: `script`, the language. What it answers follows from the conversation alone (the turn is
the number of answers since the input that holds the script), so a call repeated after a crash gives the same answer.
The one thing remembered is how often a `/fail N`-like directive has struck; a restart forgets it.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncGenerator, Sequence
from hashlib import blake2b

from behest.v1.chat_pb2 import ResponseFormatKind, ToolChoiceMode
from behest.v1.chat_service_pb2 import Chat
from behest.v1.embedding_service_pb2 import Embedding, EmbedRequest, EmbedResponse
from behest.v1.message_pb2 import Role
from behest.v1.model_pb2 import Model, ModelCapabilities, ModelLimits, Price
from behest.v1.model_pb2 import Provider as ProviderInfo
from behest.v1.usage_pb2 import Usage
from behestd.core.estimate import estimate_chat, estimate_text
from behestd.core.window import CONTINUE
from behestd.providers.failure import ProviderFailure
from behestd.providers.provider import Frame
from behestd.providers.script import Cut, Delay, Directive, Fail, Invoke, Say, Script, Stall, parse
from behestd.providers.script_answer import Answer, results, said
from behestd.providers.script_schema import instance

ID = "scripted"
DIMENSIONS = 64
MAX_DIMENSIONS = 4096
SMALL_TOKENS = 4_096
"""What fits into the small model."""
_MOST_REMEMBERED = 1024
_FRAME_PIECES = 256
_ALL = ModelCapabilities(
    chat=True,
    streaming=True,
    tools=True,
    parallel_tool_calls=True,
    image_input=True,
    audio_input=True,
    file_input=True,
    json_object=True,
    json_schema=True,
    reasoning=True,
)


def catalogued(provider_id: str) -> tuple[Model, ...]:
    """Make the models: one that can do all, others that lack something, one that costs money, one for embeddings."""
    limits = ModelLimits(context_window_tokens=1_000_000, max_output_tokens=200_000)
    small = ModelLimits(context_window_tokens=SMALL_TOKENS, max_output_tokens=SMALL_TOKENS // 8)
    free = Price(input_micro_usd=0, output_micro_usd=0)
    priced = Price(
        input_micro_usd=1_000_000,
        output_micro_usd=2_000_000,
        cached_input_micro_usd=100_000,
    )
    talk = ModelCapabilities(chat=True, streaming=True)
    vectors = ModelLimits(context_window_tokens=8_192, embedding_dimensions=DIMENSIONS)
    return (
        _model(f"{provider_id}/echo", _ALL, limits, free),
        _model(f"{provider_id}/embed", ModelCapabilities(embeddings=True), vectors, free),
        _model(f"{provider_id}/priced", _ALL, limits, priced),
        _model(f"{provider_id}/small", _ALL, small, free),
        _model(f"{provider_id}/text-only", talk, limits, free),
        _model(f"{provider_id}/unpriced", _ALL, limits, None),
    )


def _model(model_id: str, capabilities: ModelCapabilities, limits: ModelLimits, price: Price | None) -> Model:
    return Model(
        id=model_id,
        provider_id=model_id.partition("/")[0],
        capabilities=capabilities,
        limits=limits,
        prices=[] if price is None else [price],
    )


class Scripted:
    """The provider `scripted`, or a second one of another id, say to try a fallback."""

    def __init__(self, provider_id: str = ID) -> None:
        self._id = provider_id
        self._models = catalogued(provider_id)
        self._struck: OrderedDict[bytes, int] = OrderedDict()

    @property
    def id(self) -> str:
        """Return the id of the provider."""
        return self._id

    def describe(self) -> ProviderInfo:
        """Describe the provider."""
        return ProviderInfo(id=self._id, adapter=ID, display_name="Scripted answers")

    def models(self) -> Sequence[Model]:
        """Return the models."""
        return self._models

    async def stream(self, chat: Chat) -> AsyncGenerator[Frame, None]:
        """Answer by the script in the last input. Everything that is there without waiting goes into one frame."""
        self._check_size(chat)
        script, number = _script(chat)
        answer = Answer(chat, _turn(script, number, chat))
        cut_after = self._cut_after(answer.turn, chat, number)
        delay_seconds, pieces = 0.0, 0
        for index, directive in enumerate(answer.turn):
            if isinstance(directive, Delay):
                delay_seconds = directive.seconds
            elif isinstance(directive, Fail | Stall) and self._strikes(directive.times, chat, number, index):
                yield answer.frame()
                await _strike(directive)
            for piece in answer.pieces(directive):
                if pieces == cut_after:
                    yield answer.frame()
                    return
                if delay_seconds or len(answer.pending) == _FRAME_PIECES:
                    if answer.pending:
                        yield answer.frame()
                    await asyncio.sleep(delay_seconds)
                answer.pending.append(piece)
                pieces += 1
        if cut_after is None:
            yield answer.last_frame()
        elif answer.pending:
            yield answer.frame()

    async def embed(self, request: EmbedRequest) -> EmbedResponse:
        """Return vectors of length 1 made from hashes of the words, so that texts that share words are near."""
        dimensions = request.dimensions or DIMENSIONS
        if not 0 < dimensions <= MAX_DIMENSIONS:
            raise ProviderFailure("PROVIDER_REQUEST_INVALID", f"vectors have 1 to {MAX_DIMENSIONS} numbers")
        return EmbedResponse(
            embeddings=[Embedding(values=vector(text, dimensions)) for text in request.inputs],
            model=request.model,
            usage=Usage(input_tokens=sum(map(estimate_text, request.inputs)), attempts=1),
        )

    async def close(self) -> None:
        """Do nothing: there is nothing to release."""

    def _check_size(self, chat: Chat) -> None:
        """Refuse what the small model has no room for. The others have room for anything."""
        if chat.model == f"{self._id}/small" and (tokens := estimate_chat(chat)) > SMALL_TOKENS:
            text = f"prompt of {tokens} tokens exceeds the window of {SMALL_TOKENS} tokens"
            raise ProviderFailure("PROVIDER_CONTEXT_TOO_LONG", text)

    def _cut_after(self, turn: tuple[Directive, ...], chat: Chat, number: int) -> int | None:
        for index, directive in enumerate(turn):
            if isinstance(directive, Cut) and self._strikes(directive.times, chat, number, index):
                return directive.pieces
        return None

    def _strikes(self, times: int, chat: Chat, number: int, index: int) -> bool:
        """Count a directive as met, and say whether it strikes. The oldest of many counts are forgotten."""
        if not times:
            return True
        name = chat.run_id or "\n".join(map(said, chat.messages))
        key = blake2b(f"{name}\0{number}\0{index}".encode(), digest_size=16).digest()
        met = self._struck.pop(key, 0)
        self._struck[key] = met + 1
        if len(self._struck) > _MOST_REMEMBERED:
            self._struck.popitem(last=False)
        return met < times


async def _strike(directive: Fail | Stall) -> None:
    if isinstance(directive, Fail):
        raise ProviderFailure(
            directive.reason, "failed by its script", retry_after_seconds=directive.retry_after_seconds
        )
    await asyncio.get_running_loop().create_future()


def _script(chat: Chat) -> tuple[Script, int]:
    """Find the script and the turn that is due: the last input, or the last one that is to be repeated for ever."""
    answers = 0
    found: tuple[Script, int] | None = None
    for message in reversed(chat.messages):
        if message.role == Role.ROLE_ASSISTANT:
            answers += 1
        elif message.role == Role.ROLE_USER:
            text = said(message)
            if text != CONTINUE and (found is None or "/repeat" in text):
                script = parse(text)
                if script.repeats:
                    return script, answers
                found = found or (script, answers)
    return found or (Script(((),)), 0)


def _turn(script: Script, number: int, chat: Chat) -> tuple[Directive, ...]:
    """What is due: by the script, by what the call asks for, or the results of calls when the script is over."""
    turn = script.turn(number)
    if script.is_plain:
        turn = _asked_for(chat) or turn
    return (Say(results(chat)),) if turn is None else turn


def _asked_for(chat: Chat) -> tuple[Directive, ...] | None:
    """What a call asks for that brings no script: a call of a tool, or an answer in a form. None: nothing."""
    must_call = chat.tool_choice.mode in (
        ToolChoiceMode.TOOL_CHOICE_MODE_REQUIRED,
        ToolChoiceMode.TOOL_CHOICE_MODE_TOOL,
    )
    if must_call and chat.tools:
        named = [tool for tool in chat.tools if tool.name == chat.tool_choice.tool_name]
        tool = (named or list(chat.tools))[0]
        return (Invoke(tool.name, instance(tool.input_schema_json)),)
    if chat.response_format.kind == ResponseFormatKind.RESPONSE_FORMAT_KIND_JSON_SCHEMA:
        return (Say(instance(chat.response_format.schema_json)),)
    return None


def vector(text: str, dimensions: int) -> list[float]:
    """Hash the words of a text into a vector of length 1."""
    values = [0.0] * dimensions
    for word in text.lower().split() or [text]:
        digest = int.from_bytes(blake2b(word.encode(), digest_size=8).digest(), "big")
        values[(digest >> 1) % dimensions] += 1.0 if digest & 1 else -1.0
    length = sum(value * value for value in values) ** 0.5
    if not length:
        values[0] = length = 1.0
    return [value / length for value in values]
