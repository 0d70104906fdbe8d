"""What lies on top of a checkpoint: LoRA adapters, which become part of its weights, and textual inversions.

LoRA (Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022): W + scale · (alpha/rank) · BA. Fused,
so that whoever differentiates the network sees one network, and evaluations cost what they cost without.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from audit.errors import NotFound
from audit.model.checkpoint_source import CheckpointSource, Embedding, Lora
from audit.model.files import PICKLES, Reason, broken, digest_files, shown
from audit.model.headers import read_header
from audit.model.networks import networks_of
from audit.model.quantized import is_packed

#: Vectors of a textual inversion.
MAX_VECTORS = 128


def add_adapters(pipeline: Any, source: CheckpointSource) -> list[str]:
    """Fuse LoRA adapters and add the words of textual inversions.

    Args:
        pipeline: of diffusers, with all its weights.
        source: what to add.

    Returns:
        What was added: a digest and how it is used, for each.

    Raises:
        NotFound: a file is not there.
        BrokenCheckpoint: a file is pickled, damaged, or of another architecture.
    """
    return [_fuse(pipeline, one) for one in source.loras] + [_add_words(pipeline, one) for one in source.embeddings]


def _fuse(pipeline: Any, lora: Lora) -> str:
    weights = _read(lora.file)
    name = Path(lora.file).name
    if not hasattr(pipeline, "load_lora_weights"):
        raise _unusable(f"a {type(pipeline).__name__} takes no LoRA adapters", "CHECKPOINT_FAMILY_UNSUPPORTED")
    if any(is_packed(value) for network in networks_of(pipeline) for value in network.parameters()):
        raise _unusable(
            f"{name} cannot become part of quantized weights: take those that they were made of",
            "CHECKPOINT_QUANTIZATION_UNSUPPORTED",
        )
    try:
        pipeline.load_lora_weights(weights, adapter_name="basin")
        reached = {part for parts in pipeline.get_list_adapters().values() for part in parts}
        if not reached:
            raise ValueError("no weight has the name of one of the checkpoint's")
        pipeline.fuse_lora(lora_scale=lora.scale, safe_fusing=True)
        pipeline.unload_lora_weights()
    except Exception as error:  # diffusers and peft raise anything at all for tensors that fit nowhere
        raise _unusable(f"{name} is no LoRA adapter of this checkpoint: {_first_line(error)}") from error
    return f"lora {_digest(lora.file)} {lora.scale!r}"


def _add_words(pipeline: Any, embedding: Embedding) -> str:
    vectors = _read(embedding.file)
    name = Path(embedding.file).name
    if not hasattr(pipeline, "load_textual_inversion"):
        raise _unusable(f"a {type(pipeline).__name__} takes no textual inversions", "CHECKPOINT_FAMILY_UNSUPPORTED")
    encoders = _encoders(pipeline, vectors, name)
    # One tensor alone may bear the word as its name, if it is no name that all files of a trainer have.
    own = next((key for key in vectors if len(vectors) == 1 and key != "emb_params"), Path(embedding.file).stem)
    token = embedding.token or own
    for encoder, value in encoders.items():
        if value.dim() not in (1, 2) or len(value.reshape(-1, value.shape[-1])) > MAX_VECTORS:
            raise _unusable(f"{name} has no vectors of words, or more than {MAX_VECTORS}")
        tokenizer = getattr(pipeline, encoder.replace("text_encoder", "tokenizer"))
        pieces = tokenizer.tokenize(token)
        if len(pieces) == 1 and pieces[0] != tokenizer.unk_token:
            raise _unusable(f"{token!r} is a word already: name another one, as in embedding={name}:<{token}>")
        try:
            pipeline.load_textual_inversion(
                value, token=token, tokenizer=tokenizer, text_encoder=getattr(pipeline, encoder)
            )
        except Exception as error:
            raise _unusable(f"{name} is no textual inversion of this checkpoint: {_first_line(error)}") from error
    return f"embedding {_digest(embedding.file)} {token!r}"


def _encoders(pipeline: Any, vectors: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    """Vectors by the text encoder that reads them: of one encoder, or of Stable Diffusion XL's two."""
    if len(vectors) == 1:
        return {"text_encoder": next(iter(vectors.values()))}
    if vectors.keys() == {"clip_l", "clip_g"} and hasattr(pipeline, "text_encoder_2"):
        return {"text_encoder": vectors["clip_l"], "text_encoder_2": vectors["clip_g"]}
    raise _unusable(f"{name} is no textual inversion of this checkpoint: it has {shown(', '.join(sorted(vectors)))}")


def _read(file: str) -> dict[str, Tensor]:
    """The tensors of a file whose header was checked."""
    path = Path(file)
    if not path.is_file():
        raise NotFound(f"no file {path.name!r}", reason="CHECKPOINT_NOT_FOUND", field="checkpoint")
    if path.suffix in PICKLES:
        raise broken(
            f"{path.name} is pickled, which can run code when it is read; convert it to safetensors",
            "CHECKPOINT_PICKLED",
        )
    read_header(path)
    return load_file(path)


def _digest(file: str) -> str:
    return digest_files({"file": Path(file)})


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _unusable(message: str, reason: Reason = "CHECKPOINT_DAMAGED") -> Exception:
    return broken(message, reason)
