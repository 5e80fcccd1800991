"""`behest artifacts`: files that runs and clients share."""

from __future__ import annotations

import mimetypes
from pathlib import Path
from typing import TYPE_CHECKING

import click

from behest.cli.command import connected, pairs
from behest.v1 import artifact_service_pb2

if TYPE_CHECKING:
    from behest.cli.show import Output
    from behest.client import Client

COLUMNS = ("id", "name", "media_type", "size_bytes", "session_id", "run_id", "create_time")


@click.group()
def artifacts() -> None:
    """Send and fetch files."""


@artifacts.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--session", default="", help="Session that owns it and takes it along.")
@click.option("--name", default="", help="Name to show. Default: the file's.")
@click.option("--media-type", default="", help="Media type. Default: guessed from the name.")
@click.option("--label", multiple=True, metavar="KEY=VALUE", help="Label; may be repeated.")
@connected
async def put(
    client: Client, out: Output, file: Path, session: str, name: str, media_type: str, label: tuple[str, ...]
) -> None:
    """Send a file, and return when it is durable."""
    guessed = mimetypes.guess_type(file.name)[0] or ""
    artifact = await client.artifacts.upload(
        file, name=name, media_type=media_type or guessed, session_id=session, labels=pairs(label)
    )
    out.document(artifact)


@artifacts.command()
@click.argument("artifact_id", metavar="ARTIFACT")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path), required=False)
@click.option("--offset", type=click.IntRange(min=0), default=0, help="First byte.")
@click.option("--length", type=click.IntRange(min=0), help="Most bytes.")
@connected
async def get(
    client: Client, out: Output, artifact_id: str, file: Path | None, offset: int, length: int | None
) -> None:
    """Fetch an artifact into FILE; without one, show what it is. FILE - is stdout."""
    if file is None:
        out.document(await client.artifacts.get(artifact_id))
        return
    chunks = client.artifacts.download(artifact_id, offset_bytes=offset, length_bytes=length)
    with click.open_file(str(file), "wb", atomic=str(file) != "-") as stream:
        async for chunk in chunks:
            stream.write(chunk)


@artifacts.command("list")
@click.option("--session", default="", help="Artifacts of this session.")
@click.option("--run", "run_id", default="", help="Artifacts of this run.")
@click.option("--limit", type=click.IntRange(min=0), default=50, show_default=True, help="Most artifacts; 0 is all.")
@connected
async def list_artifacts(client: Client, out: Output, session: str, run_id: str, limit: int) -> None:
    """List artifacts, newest first."""
    request = artifact_service_pb2.ListArtifactsRequest(page_size=limit, session_id=session, run_id=run_id)
    await out.listing(client.artifacts.list(request), COLUMNS, limit)


@artifacts.command()
@click.argument("artifact_id", metavar="ARTIFACT")
@connected
async def delete(client: Client, out: Output, artifact_id: str) -> None:
    """Delete an artifact."""
    await client.artifacts.delete(artifact_id)
    out.done(f"deleted {artifact_id}")
