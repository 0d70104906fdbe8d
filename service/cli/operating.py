"""`basin health` and `basin token`: for those who run a server."""

from __future__ import annotations

import secrets
from typing import Annotated, Any

import typer

from service.cli.console import fail, messages

#: Exit code where a server answers that it is not serving.
NOT_SERVING = 1
#: Random bytes in a token.
TOKEN_BYTES = 32


def health(
    server: Annotated[str, typer.Argument(metavar="HOST:PORT", help="Its port for health checks.")],
    service: Annotated[str, typer.Option(metavar="NAME", help="liveness, readiness or startup.")] = "",
    timeout: Annotated[float, typer.Option(metavar="SECONDS", min=0.1, max=600.0, help="Longest wait.")] = 5.0,
) -> None:
    """Ask a server how it is: exit code 0 if it serves, 1 if not, 2 if it does not answer."""
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    with grpc.insecure_channel(server) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        request = health_pb2.HealthCheckRequest(service=service)
        try:
            status = stub.Check(request, timeout=timeout).status
        except grpc.RpcError as error:
            fail(f"{server} does not say how it is: {error.code().name}")
    print(health_pb2.HealthCheckResponse.ServingStatus.Name(status))
    if status != health_pb2.HealthCheckResponse.SERVING:
        raise typer.Exit(NOT_SERVING)


def token(
    name: Annotated[str, typer.Argument(help="Of its holder.")],
    scope: Annotated[
        list[str] | None, typer.Option(metavar="audit|batch|admin", help="What it is for; repeat it.")
    ] = None,
) -> None:
    """Make a bearer token. It is printed once, with the line for the server's file of tokens: its digest."""
    import yaml

    from audit.errors import InvalidInput
    from service.access import SCOPES, digest_of

    scopes = scope or ["audit"]
    if unknown := sorted(set(scopes) - SCOPES):
        raise InvalidInput(
            f"there is no scope {unknown[0]!r}; there are {', '.join(sorted(SCOPES))}",
            reason="SCOPE_UNKNOWN",
            field="scope",
        )
    made = secrets.token_urlsafe(TOKEN_BYTES)
    print(made)
    entry = {name: {"sha256": digest_of(made), "scopes": sorted(set(scopes))}}
    messages().print("For the file that auth.tokens names:", markup=False)
    messages().print(yaml.safe_dump(entry, default_flow_style=None, width=1000).strip(), markup=False, soft_wrap=True)
