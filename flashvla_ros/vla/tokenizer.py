"""Llama's tokenizer: read from a checkpoint folder in either of its two forms, or built small for a small model.

The files are read with the tokenizers library itself, so what a text turns into does not depend on how a release of
transformers interprets tokenizer_config.json.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from flashvla_ros.core.errors import CheckpointError

UNKNOWN, BOS, EOS, PAD = "<unk>", "<s>", "</s>", "<PAD>"
SPACE = "▁"  # how the vocabulary writes a space; alone it is the empty token that closes a prompt
_BYTES = tuple(f"<0x{value:02X}>" for value in range(256))


def load_tokenizer(folder: Path) -> Tokenizer:
    """Read tokenizer.json, or else tokenizer.model (SentencePiece), from a checkpoint folder."""
    fast, slow = folder / "tokenizer.json", folder / "tokenizer.model"
    try:
        if fast.is_file():
            return Tokenizer.from_file(str(fast))
        if slow.is_file():
            pieces = list(_sentencepieces(slow.read_bytes()))
            return _llama_tokenizer([piece for piece, _ in pieces], _merges(pieces))
    except Exception as error:  # the tokenizers library raises plain Exception
        raise CheckpointError(f"tokenizer files in {folder} cannot be read: {error}") from error
    raise CheckpointError(f"{folder} has no tokenizer: copy tokenizer.json or tokenizer.model of the checkpoint there")


def build_tokenizer(texts: Iterable[str], vocab_size: int, n_action_bins: int = 256) -> Tokenizer:
    """Train a small tokenizer of Llama's kind: BPE with byte fallback, every text can be encoded.

    Args:
        texts: Prompts whose words are worth a token of their own.
        vocab_size: Size of the vocabulary; its last `n_action_bins` ids never come from text. ``<PAD>`` comes after it.
        n_action_bins: Ids set aside for actions.
    """
    special = [UNKNOWN, BOS, EOS, *_BYTES]
    ascii_letters = [chr(code) for code in range(33, 127)]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - n_action_bins,
        special_tokens=special,
        initial_alphabet=[SPACE, *ascii_letters],
        show_progress=False,
    )
    trained = Tokenizer(models.BPE())
    words = pre_tokenizers.Metaspace(SPACE, prepend_scheme="always")
    trained.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.Punctuation(), pre_tokenizers.Digits(True)])
    trained.train_from_iterator((text.replace("\n", " ") for text in texts), trainer)
    model = json.loads(trained.to_str())["model"]
    pieces = sorted(model["vocab"], key=model["vocab"].get)
    room = vocab_size - n_action_bins - len(pieces)
    if room < 0:
        raise ValueError(f"vocab_size {vocab_size} is too small: at least {len(pieces) + n_action_bins} is needed")
    pieces += [f"<unused{index}>" for index in range(room)]
    pieces += [f"<action{index}>" for index in range(n_action_bins)]
    tokenizer = _llama_tokenizer(pieces, [tuple(merge) for merge in model["merges"]])
    tokenizer.add_special_tokens([AddedToken(PAD, special=True, normalized=False)])
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path, model_max_length: int) -> None:
    """Write tokenizer.json and the small files that transformers reads beside it."""
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"bos_token": BOS, "eos_token": EOS, "unk_token": UNKNOWN, "pad_token": PAD}
    settings = {**names, "tokenizer_class": "LlamaTokenizer", "model_max_length": model_max_length, "legacy": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    (folder / "special_tokens_map.json").write_text(json.dumps(names, indent=2) + "\n", encoding="utf-8")


def _llama_tokenizer(pieces: list[str], merges: list[tuple[str, str]]) -> Tokenizer:
    """Assemble Llama's pipeline: spaces become ▁, one more in front, BPE with byte fallback, BOS first."""
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token=UNKNOWN, fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in (UNKNOWN, BOS, EOS)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, vocabulary[BOS])]
    )
    return tokenizer


def _sentencepieces(data: bytes) -> Iterator[tuple[str, float]]:
    """Yield (piece, score) of a SentencePiece model: field 1 of ModelProto, whose fields 1 and 2 these are."""
    for field, value in _fields(data):
        if field == 1:
            parts = dict(_fields(value))
            yield parts[1].decode("utf-8"), struct.unpack("<f", parts.get(2, bytes(4)))[0]


def _fields(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Walk a protocol buffer message; varints, which nothing here needs, are skipped."""
    position = 0
    while position < len(data):
        tag, position = _varint(data, position)
        kind = tag & 7
        if kind == 0:
            _, position = _varint(data, position)
            continue
        if kind == 2:
            size, position = _varint(data, position)
        else:
            size = {1: 8, 5: 4}[kind]
        if position + size > len(data):
            raise ValueError("the file is truncated")
        yield tag >> 3, data[position : position + size]
        position += size


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        value |= (byte & 0x7F) << shift
        position, shift = position + 1, shift + 7
        if byte < 0x80:
            return value, position


def _merges(pieces: list[tuple[str, float]]) -> list[tuple[str, str]]:
    """Recover the merges of a BPE vocabulary: every split of a piece into two others, best score first."""
    rank = {piece: index for index, (piece, _) in enumerate(pieces)}
    found = []
    for piece, score in pieces:
        splits = [(piece[:cut], piece[cut:]) for cut in range(1, len(piece))]
        known = sorted(
            (rank[left], rank[right], left, right) for left, right in splits if left in rank and right in rank
        )
        found += [(score, left, right) for _, _, left, right in known]
    return [(left, right) for _, left, right in sorted(found, key=lambda merge: -merge[0])]
