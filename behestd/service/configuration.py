"""DaemonService: the configuration in force, and the way to another one. Above: the edge. Below: the reload."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from behest.v1 import daemon_service_pb2 as pb
from behest.v1.component_pb2 import ComponentState, ComponentStatus
from behestd.core.times import timestamp
from behestd.service.call import Call
from behestd.service.methods import Handler

_NAME = "/behest.v1.DaemonService/"
_STATES = {
    "waiting": ComponentState.COMPONENT_STATE_STARTING,
    "starting": ComponentState.COMPONENT_STATE_STARTING,
    "running": ComponentState.COMPONENT_STATE_RUNNING,
    "stopping": ComponentState.COMPONENT_STATE_STOPPING,
    "stopped": ComponentState.COMPONENT_STATE_STOPPED,
}
"""All others have failed."""


class Setting(Protocol):
    """A setting in force, secrets masked."""

    @property
    def key(self) -> str: ...

    @property
    def value(self) -> Any: ...

    @property
    def source(self) -> str: ...


class Outcome(Protocol):
    """What a reload changed."""

    @property
    def changed_keys(self) -> Sequence[str]: ...

    @property
    def restart_keys(self) -> Sequence[str]: ...


class Reloading(Protocol):
    """The configuration of the daemon."""

    @property
    def config_time_ns(self) -> int:
        """When the one in force was read."""
        ...

    @property
    def restart_keys(self) -> Sequence[str]:
        """What waits for the next start."""
        ...

    def effective(self) -> Sequence[Setting]:
        """List what is in force. Raises Unsupported."""
        ...

    async def reload(self, by: str) -> Outcome:
        """Read it again, and put it in force. Raises InvalidRequest, Unsupported."""
        ...


class Status(Protocol):
    """How a component does."""

    @property
    def name(self) -> str: ...

    @property
    def state(self) -> str: ...

    @property
    def since_ns(self) -> int: ...

    @property
    def problem(self) -> str: ...


class ConfigurationInForce:
    """Handlers of DaemonService that are about the configuration."""

    def __init__(self, reloading: Reloading) -> None:
        self._reloading = reloading

    def handlers(self) -> Mapping[str, Handler]:
        """The handlers by full name."""
        return {_NAME + "GetConfig": self.get_config, _NAME + "Reload": self.reload}

    async def get_config(self, request: pb.GetConfigRequest, call: Call) -> pb.GetConfigResponse:
        """List every setting in force, and where it comes from."""
        return pb.GetConfigResponse(
            settings=[
                pb.ConfigSetting(
                    key=setting.key,
                    value_json=json.dumps(setting.value, ensure_ascii=False, separators=(",", ":")),
                    source=setting.source,
                )
                for setting in sorted(self._reloading.effective(), key=lambda setting: setting.key)
            ]
        )

    async def reload(self, request: pb.ReloadRequest, call: Call) -> pb.ReloadResponse:
        """Read the configuration again."""
        outcome = await self._reloading.reload(call.caller.principal)
        return pb.ReloadResponse(changed_keys=outcome.changed_keys, restart_keys=outcome.restart_keys)


def component(status: Status) -> ComponentStatus:
    """Tell how a component does."""
    state = _STATES.get(status.state, ComponentState.COMPONENT_STATE_FAILED)
    if status.problem and state == ComponentState.COMPONENT_STATE_RUNNING:
        state = ComponentState.COMPONENT_STATE_IMPAIRED
    return ComponentStatus(name=status.name, state=state, since_time=timestamp(status.since_ns), problem=status.problem)
