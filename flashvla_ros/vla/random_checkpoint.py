"""Write a checkpoint with random weights in exactly OpenVLA's layout: names, shapes, types, shards and side files.

``python -m flashvla_ros.vla.random_checkpoint --size 7b OUT`` writes what loading, memory and timing can be tested on
at full size (15 GB). Tensors are drawn and written in pieces, so that little memory is needed. The actions of such a
checkpoint mean nothing.
"""

from __future__ import annotations

import argparse
import json
import math
import struct
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch

from flashvla_ros.vla.config import DINOV2, KNOWN_BACKBONES, SIGLIP, OpenVLAConfig, TowerConfig, read_json
from flashvla_ros.vla.processor import ImageProcessor
from flashvla_ros.vla.tokenizer import PAD, SPACE, build_tokenizer, save_tokenizer

Shape = tuple[int, ...]
Progress = Callable[[str, int, int], None]

SHARD_BYTES = 7_000_000_000  # the published OpenVLA-7B was saved with max_shard_size="7GB"
_PIECE = 1 << 22  # values drawn at a time
LLAMA_VOCABULARY = 32_000
EMPTY_TOKEN = 29_871  # "▁" in Llama's vocabulary

# Two data sets, so that one has to be chosen: four dimensions for the simulated robot of the demo, seven as most have.
NORM_STATS: Mapping[str, Any] = {
    "random_4d": {
        "action": {"q01": [-0.01, -0.01, -0.01, -1.0], "q99": [0.01, 0.01, 0.01, 1.0], "mask": [True] * 4},
    },
    "random_7d": {
        "action": {
            "q01": [-0.03, -0.04, -0.03, -0.08, -0.09, -0.2, 0.0],
            "q99": [0.03, 0.04, 0.04, 0.08, 0.08, 0.2, 1.0],
            "mask": [True] * 6 + [False],
        },
    },
}


def config_of_size(size: str) -> OpenVLAConfig:
    """Return the configuration of `size`: 7b (OpenVLA-7B), mid (49 million parameters), tiny (for tests).

    All three have two towers; 7b and mid see 256 visual tokens, and towers and projector do about a
    tenth to a sixth of the work of the decoder's prefill in both.
    """
    backbone, text = "dinosiglip-vit-so-224px", {"vocab_size": LLAMA_VOCABULARY + 64, "pad_token_id": LLAMA_VOCABULARY}
    towers = KNOWN_BACKBONES[backbone]
    if size == "mid":
        backbone = "mid-dinosiglip"
        towers = (TowerConfig(DINOV2, 224, 14, 96, 12, 3, 384, 4), TowerConfig(SIGLIP, 224, 14, 96, 12, 3, 384))
        text |= {"hidden_size": 384, "intermediate_size": 1056, "num_hidden_layers": 12, "num_attention_heads": 3}
        text |= {"num_key_value_heads": 3}
    elif size == "tiny":
        backbone = "tiny-dinosiglip"
        towers = (TowerConfig(DINOV2, 56, 14, 32, 3, 2, 128, 4), TowerConfig(SIGLIP, 56, 14, 32, 3, 2, 120))
        text |= {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2}
        text |= {"num_key_value_heads": 2}
    elif size != "7b":
        raise ValueError(f"size must be 7b, mid or tiny, got {size!r}")
    return OpenVLAConfig(backbone, towers, text, NORM_STATS, image_resize_strategy="resize-naive")


def tensor_shapes(config: OpenVLAConfig) -> dict[str, Shape]:
    """Return the name and shape of every tensor of an official checkpoint, in the official order."""
    shapes: dict[str, Shape] = {}
    for prefix, tower in zip(("featurizer", "fused_featurizer"), config.towers, strict=False):
        shapes.update({f"vision_backbone.{prefix}.{name}": shape for name, shape in _tower_shapes(tower)})
    width = config.llama().hidden_size
    inner = 4 * config.vision_size if config.fused else width
    shapes.update(_linear("projector.fc1", config.vision_size, inner))
    shapes.update(_linear("projector.fc2", inner, width))
    if config.fused:
        shapes.update(_linear("projector.fc3", width, width))
    shapes.update({f"language_model.{name}": shape for name, shape in _llama_shapes(config)})
    return shapes


def _linear(name: str, inputs: int, outputs: int) -> Iterator[tuple[str, Shape]]:
    yield f"{name}.weight", (outputs, inputs)
    yield f"{name}.bias", (outputs,)


def _norm(name: str, size: int) -> Iterator[tuple[str, Shape]]:
    yield f"{name}.weight", (size,)
    yield f"{name}.bias", (size,)


def _tower_shapes(tower: TowerConfig) -> Iterator[tuple[str, Shape]]:
    """Names of timm's VisionTransformer, with the attention pooling that its SigLIP has and OpenVLA never runs."""
    size, dino = tower.hidden_size, tower.model_type == DINOV2
    if dino:
        yield "cls_token", (1, 1, size)
        yield "reg_token", (1, tower.num_register_tokens, size)
    yield "pos_embed", (1, tower.tokens, size)
    yield "patch_embed.proj.weight", (size, 3, tower.patch_size, tower.patch_size)
    yield "patch_embed.proj.bias", (size,)
    for index in range(tower.num_hidden_layers):
        block = f"blocks.{index}"
        yield from _norm(f"{block}.norm1", size)
        yield from _linear(f"{block}.attn.qkv", size, 3 * size)
        yield from _linear(f"{block}.attn.proj", size, size)
        if dino:
            yield f"{block}.ls1.scale_factor", (size,)
        yield from _norm(f"{block}.norm2", size)
        yield from _linear(f"{block}.mlp.fc1", size, tower.intermediate_size)
        yield from _linear(f"{block}.mlp.fc2", tower.intermediate_size, size)
        if dino:
            yield f"{block}.ls2.scale_factor", (size,)
    yield from _norm("norm", size)
    if not dino:
        yield "attn_pool.latent", (1, 1, size)
        yield from _linear("attn_pool.q", size, size)
        yield from _linear("attn_pool.kv", size, 2 * size)
        yield from _linear("attn_pool.proj", size, size)
        yield from _norm("attn_pool.norm", size)
        yield from _linear("attn_pool.mlp.fc1", size, tower.intermediate_size)
        yield from _linear("attn_pool.mlp.fc2", tower.intermediate_size, size)


def _llama_shapes(config: OpenVLAConfig) -> Iterator[tuple[str, Shape]]:
    llama = config.llama()
    size, inner = llama.hidden_size, llama.intermediate_size
    head = size // llama.num_attention_heads
    keys = head * (llama.num_key_value_heads or llama.num_attention_heads)
    yield "model.embed_tokens.weight", (llama.vocab_size, size)
    for index in range(llama.num_hidden_layers):
        layer = f"model.layers.{index}"
        yield f"{layer}.self_attn.q_proj.weight", (size, size)
        yield f"{layer}.self_attn.k_proj.weight", (keys, size)
        yield f"{layer}.self_attn.v_proj.weight", (keys, size)
        yield f"{layer}.self_attn.o_proj.weight", (size, size)
        yield f"{layer}.mlp.gate_proj.weight", (inner, size)
        yield f"{layer}.mlp.up_proj.weight", (inner, size)
        yield f"{layer}.mlp.down_proj.weight", (size, inner)
        yield f"{layer}.input_layernorm.weight", (size,)
        yield f"{layer}.post_attention_layernorm.weight", (size,)
    yield "model.norm.weight", (size,)
    yield "lm_head.weight", (llama.vocab_size, size)


def plan_shards(shapes: Mapping[str, Shape], shard_bytes: int = SHARD_BYTES) -> dict[str, dict[str, Shape]]:
    """Cut the tensors, in order, into files of at most `shard_bytes` of bfloat16; return file name to its tensors."""
    shards: list[dict[str, Shape]] = [{}]
    used = 0
    for name, shape in shapes.items():
        size = 2 * math.prod(shape)
        if shards[-1] and used + size > shard_bytes:
            shards.append({})
            used = 0
        shards[-1][name] = shape
        used += size
    if len(shards) == 1:
        return {"model.safetensors": shards[0]}
    return {f"model-{n:05d}-of-{len(shards):05d}.safetensors": shard for n, shard in enumerate(shards, start=1)}


def write_random_checkpoint(
    folder: Path,
    config: OpenVLAConfig,
    *,
    seed: int = 0,
    shard_bytes: int = SHARD_BYTES,
    progress: Progress | None = None,
) -> None:
    """Write weights, index, configuration, image processor and tokenizer of `config` into `folder`.

    Args:
        folder: Made where it does not exist.
        config: Sizes and statistics.
        seed: Of the weights.
        shard_bytes: Most bytes of tensors in one file.
        progress: Called with the file's name, tensors written and tensors in all.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shapes = tensor_shapes(config)
    shards = plan_shards(shapes, shard_bytes)
    generator = torch.Generator().manual_seed(seed)
    actions = slice(config.action_vocab_size - config.n_action_bins, config.action_vocab_size)
    done = 0
    for file, tensors in shards.items():
        with (folder / file).open("wb") as stream:
            _write_header(stream, tensors)
            for name, shape in tensors.items():
                _write_tensor(stream, name, shape, generator, actions)
                done += 1
                if progress is not None:
                    progress(file, done, len(shapes))
    if len(shards) > 1:
        total = sum(2 * math.prod(shape) for shape in shapes.values())
        weight_map = {name: file for file, tensors in shards.items() for name in tensors}
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        _write_json(folder / "model.safetensors.index.json", index)
    _write_json(folder / "config.json", config.to_dict())
    _write_json(folder / "preprocessor_config.json", ImageProcessor.from_config(config).to_dict())
    _write_tokenizer(folder, config)


def _write_header(stream: BinaryIO, tensors: Mapping[str, Shape]) -> None:
    """Safetensors: a little-endian length, that many bytes of JSON, then the tensors back to back."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, shape in tensors.items():
        end = offset + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    stream.write(struct.pack("<Q", len(text)) + text)


def _write_tensor(stream: BinaryIO, name: str, shape: Shape, generator: torch.Generator, actions: slice) -> None:
    """Draw one tensor such that signals keep their size through the layers, and write it in pieces."""
    if name == "language_model.lm_head.weight":
        # Only action tokens can win, so that the whole range of actions is decoded.
        stream.write(bytes(2 * actions.start * shape[1]))
        _write_normal(stream, (actions.stop - actions.start) * shape[1], 1.0 / math.sqrt(shape[1]), generator)
        stream.write(bytes(2 * (shape[0] - actions.stop) * shape[1]))
    elif len(shape) == 1:
        value = 0.0 if name.endswith(".bias") else 1.0
        stream.write(_bytes(torch.full(shape, value, dtype=torch.bfloat16)))
    else:
        table = name.endswith(("embed_tokens.weight", "_token", "pos_embed", "latent"))
        deviation = 0.5 if table else 1.0 / math.sqrt(math.prod(shape[1:]))
        _write_normal(stream, math.prod(shape), deviation, generator)


def _write_normal(stream: BinaryIO, count: int, deviation: float, generator: torch.Generator) -> None:
    for start in range(0, count, _PIECE):
        piece = torch.empty(min(_PIECE, count - start), dtype=torch.float32)
        stream.write(_bytes(piece.normal_(0.0, deviation, generator=generator).to(torch.bfloat16)))


def _bytes(tensor: torch.Tensor) -> bytes:
    return tensor.view(torch.uint8).numpy().tobytes()


def _write_tokenizer(folder: Path, config: OpenVLAConfig) -> None:
    """Write a tokenizer of Llama's kind and vocabulary size, with the empty token where Llama has it."""
    tokenizer = build_tokenizer(["In: What action should the robot take to open the drawer?", "Out:"], LLAMA_VOCABULARY)
    save_tokenizer(tokenizer, folder, config.llm_max_length)
    content = read_json(folder / "tokenizer.json")
    vocabulary = content["model"]["vocab"]
    taken = next(piece for piece, index in vocabulary.items() if index == EMPTY_TOKEN)
    vocabulary[taken], vocabulary[SPACE] = vocabulary[SPACE], EMPTY_TOKEN
    _write_json(folder / "tokenizer.json", content)
    _write_json(folder / "added_tokens.json", {PAD: config.pad_token_id})


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def main(arguments: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m flashvla_ros.vla.random_checkpoint", description=__doc__)
    parser.add_argument("--size", choices=("7b", "mid", "tiny"), default="tiny", help="15 GB, 0.1 GB or 5 MB")
    parser.add_argument("--seed", type=int, default=0, help="seed of the weights")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write")
    options = parser.parse_args(arguments)
    if options.out.exists() and any(options.out.iterdir()):
        parser.error(f"{options.out} is not empty: give a new folder")

    def show(file: str, done: int, total: int) -> None:
        if done * 100 // total != (done - 1) * 100 // total:
            print(f"\r{file} {done * 100 // total:3d} %", end="", file=sys.stderr, flush=True)

    write_random_checkpoint(options.out, config_of_size(options.size), seed=options.seed, progress=show)
    print(f"\nwrote {options.out}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
