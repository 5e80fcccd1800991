"""`behest embed`: vectors for texts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from behest.cli.command import connected

if TYPE_CHECKING:
    from behest.cli.show import Output
    from behest.client import Client


@click.command()
@click.argument("texts", nargs=-1, required=True)
@click.option("--model", default="", help="Model as provider/name. Default: the daemon's for embeddings.")
@click.option("--dimensions", type=click.IntRange(min=0), default=0, help="Numbers of a vector. Default: the model's.")
@connected
async def embed(client: Client, out: Output, texts: tuple[str, ...], model: str, dimensions: int) -> None:
    """Print a vector for each text, one a line."""
    answer = await client.embeddings.embed(texts, model=model, dimensions=dimensions)
    if out.is_json:
        out.document(answer)
        return
    for vector in answer.embeddings:
        out.done(" ".join(f"{number:.6g}" for number in vector.values))
    out.note(f"{answer.model}: {answer.usage.input_tokens} tokens")
