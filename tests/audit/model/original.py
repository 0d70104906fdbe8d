"""Stable Diffusion's weights under the names of its releases, from what diffusers calls them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
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
#: Of Stable Diffusion 3: what stands in front of the blocks and behind them, and what is in each.
SD3_ENDS = {
    "pos_embed.proj": "x_embedder.proj", "context_embedder": "context_embedder",
    "time_text_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "time_text_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
    "time_text_embed.text_embedder.linear_1": "y_embedder.mlp.0",
    "time_text_embed.text_embedder.linear_2": "y_embedder.mlp.2",
    "norm_out.linear": "final_layer.adaLN_modulation.1", "proj_out": "final_layer.linear",
}  # fmt: skip
SD3_BLOCKS = {
    "attn.to_out.0": "x_block.attn.proj", "attn.to_add_out": "context_block.attn.proj",
    "norm1.linear": "x_block.adaLN_modulation.1", "norm1_context.linear": "context_block.adaLN_modulation.1",
    "ff.net.0.proj": "x_block.mlp.fc1", "ff.net.2": "x_block.mlp.fc2",
    "ff_context.net.0.proj": "context_block.mlp.fc1", "ff_context.net.2": "context_block.mlp.fc2",
}  # fmt: skip
SD3_JOINED = {
    "x_block": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "context_block": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
}


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


def original_sd3(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those of a transformer of Stable Diffusion 3: queries, keys and values are one, and scales come after shifts."""
    blocks = sorted({int(found[1]) for name in weights if (found := re.match(r"transformer_blocks\.(\d+)\.", name))})
    found = {}
    for end in ("weight", "bias"):
        named = list(SD3_ENDS.items())
        for block in blocks:
            here, there = f"transformer_blocks.{block}.", f"joint_blocks.{block}."
            named += [(here + ours, there + theirs) for ours, theirs in SD3_BLOCKS.items()]
            for side, parts in SD3_JOINED.items():
                joined = torch.cat([weights[f"{here}{part}.{end}"] for part in parts])
                found[f"{there}{side}.attn.qkv.{end}"] = joined
        for ours, theirs in named:
            if f"{ours}.{end}" in weights:
                found[f"{theirs}.{end}"] = weights[f"{ours}.{end}"]
    found["pos_embed"] = weights["pos_embed.pos_embed"]
    for ours in ("norm_out.linear", f"transformer_blocks.{blocks[-1]}.norm1_context.linear"):
        theirs = SD3_ENDS.get(ours, f"joint_blocks.{blocks[-1]}.context_block.adaLN_modulation.1")
        for end in ("weight", "bias"):
            found[f"{theirs}.{end}"] = torch.cat(weights[f"{ours}.{end}"].chunk(2)[::-1])
    return found
