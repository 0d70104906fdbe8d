"""How a client reaches a server: in plain text or encrypted, with or without a certificate and a token of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import grpc

from audit.errors import InvalidInput

#: Reports with images outgrow gRPC's 4 MB, and a client trusts the server it chose. A server that comes back is to be
#: found within seconds, not after the two minutes that gRPC would wait in the end.
OPTIONS = (("grpc.max_receive_message_length", -1), ("grpc.max_reconnect_backoff_ms", 5000))
HTTPS = "https://"


@dataclass(frozen=True)
class Identity:
    """What a client shows, and whom it believes.

    Attributes:
        token: that the server asks for; "" for none.
        ca: PEM file of the authorities that the server's certificate is checked with; None for those that gRPC ships.
        certificate: PEM file of the client's own certificate, where the server asks for one.
        key: PEM file of its key.
    """

    token: str = ""
    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None


NOBODY = Identity()


def open_channel(target: str, identity: Identity) -> grpc.Channel:
    """A channel to a server. It is encrypted where the target begins with https://, or where files for that are given.

    Args:
        target: HOST:PORT or https://HOST:PORT.
        identity: of the client.

    Raises:
        InvalidInput: a file cannot be read, a certificate has no key, or a token cannot stand in a header.
    """
    if (identity.token and not identity.token.isascii()) or any(ch.isspace() for ch in identity.token):
        raise InvalidInput("a token is one word of ASCII", reason="TOKEN_INVALID", field="token")
    if (identity.certificate is None) is not (identity.key is None):
        raise InvalidInput("give both a certificate and its key, or neither", reason="TLS_INVALID", field="certificate")
    address = target.removeprefix(HTTPS).rstrip("/") if target.startswith(HTTPS) else target
    if target.startswith(HTTPS) or identity.ca is not None or identity.certificate is not None:
        credentials = grpc.ssl_channel_credentials(
            _read(identity.ca), private_key=_read(identity.key), certificate_chain=_read(identity.certificate)
        )
        channel = grpc.secure_channel(address, credentials, options=OPTIONS)
    else:
        channel = grpc.insecure_channel(address, options=OPTIONS)
    return grpc.intercept_channel(channel, _Bearer(identity.token)) if identity.token else channel


def _read(file: Path | None) -> bytes | None:
    try:
        return None if file is None else file.read_bytes()
    except OSError as error:
        raise InvalidInput(f"cannot read {file}: {error.strerror}", reason="TLS_INVALID", field="tls") from error


class _Details(NamedTuple):
    """Of a call, as gRPC's interceptors want them."""

    method: str
    timeout: float | None
    metadata: Any
    credentials: grpc.CallCredentials | None
    wait_for_ready: bool | None
    compression: grpc.Compression | None


class _Bearer(grpc.UnaryUnaryClientInterceptor, grpc.UnaryStreamClientInterceptor, grpc.StreamUnaryClientInterceptor):
    """Adds a token to every call. gRPC's own call credentials refuse channels that somebody else encrypts."""

    def __init__(self, token: str) -> None:
        self._entry = ("authorization", f"Bearer {token}")

    def _add(self, continuation: Callable[[Any, Any], Any], details: grpc.ClientCallDetails, request: Any) -> Any:
        told = _Details(
            details.method,
            details.timeout,
            [*(details.metadata or ()), self._entry],
            details.credentials,
            getattr(details, "wait_for_ready", None),
            getattr(details, "compression", None),
        )
        return continuation(told, request)

    intercept_unary_unary = _add  # type: ignore[assignment]
    intercept_unary_stream = _add  # type: ignore[assignment]
    intercept_stream_unary = _add  # type: ignore[assignment]
