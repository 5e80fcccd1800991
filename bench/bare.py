"""A bare grpc.aio server: the daemon's own frames from the generated servicer, nothing behind them. The yardstick."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import grpc

from behest.v1 import run_service_pb2 as pb
from behest.v1.run_service_pb2_grpc import RunServiceServicer, add_RunServiceServicer_to_server
from behestd.service.settings import Settings


def read_frames(path: str) -> list[bytes]:
    """Read the frames from a file of length-prefixed ones."""
    data, at, frames = Path(path).read_bytes(), 0, []
    while at < len(data):
        size = int.from_bytes(data[at : at + 4])
        frames.append(data[at + 4 : at + 4 + size])
        at += 4 + size
    return frames


class Bare(RunServiceServicer):
    """Answers StreamRun with the frames, and GetRun with the same run each time."""

    def __init__(self, frames: list[bytes]) -> None:
        self._frames = [pb.StreamRunResponse.FromString(frame) for frame in frames[:-1]]
        self._run = pb.GetRunResponse.FromString(frames[-1])

    async def StreamRun(
        self, request: pb.StreamRunRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[pb.StreamRunResponse]:
        """Send the frames."""
        for frame in self._frames:
            yield frame

    async def GetRun(self, request: pb.GetRunRequest, context: grpc.aio.ServicerContext) -> pb.GetRunResponse:
        """Answer."""
        return self._run


async def main(path: str, ready_fd: int) -> None:
    """Serve until the process is ended."""
    server = grpc.aio.server(options=Settings().options())
    add_RunServiceServicer_to_server(Bare(read_frames(path)), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    with os.fdopen(ready_fd, "w") as pipe:
        pipe.write(f"127.0.0.1:{port}\n")
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[sys.argv.index("--ready-fd") + 1])))
