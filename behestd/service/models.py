"""ModelService: the catalog of providers and models with their health. Above: the edge. Below: their catalog."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from behest.v1 import model_service_pb2 as pb
from behest.v1.model_pb2 import Model, ModelHealth, ModelHealthState, Provider
from behestd.core.circuit import WELL
from behestd.core.times import timestamp
from behestd.errors import ModelNotFound
from behestd.providers.catalog import Resolved, Snapshot
from behestd.runtime.health import Endpoints
from behestd.runtime.house import House
from behestd.service.call import Call
from behestd.service.methods import Handler
from behestd.service.pages import page_of
from behestd.service.validate import max_bytes

_NAME = "/behest.v1.ModelService/"
_MAX_NAME_BYTES = 256
_HEALTHY = ModelHealthState.MODEL_HEALTH_STATE_HEALTHY


class Models:
    """Handlers of ModelService."""

    def __init__(self, house: House) -> None:
        self._house = house

    def handlers(self) -> Mapping[str, Handler]:
        """The handlers by full name."""
        return {
            _NAME + "ListProviders": self.list_providers,
            _NAME + "ListModels": self.list_models,
            _NAME + "GetModel": self.get_model,
        }

    async def list_providers(self, request: pb.ListProvidersRequest, call: Call) -> pb.ListProvidersResponse:
        """List providers by id."""
        page = page_of(request, call.namespace, (str,))
        after = str(page.after[0]) if page.after else ""
        current = self._house.models.of(call.namespace)
        names = [name for name in current.providers if name > after]
        shown = [self._provider(current, name) for name in names[: page.size]]
        token = page.token(names[page.size - 1]) if len(names) > page.size else ""
        return pb.ListProvidersResponse(providers=shown, next_page_token=token)

    async def list_models(self, request: pb.ListModelsRequest, call: Call) -> pb.ListModelsResponse:
        """List models by id."""
        page = page_of(request, call.namespace, (str,))
        after = str(page.after[0]) if page.after else ""
        wanted = [field.name for field, _ in request.capabilities.ListFields()]
        found = [
            resolved
            for name, resolved in sorted(self._house.models.of(call.namespace).models.items())
            if name > after
            and request.provider_id in ("", resolved.model.provider_id)
            and all(getattr(resolved.model.capabilities, capability) for capability in wanted)
        ]
        shown = [self._shown(resolved, call.namespace) for resolved in found[: page.size]]
        token = page.token(found[page.size - 1].model.id) if len(found) > page.size else ""
        return pb.ListModelsResponse(models=shown, next_page_token=token)

    async def get_model(self, request: pb.GetModelRequest, call: Call) -> pb.GetModelResponse:
        """Get a model by id or alias; without a name the default model."""
        max_bytes("model", request.model, _MAX_NAME_BYTES)
        current = self._house.models.of(call.namespace)
        name = request.model or current.default_model
        found = current.models.get(name) or current.models.get(current.aliases.get(name, ""))
        if found is None:
            raise ModelNotFound(name)
        return pb.GetModelResponse(model=self._shown(found, call.namespace))

    def _provider(self, current: Snapshot, name: str) -> Provider:
        models = [found.endpoint for found in current.models.values() if found.model.provider_id == name]
        told = Provider()
        told.CopyFrom(current.providers[name].describe())
        told.health.CopyFrom(health_of(self._house.endpoints, models))
        return told

    def _shown(self, found: Resolved, namespace: str) -> Model:
        told = Model()
        told.CopyFrom(found.model)
        told.health.CopyFrom(health_of(self._house.endpoints, [found.endpoint]))
        told.paused = self._house.switch.current.of_model(namespace, found.model.id) is not None
        return told


def health_of(endpoints: Endpoints, models: Collection[str]) -> ModelHealth:
    """The health of models taken together: open when all are, degraded when some are not well.

    The reason is of one that is worst, the failures in a row are those of that one.
    """
    conditions = [endpoints.condition(model) for model in models]
    worst = max(conditions, key=lambda each: (each.opened, each.failures), default=WELL)
    told = ModelHealth(state=_HEALTHY, reason=worst.reason, failures=worst.failures)
    success_ns = max(map(endpoints.success_ns, models), default=0)
    if success_ns:
        told.success_time.CopyFrom(timestamp(success_ns))
    if conditions and all(each.opened for each in conditions):
        told.state = ModelHealthState.MODEL_HEALTH_STATE_OPEN
        told.retry_time.CopyFrom(timestamp(min(each.open_until_ns for each in conditions)))
    elif worst.failures:
        told.state = ModelHealthState.MODEL_HEALTH_STATE_DEGRADED
    return told
