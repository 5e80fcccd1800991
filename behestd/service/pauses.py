"""SetPaused: the kill switch of operators. Above: the edge. Below: the runtime's switch, and the runs that it wakes."""

from __future__ import annotations

from collections.abc import Mapping

from behest.v1 import daemon_service_pb2 as pb
from behestd.core.pauses import Pause
from behestd.errors import InvalidRequest
from behestd.runtime.house import House
from behestd.runtime.pauses import key_of
from behestd.runtime.supervisor import Supervisor
from behestd.service.call import Call
from behestd.service.methods import Handler
from behestd.service.validate import identifier, max_bytes

_NAME = "/behest.v1.DaemonService/"
_MAX_REASON_BYTES = 1024
_MAX_NAME_BYTES = 256


class PauseSwitch:
    """Handlers of DaemonService for pauses."""

    def __init__(self, house: House, supervisor: Supervisor) -> None:
        self._house = house
        self._supervisor = supervisor

    def handlers(self) -> Mapping[str, Handler]:
        """The handlers by full name."""
        return {_NAME + "SetPaused": self.set_paused}

    async def set_paused(self, request: pb.SetPausedRequest, call: Call) -> pb.SetPausedResponse:
        """Put a pause in force, or lift it."""
        _check(request)
        call.names(paused=str(request.paused).lower(), why=request.reason)
        house = self._house
        key = key_of(request.target, call.namespace)
        if request.paused:
            reason, now_ns = request.reason, house.clock.now_ns()
            await house.switch.pause(house.log, key, Pause(key[1], key[2], reason, call.caller.principal, now_ns))
        elif await house.switch.lift(house.log, key):
            self._supervisor.wake()
        return pb.SetPausedResponse(pauses=house.switch.shown(call.namespace))


def _check(request: pb.SetPausedRequest) -> None:
    target = request.target
    match target.WhichOneof("target"):
        case "tool_name":
            identifier("target.tool_name", target.tool_name)
        case "agent_id":
            identifier("target.agent_id", target.agent_id)
        case "namespace":
            identifier("target.namespace", target.namespace)
        case "model":
            max_bytes("target.model", target.model, _MAX_NAME_BYTES)
            provider, slash, name = target.model.partition("/")
            if not (provider and slash and name):
                raise InvalidRequest("target.model", "is not the id of a model, which is `provider/name`")
        case "all":
            if not target.all:
                raise InvalidRequest("target.all", "may only be true")
        case _:
            raise InvalidRequest("target", "is required")
    max_bytes("reason", request.reason, _MAX_REASON_BYTES)
    if request.paused and not request.reason.strip():
        raise InvalidRequest("reason", "is required to pause something")
