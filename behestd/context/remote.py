"""Context of registered servers, over gRPC: one call of ContextService.ProvideContext on the connection of the server.

See `source` for the promises. Above: the runtime, which finds the server. Below: `wire`, which has the connection.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from behest.v1.context_service_pb2 import ProvideContextRequest, ProvideContextResponse
from behest.v1.message_pb2 import Message
from behestd.context.source import SourceFailure
from behestd.wire.endpoint import EndpointRefused
from behestd.wire.remote_channel import Line, NotReached
from behestd.wire.remote_status import is_cancelled, of_error

CONNECT_SECONDS = 5.0
_METHOD = "/behest.v1.ContextService/ProvideContext"


class RemoteSource:
    """A source of a dialled server."""

    def __init__(self, line: Line) -> None:
        self._line = line

    async def provide(self, request: ProvideContextRequest, timeout_seconds: float) -> Sequence[Message]:
        """Ask the server. Raises SourceFailure."""
        token = ""
        try:
            async with asyncio.timeout(timeout_seconds):
                await self._line.connect(min(timeout_seconds, CONNECT_SECONDS))
                ask: Any = self._line.opened().unary_unary(
                    _METHOD, request_serializer=ProvideContextRequest.SerializeToString
                )
                token, metadata = self._line.token(), self._line.metadata(())
                data: bytes = await ask(request, timeout=timeout_seconds, metadata=metadata)
            return ProvideContextResponse.FromString(data).messages
        except grpc.aio.AioRpcError as exc:
            told = of_error(exc, token)
            text = f"the server answered {told.code.name}: {told.text}"
            raise SourceFailure(text, told.reason or "CONTEXT_SOURCE_FAILED") from exc
        except TimeoutError as exc:
            raise SourceFailure(f"no answer within {timeout_seconds:g} s") from exc
        except (NotReached, EndpointRefused) as exc:
            raise SourceFailure(f"the server is not reached: {exc}") from exc
        except asyncio.CancelledError as exc:
            if is_cancelled():
                raise
            raise SourceFailure("the connection to the server was closed") from exc
        except DecodeError as exc:
            raise SourceFailure("the answer of the server cannot be read") from exc
