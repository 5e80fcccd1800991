"""`behest models`: what the daemon can call."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from behest.cli.command import connected
from behest.v1 import model_service_pb2

if TYPE_CHECKING:
    from behest.cli.show import Output
    from behest.client import Client

COLUMNS = ("id", "is_default", "health.state", "limits.context_window_tokens", "paused")


@click.group()
def models() -> None:
    """Show what models there are."""


@models.command("list")
@click.option("--provider", default="", help="Models of this provider.")
@click.option("--limit", type=click.IntRange(min=0), default=0, help="Most models. Default: all.")
@connected
async def list_models(client: Client, out: Output, provider: str, limit: int) -> None:
    """List models."""
    request = model_service_pb2.ListModelsRequest(page_size=limit, provider_id=provider)
    await out.listing(client.models.list(request), COLUMNS, limit)


@models.command()
@click.argument("model")
@connected
async def get(client: Client, out: Output, model: str) -> None:
    """Show a model by provider/name or alias."""
    out.document(await client.models.get(model))
