"""`basin inspect`."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer

from audit.errors import NotFound
from audit.v1 import audit_pb2
from service.cli import options
from service.cli.audits import open_local, open_server
from service.cli.console import messages, results


def inspect(
    context: typer.Context,
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="A PNG, JPEG or WebP file.")],
    prompt: Annotated[str, typer.Option(help="That it is said to come from; less can be told without one.")] = "",
    server: Annotated[
        str,
        typer.Option(
            metavar="HOST:PORT", envvar="BASIN_SERVER", help=f"Who inspects; {options.DEFAULT_SERVER} unless said."
        ),
    ] = "",
    local: Annotated[bool, typer.Option("--local", help="Inspect in this process, without a server.")] = False,
    checkpoint: Annotated[
        str,
        typer.Option(metavar="ID|SOURCE", help=f"A server's checkpoint by id; with --local {options.SOURCE}."),
    ] = "",
    reference: Annotated[
        str,
        typer.Option(metavar="NAME|FOLDER", help="A server's reference set by name; with --local a folder, or demo."),
    ] = "",
    output: Annotated[options.Format, typer.Option("--format", help="A table, or JSON.")] = options.Format.TABLE,
    scheduler: options.Scheduler = "",
    steps: options.Steps = None,
    guidance: options.Guidance = None,
    true_guidance: options.TrueGuidance = None,
    negative_prompt: options.NegativePrompt = "",
    size: options.Size = "",
    eta: options.Eta = None,
    device: Annotated[str, typer.Option(help="With --local: where the weights go, such as cuda.")] = "",
    dtype: Annotated[str, typer.Option(help="With --local: float32, float16 or bfloat16.")] = "",
    offload: options.Offload = False,
    timeout: Annotated[
        float | None, typer.Option(callback=options.finite, help="Seconds that it may take on the server.")
    ] = None,
) -> None:
    """Tell the class of an image that already exists, as a sample of a checkpoint.

    Near which training image it is, whether the checkpoint could have made it, and whether it comes back from noise.
    """
    flags = locals()
    asked = options.requested(flags, prompt=prompt, checkpoint=checkpoint, reference=reference)
    options.check_where(context, local=local, timeout=timeout, device=device, dtype=dtype, offload=offload)
    try:
        content = image.read_bytes()
    except OSError as error:
        raise NotFound(f"cannot read {image}: {error.strerror}", reason="IMAGE_NOT_FOUND", field="image") from error
    request = audit_pb2.InspectImageRequest(
        image=content,
        prompt=asked.prompt,
        checkpoint=asked.checkpoint,
        reference=asked.reference,
        sampler=asked.sampler,
    )
    if local:
        with messages().status("loading the checkpoint"):
            source = open_local(checkpoint, reference, device, dtype, offload)
    else:
        source, _ = open_server(server or options.DEFAULT_SERVER, timeout, 1)
    with closing(source):
        found = source.inspect(request)
    if output is options.Format.JSON:
        from service.reports import message_to_json

        print(message_to_json(found))
    else:
        from service.cli.tables import print_inspection

        print_inspection(results(), image.name, found)
