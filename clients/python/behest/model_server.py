"""A provider of models in a few lines: decorate async functions, then be dialled by daemons, or attach to one, or both.

    server = ProviderServer()

    @server.chat_model
    async def parrot(chat: Chat) -> AsyncIterator[str]:
        for word in last_text(chat).split():
            yield word + " "

    async with server:
        await server.attach("127.0.0.1:7717", name="birds")
        await server.wait()

The daemon routes to the model as `birds/parrot`. What a function yields is shown as it comes, and is the answer when it
ends. A provider server is a tool server too: both may be served by one process, under one name. Above: programs. Below:
`tools`, which brings the two modes, and `model_service`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar, overload

from behest.model_answer import Finish, Piece, Reasoning, ToolCall
from behest.model_service import ModelContext, ModelError, entry_of
from behest.tools import ToolServer
from behest.v1.chat_service_pb2 import Chat
from behest.v1.message_pb2 import Message, Role
from behest.v1.model_pb2 import Model, ModelCapabilities, ModelLimits
from behest.v1.usage_pb2 import Usage

__all__ = [
    "Chat",
    "Finish",
    "ModelContext",
    "ModelError",
    "Piece",
    "ProviderServer",
    "Reasoning",
    "ToolCall",
    "Usage",
    "last_text",
    "text_of",
]

AnyFunction = TypeVar("AnyFunction", bound=Callable[..., Any])


class ProviderServer(ToolServer):
    """Serves functions as models, from `async with` to its end. Register models before that.

    Listening, attaching, draining and the token are those of `ToolServer`, and so are tools, if there are any.
    """

    @overload
    def chat_model(self, function: AnyFunction, /) -> AnyFunction: ...
    @overload
    def chat_model(
        self,
        *,
        name: str = "",
        capabilities: Iterable[str] = (),
        context_window_tokens: int = 0,
        max_output_tokens: int = 0,
        display_name: str = "",
    ) -> Callable[[AnyFunction], AnyFunction]: ...

    def chat_model(
        self,
        function: Any = None,
        *,
        name: str = "",
        capabilities: Iterable[str] = (),
        context_window_tokens: int = 0,
        max_output_tokens: int = 0,
        display_name: str = "",
    ) -> Any:
        """Register a chat model, as `@server.chat_model` or `@server.chat_model(capabilities=["tools"], …)`.

        The function is an async generator of pieces (text, `Reasoning`, `ToolCall`, `Usage`, `Finish`), or an async
        function that returns a text or a list of pieces. It gets the chat, and the `ModelContext` if it has a second
        parameter. Usage that it does not tell is estimated. It is stopped where it waits when the answer is not wanted
        any more. The name defaults to the function's; `capabilities` are fields of ModelCapabilities beside `chat` and
        `streaming`: the daemon sends nothing that needs others. Raises ValueError for a name that is taken and for a
        capability that there is not, TypeError for another signature.
        """

        def register(function: AnyFunction) -> AnyFunction:
            able = dict.fromkeys(("chat", "streaming", *capabilities), True)
            model = Model(
                id=name or function.__name__,
                display_name=display_name,
                capabilities=ModelCapabilities(**able),
                limits=ModelLimits(context_window_tokens=context_window_tokens, max_output_tokens=max_output_tokens),
            )
            self._service.models.add(entry_of(model, function))
            return function

        return register if function is None else register(function)

    @overload
    def embedding_model(self, function: AnyFunction, /) -> AnyFunction: ...
    @overload
    def embedding_model(
        self, *, name: str = "", dimensions: int = 0, display_name: str = ""
    ) -> Callable[[AnyFunction], AnyFunction]: ...

    def embedding_model(
        self, function: Any = None, *, name: str = "", dimensions: int = 0, display_name: str = ""
    ) -> Any:
        """Register an embedding model, as `@server.embedding_model` or `@server.embedding_model(dimensions=384)`.

        The function gets a list of texts, and returns one vector for each, in order; a plain one runs in a thread. A
        model that lets one choose the length finds it as `context.request.dimensions`. Raises as `chat_model`.
        """

        def register(function: AnyFunction) -> AnyFunction:
            model = Model(
                id=name or function.__name__,
                display_name=display_name,
                capabilities=ModelCapabilities(embeddings=True),
                limits=ModelLimits(embedding_dimensions=dimensions),
            )
            self._service.models.add(entry_of(model, function))
            return function

        return register if function is None else register(function)

    @property
    def models(self) -> list[Model]:
        """The models, by ascending name."""
        return self._service.models.listed


def text_of(message: Message) -> str:
    """The text of a message: its text parts, one after the other, those of tool results included."""
    texts = []
    for part in message.parts:
        if part.HasField("text"):
            texts.append(part.text.text)
        elif part.HasField("tool_result"):
            texts.extend(inner.text.text or inner.json.json for inner in part.tool_result.parts)
    return "".join(texts)


def last_text(chat: Chat) -> str:
    """The text of the last message that a person wrote. Empty when there is none."""
    said = [message for message in chat.messages if message.role == Role.ROLE_USER]
    return text_of(said[-1]) if said else ""
