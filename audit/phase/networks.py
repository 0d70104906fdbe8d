"""The networks of a ladder checkpoint, all of them ordinary diffusers, transformers and open_clip classes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import open_clip
from diffusers import UNet2DConditionModel
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from audit.phase.ladder import Recipe

#: Tokens per prompt, start and end token included. A caption of the grammar has 8 words.
CONTEXT_LENGTH = 16


def build_tokenizer(words: Sequence[str]) -> CLIPTokenizer:
    """A CLIP tokenizer in which each of `words` is one token and any other text still has a spelling.

    Like CLIP's own, the vocabulary starts with every byte, alone and at the end of a word, so nothing is ever
    unknown.
    """
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.pre_tokenizer = pre_tokenizers.Whitespace()
    bpe.train_from_iterator(
        words, trainers.BpeTrainer(vocab_size=10_000, min_frequency=1, end_of_word_suffix="</w>", show_progress=False)
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*alphabet, *(byte + "</w>" for byte in alphabet)]
    learned = sorted(bpe.get_vocab().items(), key=lambda item: item[1])
    tokens += [token for token, _ in learned if token not in set(tokens)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    merges = [tuple(merge) for merge in json.loads(bpe.to_str())["model"]["merges"]]
    return CLIPTokenizer(
        vocab={token: i for i, token in enumerate(tokens)}, merges=merges, model_max_length=CONTEXT_LENGTH
    )


def build_text_encoder(recipe: Recipe, tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """A two-layer CLIP text encoder, trained along with the UNet."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=recipe.text_width,
            intermediate_size=4 * recipe.text_width,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=CONTEXT_LENGTH,
            projection_dim=recipe.text_width,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def build_unet(recipe: Recipe, latent_size: int) -> UNet2DConditionModel:
    """A two-level UNet with cross-attention at the full latent resolution."""
    return UNet2DConditionModel(
        sample_size=latent_size,
        in_channels=4,
        out_channels=4,
        block_out_channels=recipe.unet_channels,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        norm_num_groups=16,
        cross_attention_dim=recipe.text_width,
        attention_head_dim=4,
    )


def clip_config(tokenizer: CLIPTokenizer) -> dict[str, Any]:
    """The open_clip model configuration of the small contrastive model that ships with a ladder checkpoint."""
    return {
        "embed_dim": 64,
        "vision_cfg": {"image_size": 32, "layers": 3, "width": 96, "patch_size": 4, "head_width": 32},
        "text_cfg": {
            "context_length": CONTEXT_LENGTH,
            "vocab_size": len(tokenizer),
            "hf_tokenizer_name": ".",
            "tokenizer_kwargs": {"clean": "lower"},
            "width": 64,
            "heads": 4,
            "layers": 2,
        },
    }


def build_clip(tokenizer: CLIPTokenizer) -> nn.Module:
    """The open_clip model of `clip_config`, with fresh weights."""
    config = clip_config(tokenizer)
    return open_clip.CLIP(embed_dim=config["embed_dim"], vision_cfg=config["vision_cfg"], text_cfg=config["text_cfg"])
