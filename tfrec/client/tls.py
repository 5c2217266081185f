"""Certificates of a client."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

from tfrec.errors import ConfigError


@dataclass(frozen=True)
class Tls:
    """An encrypted connection.

    Args:
        root_certificates: PEM file of who vouches for the server; None = those of the system.
        certificate, key: PEM files that the client shows; both or none.

    Raises:
        ConfigError: a certificate without key or the reverse, or a file that cannot be read.
    """

    root_certificates: str | Path | None = None
    certificate: str | Path | None = None
    key: str | Path | None = None

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.key is None):
            raise ConfigError("a client certificate needs its key, and the reverse", self)
        for file in (self.root_certificates, self.certificate, self.key):
            read(file)

    def context(self) -> ssl.SSLContext:
        """For the standard library's connections.

        Raises:
            ConfigError: a file is no PEM.
        """
        try:
            context = ssl.create_default_context(cafile=self.root_certificates)
            if self.certificate is not None:
                context.load_cert_chain(self.certificate, self.key)
        except ssl.SSLError as error:
            raise ConfigError("certificates and keys must be PEM files that fit", str(error)) from error
        return context


def read(file: str | Path | None) -> bytes | None:
    """The bytes of a PEM file; nothing of none.

    Raises:
        ConfigError: it cannot be read.
    """
    if file is None:
        return None
    try:
        return Path(file).read_bytes()
    except OSError as error:
        raise ConfigError("a certificate or key must be a readable file", f"{file}: {error.strerror}") from error
