"""Finds out what a provider server is good for: which model to ask, and what its answers look like.

Above: the checks of models. Below: `models_probe`. A model cannot be made to say something: prompts are given that most
follow, and what no answer shows is skipped.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from behest.conformance.verdict import expect, skip
from behest.v1.chat_pb2 import ToolChoice, ToolChoiceMode
from behest.v1.chat_service_pb2 import Chat
from behest.v1.embedding_service_pb2 import EmbedRequest, EmbedResponse
from behest.v1.message_pb2 import Message, Part, Role, TextPart
from behest.v1.model_service_pb2 import ListModelsRequest, ListModelsResponse
from behest.v1.tool_pb2 import Tool

if TYPE_CHECKING:
    from behest.conformance.models_probe import ChatReply, ModelProbe
    from behest.v1.model_pb2 import Model, ModelCapabilities

MAX_PAGES = 1_000
MARK = "{mark}"
"""Stands in a prompt for a word that no other call has."""
TOOLS = (
    Tool(name="now", description="Tell the time.", input_schema_json='{"type":"object","properties":{}}'),
    Tool(
        name="look_up",
        description="Look a record up.",
        input_schema_json='{"type":"object","properties":{"id":{"type":"integer"}},"required":["id"]}',
    ),
)


@dataclass(frozen=True, slots=True)
class Prompts:
    """What is said to get a short answer, calls of the tools `now` and `look_up`, and a long answer."""

    text: str = "Answer with this one word and nothing else: {mark}"
    calls: str = "Call the tool now, and the tool look_up with the id 7. Say nothing else."
    long: str = "Count from one to ten thousand in words, without stopping."


@dataclass(frozen=True, slots=True)
class Subject:
    """What is examined: the server, its models as they were listed first, and answers of the chosen ones."""

    probe: ModelProbe
    prompts: Prompts
    models: tuple[Model, ...]
    listing: str
    chat_model: str
    embedding_model: str
    answer: ChatReply | None
    calling: ChatReply | None

    def model(self, name: str) -> Model:
        """Return a model that is listed."""
        return next(model for model in self.models if model.id == name)

    @property
    def good(self) -> ChatReply:
        """An answer that ended well. Raises Skipped when there is none, Failed when it did not."""
        if self.answer is None:
            skip("no chat model is listed")
        expect(self.answer.is_good, f"{self.chat_model} gave {self.answer}")
        return self.answer

    @property
    def called(self) -> ChatReply:
        """An answer that holds calls of tools. Raises Skipped when there is none."""
        if self.calling is None:
            skip("no chat model calls tools")
        if not any(part.HasField("tool_call") for part in self.calling.end.message.parts):
            skip(f"the model called no tool, it gave {self.calling}: say what makes it with --calls")
        return self.calling

    def chat(self, text: str = "", **fields: Any) -> Chat:
        """Make a call of the chat model."""
        said = text or self.prompts.text.replace(MARK, self.probe.mark())
        return chat_of(self.chat_model, said, **fields)

    def long(self, **fields: Any) -> Chat:
        """Make a call whose answer takes long."""
        return self.chat(self.prompts.long, **fields)

    async def embed(self, *inputs: str, **fields: Any) -> EmbedResponse:
        """Make vectors. Raises Failed, and Skipped where no model makes any."""
        if not self.embedding_model:
            skip("no embedding model is listed")
        request = EmbedRequest(model=self.embedding_model, inputs=inputs, **fields)
        got = await self.probe.unary("EmbeddingService/Embed", request, EmbedResponse)
        expect(got.ending.is_ok, f"{self.embedding_model} ended with {got.ending}")
        return got.value


def chat_of(model: str, text: str, **fields: Any) -> Chat:
    """Make a call that says one thing."""
    message = Message(role=Role.ROLE_USER, parts=[Part(text=TextPart(text=text))])
    return Chat(**({"model": model, "messages": [message]} | fields))


async def survey(probe: ModelProbe, prompts: Prompts, chosen: str, embedding: str) -> Subject:
    """List the models and ask the chosen ones; empty names choose the first that can."""
    models, listing = await listed(probe)
    names = [model.id for model in models]
    for wanted in (chosen, embedding):
        if wanted and wanted not in names:
            listing = listing or f"{wanted} is not listed"
    chat = chosen or next((model.id for model in models if model.capabilities.chat), "")
    vectors = embedding or next((model.id for model in models if model.capabilities.embeddings), "")
    answer = calling = None
    if chat in names:
        answer = await probe.chat(chat_of(chat, prompts.text.replace(MARK, probe.mark())))
        if next(model for model in models if model.id == chat).capabilities.tools:
            must = ToolChoice(mode=ToolChoiceMode.TOOL_CHOICE_MODE_REQUIRED)
            calling = await probe.chat(chat_of(chat, prompts.calls, tools=TOOLS, tool_choice=must))
    known = (chat if chat in names else "", vectors if vectors in names else "")
    return Subject(probe, prompts, tuple(models), listing, *known, answer, calling)


async def listed(
    probe: ModelProbe, *, page_size: int = 0, capabilities: ModelCapabilities | None = None
) -> tuple[list[Model], str]:
    """List all models, and say what went wrong, if anything did."""
    models: list[Model] = []
    token = ""
    for _ in range(MAX_PAGES):
        request = ListModelsRequest(page_size=page_size, page_token=token, capabilities=capabilities)
        page = await probe.unary("ModelService/ListModels", request, ListModelsResponse)
        if not page.ending.is_ok:
            return models, f"ListModels ended with {page.ending}"
        if page_size and len(page.value.models) > page_size:
            return models, f"a page of {page_size} held {len(page.value.models)} models"
        models.extend(page.value.models)
        token = page.value.next_page_token
        if not token:
            return models, ""
    return models, "the pages have no end"
