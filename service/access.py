"""Who calls, and what they may do: bearer tokens of the operator's own, or signed by somebody else (JWT)."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import jwt
import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from service.config import ConfigError
from service.config_parts import AuthPart, JwtPart
from service.log import Logger
from service.status import PermissionDenied, Unauthenticated
from service.watched import Watched

Scope = Literal["audit", "batch", "reference", "admin"]
SCOPES: frozenset[str] = frozenset(get_args(Scope))
#: Which scope a method takes; any one will do for those that are not here.
NEEDED: Mapping[str, Scope] = {
    "/audit.v1.AuditService/Audit": "audit",
    "/audit.v1.AuditService/StreamAudit": "audit",
    "/audit.v1.AuditService/Screen": "audit",
    "/audit.v1.AuditService/InspectImage": "audit",
    "/audit.v1.ReferenceService/SearchReference": "audit",
    "/audit.v1.ReferenceService/CreateReference": "reference",
    "/audit.v1.ReferenceService/AddImages": "reference",
    "/audit.v1.ReferenceService/DeleteReference": "admin",
    "/audit.v1.BatchService/CreateBatch": "batch",
    "/audit.v1.BatchService/UploadBatch": "batch",
    "/audit.v1.BatchService/GetBatch": "batch",
    "/audit.v1.BatchService/ListBatches": "batch",
    "/audit.v1.BatchService/CancelBatch": "batch",
    "/audit.v1.BatchService/StreamBatchResults": "batch",
    "/audit.v1.BatchService/DeleteBatch": "admin",
    "/audit.v1.CheckpointService/LoadCheckpoint": "admin",
    "/audit.v1.CheckpointService/UnloadCheckpoint": "admin",
    "/google.longrunning.Operations/GetOperation": "batch",
    "/google.longrunning.Operations/ListOperations": "batch",
    "/google.longrunning.Operations/WaitOperation": "batch",
    "/google.longrunning.Operations/CancelOperation": "batch",
    "/google.longrunning.Operations/DeleteOperation": "admin",
}
#: Of JWTs. With a shared secret whoever checks tokens could make them; "none" is no signature at all.
ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
MAX_TOKEN = 8192


@dataclass(frozen=True)
class Caller:
    """Who calls.

    Attributes:
        name: of the token's holder, or of the client's certificate; "" of anybody.
        scopes: what it may do.
    """

    name: str = ""
    scopes: frozenset[str] = SCOPES


ANYBODY = Caller()
#: Of the call that is being answered.
caller: ContextVar[Caller] = ContextVar("caller", default=ANYBODY)


class _Holder(BaseModel):
    model_config = ConfigDict(extra="forbid")

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    scopes: set[Scope] = Field(min_length=1)


class Access:
    """Checks who calls.

    Args:
        settings: of the server.
        logger: of the server.

    Raises:
        ConfigError: a file cannot be used.
    """

    def __init__(self, settings: AuthPart, logger: Logger) -> None:
        self._settings = settings
        self._tokens: Watched[dict[str, Caller]] | None = None
        self._keys: Watched[jwt.PyJWKSet] | None = None
        if (file := settings.tokens) is not None:
            self._tokens = _watch("auth.tokens", file, lambda: _read_tokens(file), logger)
        if settings.jwt is not None:
            jwks = settings.jwt.jwks
            self._keys = _watch("auth.jwt.jwks", jwks, lambda: _read_keys(jwks), logger)

    def identify(self, authorization: str | None, certificate: str) -> Caller:
        """Who calls.

        Args:
            authorization: the metadata of that name.
            certificate: the name in the client's certificate; "" without one.

        Raises:
            Unauthenticated: there is no token, or none that counts.
        """
        if not self._settings.on:
            return Caller(certificate)
        match = re.fullmatch(r"(?i:bearer) +(\S+)", authorization or "")
        if match is None:
            raise Unauthenticated("calls need a bearer token", reason="TOKEN_MISSING")
        return self._find(match[1])

    def _find(self, token: str) -> Caller:
        if len(token) <= MAX_TOKEN:
            if self._tokens is not None and (holder := self._tokens.content.get(digest_of(token))) is not None:
                return holder
            if self._keys is not None and self._settings.jwt is not None:
                return _read_jwt(token, self._keys.content, self._settings.jwt)
        raise Unauthenticated("the token is not known here", reason="TOKEN_INVALID")


def check_scope(method: str, who: Caller) -> None:
    """Refuse what somebody may not do.

    Args:
        method: "/package.Service/Method".
        who: calls it.

    Raises:
        PermissionDenied: the token is not for this.
    """
    needed = NEEDED.get(method)
    if needed is not None and needed not in who.scopes:
        raise PermissionDenied(f"the token is not for the scope {needed!r}", reason="SCOPE_MISSING")


def digest_of(token: str) -> str:
    """What the file of tokens holds of one. They are long and random, so that no salt is needed."""
    return hashlib.sha256(token.encode()).hexdigest()


def _watch(setting: str, file: Path, read: Any, logger: Logger) -> Watched[Any]:
    try:
        return Watched([file], read, logger)
    except (OSError, ValueError) as error:
        text = error.strerror if isinstance(error, OSError) else str(error)
        raise ConfigError(f"{setting}: {file}: {text}") from error


def _read_tokens(file: Path) -> dict[str, Caller]:
    """Holders by the digests of their tokens. Errors never quote the file."""
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
        holders = TypeAdapter(dict[str, _Holder]).validate_python(content or {})
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError("it is no YAML") from error
    except ValidationError as error:
        found = error.errors()[0]
        raise ValueError(f"{'.'.join(map(str, found['loc']))}: {found['msg']}") from None
    return {one.sha256: Caller(name, frozenset(one.scopes)) for name, one in holders.items()}


def _read_keys(file: Path) -> jwt.PyJWKSet:
    try:
        return jwt.PyJWKSet.from_json(file.read_text(encoding="utf-8"))
    except (jwt.PyJWTError, ValueError, AttributeError, TypeError, KeyError) as error:
        raise ValueError("it is no set of keys (JWKS)") from error


def _read_jwt(token: str, keys: jwt.PyJWKSet, settings: JwtPart) -> Caller:
    """Raises Unauthenticated of a token that is unsigned, foreign, or not valid now."""
    try:
        header = jwt.get_unverified_header(token)
        key = keys[header.get("kid", "")] if "kid" in header else keys.keys[0]
        claims = jwt.decode(
            token,
            key,
            algorithms=ALGORITHMS,
            audience=settings.audience,
            issuer=settings.issuer,
            options={"require": ["exp", "iss", "aud", "sub"]},
            leeway=5,
        )
    except jwt.ExpiredSignatureError as error:
        raise Unauthenticated("the token has expired", reason="TOKEN_EXPIRED") from error
    except (jwt.PyJWTError, KeyError, TypeError, ValueError) as error:
        raise Unauthenticated("the token is not known here", reason="TOKEN_INVALID") from error
    said = claims.get(settings.scope_claim, "")
    scopes = said.split() if isinstance(said, str) else said
    own = {scope for scope in scopes if isinstance(scope, str)} if isinstance(scopes, list) else set()
    return Caller(str(claims["sub"]), frozenset(own & SCOPES))
