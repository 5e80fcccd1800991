"""Makes the quotas of callers and the limits of the daemon's load. Above: `plan`. Below: the values of the runtime."""

from __future__ import annotations

from dataclasses import replace

from behestd.config import quotas
from behestd.runtime import overload
from behestd.runtime.quotas import Quota, Rules


def rules(section: quotas.Quotas, watches: int, *, is_local: bool) -> Rules:
    """Make the quotas, where there are so many watches. In local mode one namespace is all there is, and has all."""
    most = 0 if is_local else max(1, int(watches * section.queue_share))
    return Rules(
        principal=_quota(section.principal),
        namespace=_of_namespace(section.namespace, most),
        principals={name: _quota(quota) for name, quota in section.principals.items()},
        namespaces={name: _of_namespace(quota, most) for name, quota in section.namespaces.items()},
        active_share=1.0 if is_local else section.active_share,
        queue_share=1.0 if is_local else section.queue_share,
    )


def _of_namespace(source: quotas.NamespaceQuota, watches: int) -> Quota:
    return replace(_quota(source), watches=source.watches or watches)


def _quota(source: quotas.Quota) -> Quota:
    return Quota(**source.model_dump())


def load(section: quotas.Overload) -> overload.Limits:
    """Make the limits of the load. The memory limit of the control group is read now."""
    memory_bytes = overload.memory_limit_bytes() if section.memory_bytes is None else section.memory_bytes
    return overload.Limits(
        commit_seconds=section.commit_seconds,
        window_seconds=section.window_seconds,
        sample_seconds=section.sample_seconds,
        memory_bytes=max(1, int(memory_bytes * section.memory_share)) if memory_bytes else 0,
        disk_bytes=section.disk_bytes,
    )
