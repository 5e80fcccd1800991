"""Sections of the configuration that tell of others: providers with their models, tool servers, policies of tools.

Above: `config`, which puts all sections together. Below: `config_kinds`. Values go into messages of the contract of the
same names (`planning`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from annotated_types import Len
from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from behestd.config_kinds import (
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
from behestd.tools.endpoint import allow_list


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
    Unset with kind "anthropic": what is known of the model."""
    context_window_tokens: Count = 0
    """Tokens of prompt and answer together. 0: unknown. Unset with kind "anthropic": what is known of the model."""
    max_output_tokens: Count = 0
    """Tokens of one answer. 0: unknown. Unset with kind "anthropic": what is known of the model."""
    max_prompt_cache_markers: Count = 4
    """Most markers of prompt prefixes to cache in one request, where the model takes them."""
    embedding_dimensions: Count = 0
    """Length of its vectors. 0: unknown, or none."""
    input_micro_usd: Count | None = None
    """Price of a million tokens of input, in millionths of a US dollar. Unset: unknown."""
    output_micro_usd: Count | None = None
    """Price of a million tokens of output."""
    cached_input_micro_usd: Count | None = None
    """Price of a million tokens of input that the provider had in its cache. Unset: as input."""
    cache_write_micro_usd: Count | None = None
    """Price of a million tokens of input written to the cache. Unset: as input."""


def _named(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


class Provider(Section):
    """A source of models, by the id that its models' ids begin with."""

    kind: Literal["openai", "anthropic", "scripted"]
    """"openai", "anthropic": any server of that interface. "scripted": built in, for tests; it has its own models."""
    base_url: Annotated[str, AfterValidator(_url)] = ""
    """Where the interface begins, with its version, as https://HOST/v1. Empty: at the vendor's."""
    api_key: SecretRef | None = None
    """The key, as env:NAME, file:/path or credential:NAME. Unset: none is sent."""
    models: tuple[Annotated[Model, BeforeValidator(_named)], ...] = ()
    """The models, each a name or a table."""
    headers: Mapping[str, HeaderText] = Field(default_factory=dict)
    """Headers of each request; a value may be a reference to a secret."""
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
        if self.kind == "anthropic" and "max_tokens_field" in foreign:
            raise ValueError("an anthropic provider has no max_tokens_field")
        return self


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


class Models(Section):
    """Which models are used when none is named."""

    default: str = "scripted/echo"
    """Model of agents and requests that name none, or an alias."""
    default_embedding: str = "scripted/embed"
    """Model of embeddings that name none, or an alias."""
    aliases: Mapping[Annotated[str, Len(1, 128)], str] = Field(default_factory=dict)
    """Other names of models: alias = "provider/name"."""
    fallbacks: Mapping[Annotated[str, Len(1, 128)], tuple[str, ...]] = Field(default_factory=dict)
    """Models to try after a model or alias, by its name, in calls that are no run: alias = ["provider/name"]."""
    timeouts: ModelTimeouts = ModelTimeouts()
    retries: Retries = Retries()


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
    """A tool server that is dialled at the start."""

    name: Name
    """Name of the server."""
    address: str
    """HOST:PORT, or unix:/path. Beyond loopback only with TLS."""
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
    """Tool servers that are dialled at the start."""
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
