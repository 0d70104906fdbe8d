"""Encryption of the gRPC port, with certificates that are read again when they change."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import grpc
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from service.config import ConfigError
from service.config_parts import TlsPart
from service.log import Logger
from service.watched import Watched


@dataclass(frozen=True)
class _Files:
    certificate: bytes
    key: bytes
    client_ca: bytes | None
    expires: datetime


class Tls:
    """Certificate and key of a server, now.

    Args:
        settings: with a certificate.
        logger: of the server.

    Raises:
        ConfigError: a file cannot be used.
    """

    def __init__(self, settings: TlsPart, logger: Logger) -> None:
        assert settings.certificate is not None
        assert settings.key is not None
        self._mutual = settings.client_ca is not None
        files = [file for file in (settings.certificate, settings.key, settings.client_ca) if file is not None]
        try:
            self._watched = Watched(files, lambda: _read(*files), logger)
        except (OSError, ValueError) as error:
            text = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) else str(error)
            raise ConfigError(f"tls: {text}") from error
        self._given: _Files = self._watched.content

    @property
    def expires(self) -> datetime:
        """When the certificate does."""
        return self._watched.content.expires

    def credentials(self) -> grpc.ServerCredentials:
        """For the port: every handshake sees the files as they are then."""
        return grpc.dynamic_ssl_server_credentials(
            _configuration(self._given),
            self._fetch,  # type: ignore[arg-type]  # None means no change
            require_client_authentication=self._mutual,
        )

    def _fetch(self) -> grpc.ServerCertificateConfiguration | None:
        """What has changed since the last handshake; None where nothing has. Called by gRPC's threads."""
        now = self._watched.content
        if now is self._given:
            return None
        self._given = now
        return _configuration(now)


def _configuration(files: _Files) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(files.key, files.certificate)], files.client_ca)


def _read(certificate: Path, key: Path, client_ca: Path | None = None) -> _Files:
    """Read, and make sure that they fit: gRPC would only say so to those who call.

    Raises:
        ValueError: one of them holds something else, or the key is another certificate's.
        OSError: one of them cannot be read.
    """
    found = certificate.read_bytes(), key.read_bytes()
    authority = None if client_ca is None else client_ca.read_bytes()
    try:
        own = x509.load_pem_x509_certificates(found[0])[0]
    except ValueError as error:
        raise ValueError(f"{certificate} holds no certificate") from error
    try:
        private = load_pem_private_key(found[1], None)
    except (ValueError, TypeError) as error:  # the latter of a key with a password
        raise ValueError(f"{key} holds no key that can be read") from error
    if private.public_key() != own.public_key():
        raise ValueError(f"{key} is not the key of {certificate}")
    if authority is not None:
        try:
            x509.load_pem_x509_certificates(authority)
        except ValueError as error:
            raise ValueError(f"{client_ca} holds no certificate") from error
    return _Files(found[0], found[1], authority, own.not_valid_after_utc)
