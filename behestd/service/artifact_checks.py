"""Checks of ArtifactService's requests, and of what an upload brings against what its header promised."""

from __future__ import annotations

from behest.v1 import artifact_service_pb2 as pb
from behestd.errors import InvalidRequest, TooLarge
from behestd.service.validate import identifier, labels, max_bytes, not_negative, request_id

CHUNK_BYTES = 1024 * 1024
_MAX_NAME = 256
_MAX_MEDIA_TYPE_BYTES = 256
_HASH_BYTES = 32


class SizeMismatch(InvalidRequest):
    """Raised when a content has not the size that was promised; nothing was kept."""

    def __init__(self, expected: int, actual: int) -> None:
        text = f"{actual} bytes came, not {expected}"
        super().__init__("header.size_bytes", text, reason="ARTIFACT_CHECKSUM_MISMATCH")
        self.metadata |= {"expected": str(expected), "actual": str(actual)}


def check_header(header: pb.WriteArtifactHeader, limit_bytes: int) -> None:
    """Check what an upload says beforehand."""
    request_id("header.request_id", header.request_id)
    if header.session_id:
        identifier("header.session_id", header.session_id)
    if len(header.name) > _MAX_NAME:
        raise InvalidRequest("header.name", f"has {len(header.name)} characters, at most {_MAX_NAME} are allowed")
    max_bytes("header.media_type", header.media_type, _MAX_MEDIA_TYPE_BYTES)
    labels("header.labels", header.labels)
    if header.sha256 and len(header.sha256) != _HASH_BYTES:
        raise InvalidRequest("header.sha256", f"has {len(header.sha256)} bytes, not {_HASH_BYTES}")
    not_negative("header.size_bytes", header.size_bytes)
    if header.size_bytes > limit_bytes:
        raise TooLarge("header.size_bytes", header.size_bytes, limit_bytes, "ARTIFACT_TOO_LARGE")


def check_read(request: pb.ReadArtifactRequest) -> None:
    """Check which range is asked for."""
    identifier("artifact_id", request.artifact_id)
    not_negative("offset_bytes", request.offset_bytes)
    not_negative("length_bytes", request.length_bytes)


def check_filters(request: pb.ListArtifactsRequest) -> None:
    """Check the filters of a list."""
    for field in ("session_id", "run_id"):
        if getattr(request, field):
            identifier(field, getattr(request, field))
    labels("labels", request.labels)
