"""Server credentials from an SSLConfig file: TLS, and mutual TLS where clients must show a certificate."""

from __future__ import annotations

from pathlib import Path

import grpc

from tfrec.server.protos import SSLConfig, read_text


def read_credentials(file: Path) -> grpc.ServerCredentials:
    """The credentials that an ssl config file describes.

    Raises:
        RequestError: the file is absent or no SSLConfig.
    """
    config = read_text(file, SSLConfig())
    return grpc.ssl_server_credentials(
        [(config.server_key.encode(), config.server_cert.encode())],
        root_certificates=config.custom_ca.encode() or None,
        require_client_auth=config.client_verify,
    )
