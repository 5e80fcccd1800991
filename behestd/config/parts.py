"""Sections of the configuration that tell of others: providers with their models, tool servers, policies of tools.

Above: `config`, which puts all sections together. Below: `kinds`. Values go into messages of the contract of the
same names (`planning`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from annotated_types import Len
from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from behestd.config.budgets import DatedPrice
from behestd.config.kinds import (
    Count,
    Flag,
    HeaderText,
    Name,
    Positive,
    PositiveSeconds,
    Seconds,
    SecretRef,
    Section,
    ToolGlob,
)
from behestd.providers import embedded_model
from behestd.wire.endpoint import allow_list


def _url(text: str) -> str:
    parts = urlsplit(text)
    if text and (parts.scheme not in ("http", "https") or not parts.hostname):
        raise ValueError("it must be http:// or https:// with a host")
    if parts.username is not None or parts.query or parts.fragment:
        raise ValueError("it holds a user, a query or a fragment: secrets belong in api_key or headers")
    return text


def _endpoint(text: str) -> str:
    allow_list([text])
    return text


class Model(Section):
    """A model of a provider. A text alone is its name."""

    name: Annotated[str, Len(1, 256)]
    """The name that the provider knows; the id is PROVIDER/NAME."""
    display_name: str = ""
    """Name for people."""
    capabilities: tuple[
        Literal[
            "chat",
            "embeddings",
            "streaming",
            "tools",
            "parallel_tool_calls",
            "image_input",
            "audio_input",
            "file_input",
            "json_object",
            "json_schema",
            "reasoning",
            "prompt_cache_markers",
        ],
        ...,
    ] = ("chat", "streaming", "tools", "parallel_tool_calls", "json_object", "json_schema")
    """What it can do, by the fields of ModelCapabilities. A request that needs more is refused before it is sent.
    Unset: what is known of the vendor's model."""
    context_window_tokens: Count = 0
    """Tokens of prompt and answer together. 0: unknown. Unset: what is known of the vendor's model."""
    max_output_tokens: Count = 0
    """Tokens of one answer. 0: unknown. Unset: what is known of the vendor's model."""
    max_prompt_cache_markers: Count = 4
    """Most markers of prompt prefixes to cache in one request, where the model takes them."""
    embedding_dimensions: Count = 0
    """Length of its vectors. 0: unknown, or none. Unset: what is known of the vendor's model."""
    requests_per_minute: Count = 0
    """Requests that the daemon sends it in a minute, a tenth of them at once. 0: no limit."""
    tokens_per_minute: Count = 0
    """Tokens of questions and answers in a minute, those of the question estimated at first. 0: no limit."""
    calls: Count = 0
    """Calls at once. 0: no limit."""
    input_micro_usd: Count | None = None
    """Price of a million tokens of input, in millionths of a US dollar. Unset: unknown."""
    output_micro_usd: Count | None = None
    """Price of a million tokens of output."""
    cached_input_micro_usd: Count | None = None
    """Price of a million tokens of input that the provider had in its cache. Unset: as input."""
    cache_write_micro_usd: Count | None = None
    """Price of a million tokens of input written to the cache. Unset: as input."""
    prices: tuple[DatedPrice, ...] = ()

    @model_validator(mode="after")
    def _has_one_price_a_day(self) -> Model:
        days = [price.since for price in self.prices]
        if len(set(days)) < len(days):
            raise ValueError("two prices count from the same day")
        return self


def _named(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


class Provider(Section):
    """A source of models, by the id that its models' ids begin with."""

    kind: Literal["openai", "anthropic", "embedded", "scripted"]
    """"openai", "anthropic": any server of that interface. "embedded": embeddings by a packaged model, computed here.
    "scripted": built in, for tests; it has its own models."""
    base_url: Annotated[str, AfterValidator(_url)] = ""
    """Where the interface begins, with its version, as https://HOST/v1. Empty: at the vendor's."""
    api_key: SecretRef | None = None
    """The key, as env:NAME, file:/path or credential:NAME. Unset: none is sent."""
    models: tuple[Annotated[Model, BeforeValidator(_named, json_schema_input_type=str | Model)], ...] = ()
    """The models, each a name or a table. With kind "embedded" there is one, all-minilm-l6-v2, also when unset."""
    headers: Mapping[str, HeaderText] = Field(default_factory=dict)
    """Headers of each request; a value may be a reference to a secret."""
    interface: Literal["chat_completions", "responses"] = "chat_completions"
    """How chat is spoken to it, with kind "openai": by POST /chat/completions, which all servers know, or by POST
    /responses, where the vendor's newer models call tools while they reason."""
    max_tokens_field: Literal["max_completion_tokens", "max_tokens"] = "max_completion_tokens"
    """The server's name of the limit of output; older servers know max_tokens only. With kind "openai"."""
    connect_seconds: PositiveSeconds = 5.0
    """How long a connection may take."""
    display_name: str = ""
    """Name for people."""

    @model_validator(mode="after")
    def _has_only_its_own(self) -> Provider:
        foreign = sorted(self.model_fields_set - {"kind"})
        if self.kind == "scripted" and foreign:
            raise ValueError(f"a scripted provider has no {foreign[0]}")
        if self.kind == "embedded":
            self._is_embedded(foreign)
        for name in ("interface", "max_tokens_field"):
            if self.kind == "anthropic" and name in foreign:
                raise ValueError(f"an anthropic provider has no {name}")
        return self

    def _is_embedded(self, foreign: list[str]) -> None:
        for name in foreign:
            if name not in ("models", "display_name"):
                raise ValueError(f"an embedded provider has no {name}")
        for model in self.models:
            if model.name != embedded_model.NAME:
                raise ValueError(f"the embedded model is {embedded_model.NAME}")
            if model.model_fields_set & {"capabilities", "embedding_dimensions", "max_output_tokens"}:
                raise ValueError("what the embedded model can do is not to be set")
            if model.context_window_tokens > embedded_model.MAX_TOKENS:
                raise ValueError(f"context_window_tokens is over the embedded model's {embedded_model.MAX_TOKENS}")


class ModelTimeouts(Section):
    """Time limits of one attempt at a model."""

    connect_seconds: PositiveSeconds = 5.0
    """Until a connection stands."""
    first_byte_seconds: PositiveSeconds = 60.0
    """From the start to the first piece."""
    stall_seconds: PositiveSeconds = 30.0
    """Between two pieces."""
    total_seconds: PositiveSeconds = 600.0
    """In all."""


class Retries(Section):
    """How attempts at models are repeated. A delay is random between 0 and base * 2^n, at most the cap."""

    attempts_per_endpoint: Positive = 3
    """Attempts at one model in a step."""
    attempts_per_step: Positive = 5
    """Attempts in a step, over all models."""
    base_seconds: Seconds = 0.5
    """The base of the delay."""
    cap_seconds: Seconds = 30.0
    """The longest delay, unless the provider asks for more."""
    budget: Seconds = 50.0
    """Retries at one model, of all runs together, that there are at the start and at most. 0: there is no budget."""
    budget_per_success: Seconds = 0.1
    """What a call that succeeds adds to the budget."""
    budget_per_second: PositiveSeconds = 0.5
    """What each second adds to the budget."""


class Breaker(Section):
    """When a model that fails is left alone. Failures are those to reach it, to keep it speaking, and of its server."""

    failures: Count = 10
    """Failures in a row, of all runs together, that open its circuit. 0: none do."""
    cool_down_seconds: PositiveSeconds = 30.0
    """How long nothing is sent to it then; twice as long each time that the one request after it fails too."""
    longest_cool_down_seconds: PositiveSeconds = 300.0
    """The longest of these times."""


class WeightedModel(Section):
    """One of the models of an alias. A text alone is its name, with weight 1."""

    model: Annotated[str, Len(1, 320)]
    """The model, "provider/name"."""
    weight: Positive = 1
    """How often it is chosen beside the others."""


def _weighted(value: Any) -> Any:
    return {"model": value} if isinstance(value, str) else value


_Weighted = Annotated[WeightedModel, BeforeValidator(_weighted, json_schema_input_type=str | WeightedModel)]
Alias = str | Annotated[tuple[_Weighted, ...], Len(1, 64)]


class Models(Section):
    """Which models are used when none is named."""

    default: str = "scripted/echo"
    """Model of agents and requests that name none, or an alias."""
    default_embedding: str = "scripted/embed"
    """Model of embeddings that name none, or an alias."""
    aliases: Mapping[Annotated[str, Len(1, 128)], Alias] = Field(default_factory=dict)
    """Other names of models: alias = "provider/name". Or several, [{model = "provider/name", weight = 9}, …]: a run has
    one of them, chosen by weight among those that can do what it needs."""
    fallbacks: Mapping[Annotated[str, Len(1, 128)], tuple[str, ...]] = Field(default_factory=dict)
    """Models to try after a model or alias, by its name, and after the fallbacks of an agent: alias =
    ["provider/name"]. Those that cannot do what is asked for are left out."""
    limit_wait_seconds: Seconds = 10.0
    """How long a call waits for the limits of its model (requests_per_minute, tokens_per_minute, calls) before it
    counts as one that the model asked to wait."""
    timeouts: ModelTimeouts = ModelTimeouts()
    retries: Retries = Retries()
    breaker: Breaker = Breaker()


class ToolTimeouts(Section):
    """Time limits of tool calls."""

    connect_seconds: PositiveSeconds | None = None
    """Until a connection stands. Unset: 5."""
    start_to_close_seconds: PositiveSeconds | None = None
    """From dispatch to result of one attempt. Unset: 30."""
    heartbeat_seconds: PositiveSeconds | None = None
    """Longest silence of a tool that promises progress. Unset: no such limit."""
    schedule_to_close_seconds: PositiveSeconds | None = None
    """All attempts together. Unset: 300."""


class ToolPolicy(Section):
    """What the operator says of a tool, by name or glob; a name wins over a glob, a longer glob over a shorter one."""

    side_effect: Literal["pure", "idempotent", "non_idempotent_queryable", "non_idempotent"] = "non_idempotent"
    """What calling it again does; decides what is repeated after a crash."""
    exclusive: Flag = False
    """Whether it runs alone within its run."""
    on_error: Literal["report_to_model", "fail_run"] = "report_to_model"
    """What a failure means for the run."""
    on_unknown: Literal["ask", "report_to_model", "fail_run"] = "ask"
    """What an unknown outcome means for the run."""
    max_attempts: Positive = 3
    """Attempts of one call."""
    doom_loop_exempt: Flag = False
    """Whether repeated identical calls are no doom loop, as for a tool that polls."""
    timeouts: ToolTimeouts = ToolTimeouts()


ToolPolicies = Annotated[Mapping[ToolGlob, ToolPolicy], Len(0, 256)]


class ServerTls(Section):
    """How a tool server is trusted, and how the daemon shows who it is."""

    ca: SecretRef | None = None
    """Authorities that may sign the server's certificate, PEM. Unset: those of the system."""
    certificate: SecretRef | None = None
    """The daemon's certificate, PEM, for mutual TLS."""
    key: SecretRef | None = None
    """The key of that certificate, PEM."""
    server_name: str = ""
    """Name that the server's certificate must carry. Empty: the host of the address."""

    @model_validator(mode="after")
    def _is_a_pair(self) -> ServerTls:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("certificate and key come together")
        return self


class ToolServer(Section):
    """A server of tools or models that is dialled at the start."""

    name: Name
    """Name of the server."""
    address: str
    """HOST:PORT, or unix:/path. Beyond loopback only with TLS."""
    offers: Annotated[tuple[Literal["tools", "chat", "embeddings", "context"], ...], Len(1)] = ("tools",)
    """What it serves. Its models have ids that begin with its name."""
    name_prefix: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{0,32}$")] = ""
    """What is put before the names of its tools."""
    token: SecretRef | None = None
    """Bearer token that is sent with each call."""
    tls: ServerTls | None = None
    """TLS. Unset: plaintext."""
    dedupe_retention_seconds: Seconds | None = None
    """How long the server knows its calls by key. Under 48 hours its tools count as non_idempotent, pure ones apart."""
    policies: ToolPolicies = Field(default_factory=dict)
    """Policies of its tools, by name with prefix, or glob. Those of `tools.policies` win over them."""


class Tools(Section):
    """Tools: what they may do, and who serves them."""

    policies: ToolPolicies = Field(default_factory=dict)
    servers: tuple[ToolServer, ...] = ()
    """Servers of tools and models that are dialled at the start."""
    allowed_endpoints: tuple[Annotated[str, AfterValidator(_endpoint)], ...] = ()
    """What callers may register as addresses of servers: names, "*." before one for all under it, IP addresses and
    networks. Empty: public addresses. Addresses that are not public need an entry for them; names do not give it."""

    @model_validator(mode="after")
    def _names_differ(self) -> Tools:
        names = [server.name for server in self.servers]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two servers have the name {name}")
        return self
