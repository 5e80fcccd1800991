"""The daemon's TLS as gRPC wants it, with a certificate that can be changed while connections stay.

Above: `entrance`; below `tls`. gRPC asks for the certificate before each handshake: connections that stand keep theirs,
new ones get the one in force. TLS is 1.2 at least and 1.3 where the client can, which is gRPC's own rule.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import grpc

if TYPE_CHECKING:
    from behestd.service.tls import Tls


class Rotation:
    """Holds the certificate in force. Whether clients must show one as well does not change."""

    def __init__(self, tls: Tls) -> None:
        self.tls = tls

    def replace(self, tls: Tls) -> None:
        """Show another certificate from the next handshake on."""
        self.tls = tls

    def credentials(self) -> grpc.ServerCredentials:
        """Make the credentials of one port."""
        first = self.tls
        told = first

        def changed() -> grpc.ServerCertificateConfiguration | None:
            # Called on gRPC's threads, one handshake after another.
            nonlocal told
            current = self.tls
            if current is told:
                return None
            told = current
            return _configuration(current)

        # Its stubs do not say that None means no change.
        fetch: Any = changed
        return grpc.dynamic_ssl_server_credentials(
            _configuration(first), fetch, require_client_authentication=bool(first.client_authorities)
        )


def _configuration(tls: Tls) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(tls.key, tls.certificate)], tls.client_authorities or None)
