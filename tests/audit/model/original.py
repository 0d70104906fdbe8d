"""Stable Diffusion's weights under the names of its first release, from what diffusers calls them."""

from __future__ import annotations

import re
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from audit.model.files import read_json

RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "norm2": "out_layers.0", "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1", "conv_shortcut": "skip_connection",
}  # fmt: skip
ENDS = {
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2", "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0", "conv_out": "out.2",
}  # fmt: skip
ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def save_original(folder: Path, file: Path) -> Path:
    """A single file with all weights of the folder of a Stable Diffusion pipeline."""
    stem = "diffusion_pytorch_model.safetensors"
    layers = read_json(folder / "unet" / "config.json")["layers_per_block"]
    levels = len(read_json(folder / "vae" / "config.json")["block_out_channels"])
    text = load_file(folder / "text_encoder" / "model.safetensors")
    weights: dict[str, Tensor] = {}
    for name, value in load_file(folder / "unet" / stem).items():
        weights[f"model.diffusion_model.{unet_name(name, layers)}"] = value
    for name, value in load_file(folder / "vae" / stem).items():
        attention = ".attentions." in name and "group_norm" not in name and name.endswith("weight")
        weights[f"first_stage_model.{vae_name(name, levels)}"] = value[..., None, None] if attention else value
    for name, value in text.items():
        weights[f"cond_stage_model.transformer.text_model.{name.removeprefix('text_model.')}"] = value
    save_file({name: value.contiguous() for name, value in weights.items()}, file)
    return file


def unet_name(name: str, layers: int) -> str:
    """Of a UNet with so many layers in a block."""
    for ours, theirs in ENDS.items():
        if name.startswith(f"{ours}."):
            return theirs + name.removeprefix(ours)
    if found := re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d)\.(.*)", name):
        kind, index, rest = found.groups()
        return f"middle_block.{1 if kind == 'attentions' else 2 * int(index)}.{_inside(kind, rest)}"
    found = re.fullmatch(r"(down|up)_blocks\.(\d)\.(resnets|attentions|downsamplers|upsamplers)\.(\d)\.(.*)", name)
    assert found is not None, name
    way, block, kind, index, rest = found[1], int(found[2]), found[3], int(found[4]), found[5]
    if kind == "downsamplers":
        return f"input_blocks.{(layers + 1) * (block + 1)}.0.op.{rest.removeprefix('conv.')}"
    if kind == "upsamplers":  # after the attention, where the block has one: here, the first has none
        return f"output_blocks.{(layers + 1) * block + layers}.{1 if block == 0 else 2}.{rest}"
    place = (layers + 1) * block + index + (1 if way == "down" else 0)
    stack = "input_blocks" if way == "down" else "output_blocks"
    return f"{stack}.{place}.{1 if kind == 'attentions' else 0}.{_inside(kind, rest)}"


def vae_name(name: str, levels: int) -> str:
    """Of an autoencoder with so many levels."""
    name = name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda found: f"mid.block_{int(found[1]) + 1}", name)
    if "mid_block.attentions.0." in name:
        for ours, theirs in ATTENTION.items():
            name = name.replace(f"mid_block.attentions.0.{ours}.", f"mid.attn_1.{theirs}.")
    name = re.sub(r"down_blocks\.(\d)\.resnets\.(\d)", r"down.\1.block.\2", name)
    name = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", name)
    name = re.sub(r"up_blocks\.(\d)\.resnets\.(\d)", lambda f: f"up.{levels - 1 - int(f[1])}.block.{f[2]}", name)
    return re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda f: f"up.{levels - 1 - int(f[1])}.upsample", name)


def _inside(kind: str, rest: str) -> str:
    if kind == "attentions":
        return rest
    part, _, last = rest.rpartition(".")
    return f"{RESNET[part]}.{last}"
