"""Write a checkpoint with random weights in exactly the published layout: names, shapes, types, shards and side files.

``python -m flashvla_ros.vla.random_checkpoint --size 7b OUT`` writes what loading, memory and timing can be tested on
at full size (15 GB). Tensors are drawn and written in pieces, so that little memory is needed. The actions of such a
checkpoint mean nothing.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import struct
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from tokenizers import AddedToken

from flashvla_ros.vla.arch.oft.head import L1Head, ProprioProjector
from flashvla_ros.vla.arch.univla.decoder import ActionDecoder
from flashvla_ros.vla.checkpoint import Progress, build_empty
from flashvla_ros.vla.config import OpenVLAConfig, read_json
from flashvla_ros.vla.keys import TOWERS, entries
from flashvla_ros.vla.processor import ImageProcessor
from flashvla_ros.vla.shapes import DINOV2, KNOWN_BACKBONES, SIGLIP, TowerConfig
from flashvla_ros.vla.tokenizer import PAD, SPACE, build_tokenizer, save_tokenizer

Shape = tuple[int, ...]

SHARD_BYTES = 7_000_000_000  # the published OpenVLA-7B was saved with max_shard_size="7GB"
_PIECE = 1 << 22  # values drawn at a time
LLAMA_VOCABULARY = 32_000
_ACTS = 32  # latent action tokens of UniVLA
_STATE = ("x", "y", "z", "ax", "ay", "az", "finger_1", "finger_2")
EMPTY_TOKEN = 29_871  # "▁" in Llama's vocabulary

# Two data sets, so that one has to be chosen: four dimensions for the simulated robot of the demo, seven as most have.
NORM_STATS: Mapping[str, Any] = {
    "random_4d": {"action": {"q01": [-0.01, -0.01, -0.01, -1.0], "q99": [0.01, 0.01, 0.01, 1.0], "mask": [True] * 4}},
    "random_7d": {
        "action": {
            "q01": [-0.03, -0.04, -0.03, -0.08, -0.09, -0.2, 0.0],
            "q99": [0.03, 0.04, 0.04, 0.08, 0.08, 0.2, 1.0],
            "mask": [True] * 6 + [False],
        }
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


def of_architecture(config: OpenVLAConfig, architecture: str) -> OpenVLAConfig:
    """Return a configuration with all that an architecture is told; the published folders leave some of it out."""
    if architecture != "openvla_oft":
        return config
    state = {"q01": [-1.0] * len(_STATE), "q99": [1.0] * len(_STATE)}
    statistics = {name: {**entry, "proprio": state} for name, entry in config.norm_stats.items()}
    told = {"chunk_size": 8, "action_bounds": "quantiles", "proprio": list(_STATE)}
    return dataclasses.replace(config, norm_stats=statistics, num_images_in_input=2, oft=told)


def part_shapes(config: OpenVLAConfig, architecture: str, actions: int = 7) -> dict[str, dict[str, Shape]]:
    """Return the files beside the network by their stem, with names and shapes of their tensors, for D `actions`."""
    width = config.llama().hidden_size
    pool = min(width, 512) // 64 * 64 or 64
    parts: dict[str, torch.nn.Module] = {}
    with torch.device("meta"):
        if architecture == "openvla_oft":
            head = torch.nn.ModuleDict({"model": L1Head(actions * width, width, actions)})
            projector = ProprioProjector(len(_STATE), width)
            parts = {"action_head--0_checkpoint": head, "proprio_projector--0_checkpoint": projector}
        elif architecture == "univla":
            sizes = width, pool, 4 * pool
            pools = {"latent_action_pool": sizes, "visual_pool": sizes}
            parts = {"action_decoder": ActionDecoder(pools, actions * 12, 0)}
    return {
        file: {name: tuple(value.shape) for name, value in part.state_dict().items()} for file, part in parts.items()
    }


def tensor_shapes(config: OpenVLAConfig) -> dict[str, Shape]:
    """Return the name and shape of every tensor of an official checkpoint, in the official order.

    They are those of the model, and what OpenVLA never runs of each tower: last block, final norm and pooling head.
    """
    deeper = [dataclasses.replace(tower, num_hidden_layers=tower.num_hidden_layers + 1) for tower in config.towers]
    known = entries(build_empty(dataclasses.replace(config, towers=tuple(deeper))))
    shapes: dict[str, Shape] = {}
    for prefix, tower in zip(TOWERS, config.towers, strict=False):
        shapes |= {name: entry.shape for name, entry in known.items() if name.startswith(prefix)}
        shapes |= {f"{prefix}{name}": shape for name, shape in _behind_the_blocks(tower)}
    return shapes | {name: entry.shape for name, entry in known.items() if name not in shapes}


def _behind_the_blocks(tower: TowerConfig) -> Iterator[tuple[str, Shape]]:
    """Final norm of a tower, and the attention pooling that timm's SigLIP has."""
    size, inner = tower.hidden_size, tower.intermediate_size
    layers: dict[str, Shape] = {"norm": (size,)}
    if tower.model_type == SIGLIP:
        layers |= {"attn_pool.latent": (1, 1, size), "attn_pool.q": (size, size), "attn_pool.kv": (2 * size, size)}
        layers |= {"attn_pool.proj": (size, size), "attn_pool.norm": (size,)}
        layers |= {"attn_pool.mlp.fc1": (inner, size), "attn_pool.mlp.fc2": (size, inner)}
    for name, shape in layers.items():
        if name.endswith("latent"):
            yield name, shape
        else:
            yield f"{name}.weight", shape
            yield f"{name}.bias", shape[:1]


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
    architecture: str = "openvla",
    action_size: int = 7,
) -> None:
    """Write weights, index, configuration, image processor and tokenizer of `config` into `folder`.

    Args:
        folder: Made where it does not exist.
        config: Sizes and statistics.
        seed: Of the weights.
        shard_bytes: Most bytes of tensors in one file.
        progress: Called with the file's name, tensors written and tensors in all.
        architecture: A value of ``model.architecture``: its parts are written too.
        action_size: D of these parts, and so of the data set to choose.
    """
    config = of_architecture(config, architecture)
    folder.mkdir(parents=True, exist_ok=True)
    shapes = tensor_shapes(config)
    shards = plan_shards(shapes, shard_bytes)
    parts = part_shapes(config, architecture, action_size)
    files = shards | {f"{part}.safetensors": tensors for part, tensors in parts.items()}
    generator = torch.Generator().manual_seed(seed)
    actions = slice(config.action_vocab_size - config.n_action_bins, config.action_vocab_size)
    latent = _ACTS if architecture == "univla" else 0
    if latent:
        actions = slice(config.pad_token_id + 1, config.pad_token_id + 1 + latent)
    done, count = 0, sum(map(len, files.values()))
    for file, tensors in files.items():
        with (folder / file).open("wb") as stream:
            _write_header(stream, tensors)
            for name, shape in tensors.items():
                _write_tensor(stream, name, shape, generator, actions)
                done += 1
                if progress is not None:
                    progress(file, done, count)
    if len(shards) > 1:
        total = sum(2 * math.prod(shape) for shape in shapes.values())
        weight_map = {name: file for file, tensors in shards.items() for name in tensors}
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        _write_json(folder / "model.safetensors.index.json", index)
    _write_json(folder / "config.json", config.to_dict())
    _write_json(folder / "preprocessor_config.json", ImageProcessor.from_config(config).to_dict())
    write_tokenizer(folder, config, latent)


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
    """Draw one tensor, and write it in pieces."""
    if name == "language_model.lm_head.weight":
        # Only action tokens can win, so that the whole range of actions is decoded.
        stream.write(bytes(2 * actions.start * shape[1]))
        _write_normal(stream, (actions.stop - actions.start) * shape[1], 1.0 / math.sqrt(shape[1]), generator)
        stream.write(bytes(2 * (shape[0] - actions.stop) * shape[1]))
    elif len(shape) == 1:
        value = 0.0 if name.endswith(".bias") else 1.0
        stream.write(_bytes(torch.full(shape, value, dtype=torch.bfloat16)))
    else:
        _write_normal(stream, math.prod(shape), deviation_of(name, shape), generator)


def deviation_of(name: str, shape: Shape) -> float:
    """Return the standard deviation of a tensor's values with which signals keep their size through the layers."""
    table = name.endswith(("embed_tokens.weight", "_token", "pos_embed", "latent"))
    return 0.5 if table else 1.0 / math.sqrt(math.prod(shape[1:]))


def _write_normal(stream: BinaryIO, count: int, deviation: float, generator: torch.Generator) -> None:
    for start in range(0, count, _PIECE):
        piece = torch.empty(min(_PIECE, count - start), dtype=torch.float32)
        stream.write(_bytes(piece.normal_(0.0, deviation, generator=generator).to(torch.bfloat16)))


def _bytes(tensor: torch.Tensor) -> bytes:
    return tensor.view(torch.uint8).numpy().tobytes()


def write_tokenizer(folder: Path, config: OpenVLAConfig, acts: int = 0) -> None:
    """Write a tokenizer of Llama's kind and size with `acts` latent actions, and the empty token where Llama has it."""
    tokenizer = build_tokenizer(["In: What action should the robot take to open the drawer?", "Out:"], LLAMA_VOCABULARY)
    latent = [f"<ACT_{act}>" for act in range(acts)]
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in latent])
    save_tokenizer(tokenizer, folder, config.llm_max_length)
    content = read_json(folder / "tokenizer.json")
    vocabulary = content["model"]["vocab"]
    taken = next(piece for piece, index in vocabulary.items() if index == EMPTY_TOKEN)
    vocabulary[taken], vocabulary[SPACE] = vocabulary[SPACE], EMPTY_TOKEN
    _write_json(folder / "tokenizer.json", content)
    added = {name: config.pad_token_id + index for index, name in enumerate([PAD, *latent])}
    _write_json(folder / "added_tokens.json", added)
    if latent:
        names = read_json(folder / "special_tokens_map.json")
        _write_json(folder / "special_tokens_map.json", names | {"additional_special_tokens": latent})


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def main(arguments: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m flashvla_ros.vla.random_checkpoint", description=__doc__)
    parser.add_argument("--size", choices=("7b", "mid", "tiny"), default="tiny", help="15 GB, 0.1 GB or 5 MB")
    parser.add_argument("--architecture", choices=("openvla", "openvla_oft", "univla"), default="openvla", help="kind")
    parser.add_argument(
        "--action-size", type=int, choices=(4, 7), default=7, help="4 for the demo's robot; of the parts"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the weights")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write")
    options = parser.parse_args(arguments)
    if options.out.exists() and (not options.out.is_dir() or any(options.out.iterdir())):
        parser.error(f"{options.out} is no empty folder: give a new one")

    def show(file: str, done: int, total: int) -> None:
        if done * 100 // total != (done - 1) * 100 // total:
            print(f"\r{file} {done * 100 // total:3d} %", end="", file=sys.stderr, flush=True)

    config = config_of_size(options.size)
    write_random_checkpoint(
        options.out,
        config,
        seed=options.seed,
        progress=show,
        architecture=options.architecture,
        action_size=options.action_size,
    )
    print(f"\nwrote {options.out}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
