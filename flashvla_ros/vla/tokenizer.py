"""Llama's tokenizer: read from a checkpoint folder in either of its two forms, or built small for a small model.

The files are read with the tokenizers library itself, so what a text turns into does not depend on the release of
transformers: it is what LlamaTokenizerFast of release 4.40, the official code's, makes of them.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from flashvla_ros.core.errors import CheckpointError
from flashvla_ros.core.files import read_bytes
from flashvla_ros.vla.config import MOST_BYTES, read_json

_MOST_GROWTH = 1000.0  # that of a normaliser; Llama's has 1
UNKNOWN, BOS, EOS, PAD = "<unk>", "<s>", "</s>", "<PAD>"
SPACE = "▁"  # how the vocabulary writes a space; alone it is the empty token that closes a prompt
_ACTION_IDS = 256
_BYTES = tuple(f"<0x{value:02X}>" for value in range(256))


def load_tokenizer(folder: Path) -> Tokenizer:
    """Read tokenizer.json, or else tokenizer.model (SentencePiece), from a checkpoint folder.

    Padding and truncation, which tokenizer.json keeps from its last use, are off. Added tokens are those that
    tokenizer_config.json declares, or else added_tokens.json.
    """
    fast, slow = folder / "tokenizer.json", folder / "tokenizer.model"
    if not fast.is_file() and not slow.is_file():
        raise CheckpointError(
            f"{folder} has no tokenizer: copy tokenizer.json or tokenizer.model of the checkpoint there"
        )
    settings = _optional_json(folder / "tokenizer_config.json")
    for name in ("add_bos_token", "add_prefix_space"):
        if settings.get(name) is False:
            raise CheckpointError(
                f"{folder / 'tokenizer_config.json'}: {name} is false, which OpenVLA's prompts need: set it to true"
            )
    try:
        if fast.is_file():
            tokenizer = _from_json(fast)
        else:
            pieces = list(_sentencepieces(read_bytes(slow, CheckpointError, MOST_BYTES)))
            tokenizer = _llama_tokenizer([piece for piece, _ in pieces], _merges(pieces))
        declared = _added_tokens(settings, folder)
        for _, token in sorted(declared.items()):
            (tokenizer.add_special_tokens if token.special else tokenizer.add_tokens)([token])
    except CheckpointError:
        raise
    except Exception as error:  # the tokenizers library raises plain Exception
        raise CheckpointError(
            f"tokenizer files in {folder} cannot be read: copy them again ({type(error).__name__}: {error})"
        ) from error
    for index, token in declared.items():
        if (found := tokenizer.token_to_id(token.content)) != index:
            raise CheckpointError(
                f"{folder}: the added token {token.content!r} is declared as {index} and would become {found}: "
                f"copy all the tokenizer's files from one checkpoint"
            )
    _close_prompts(tokenizer, end=settings.get("add_eos_token") is True)
    return tokenizer


def _from_json(path: Path) -> Tokenizer:
    """Read tokenizer.json, unless it multiplies a text: 24 replacements that double it make a gigabyte of a prompt."""
    growth = _growth(read_json(path).get("normalizer"))
    if growth > _MOST_GROWTH:
        raise CheckpointError(
            f"{path}: its normalizer makes a text up to {growth:.3g} times as long, which no tokenizer does: copy it "
            f"again from the checkpoint's source"
        )
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _growth(normalizer: Any) -> float:
    """Return how many times longer the replacements of a normaliser may make a text."""
    if not isinstance(normalizer, dict):
        return 1.0
    if normalizer.get("type") == "Sequence":
        return math.prod(_growth(one) for one in normalizer.get("normalizers", ()))
    if normalizer.get("type") != "Replace":
        return 1.0
    replaced, content = normalizer["pattern"].get("String", ""), normalizer["content"]
    if not replaced:  # a regular expression, which may match nothing, between any two letters
        return len(content) + 1.0
    return max(1.0, len(content) / len(replaced))


def _optional_json(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _added_tokens(settings: Mapping[str, Any], folder: Path) -> dict[int, AddedToken]:
    """Tokens behind the vocabulary by their id; added_tokens.json knows their texts only."""
    flags = ("lstrip", "rstrip", "normalized", "single_word", "special")
    if "added_tokens_decoder" in settings:
        return {
            int(index): AddedToken(entry["content"], **{flag: entry[flag] for flag in flags if flag in entry})
            for index, entry in settings["added_tokens_decoder"].items()
        }
    special: set[str] = set()
    for value in _optional_json(folder / "special_tokens_map.json").values():
        tokens = value if isinstance(value, list) else [value]
        special |= {token["content"] if isinstance(token, dict) else token for token in tokens}
    return {
        index: AddedToken(text, normalized=text not in special, special=text in special)
        for text, index in _optional_json(folder / "added_tokens.json").items()
    }


def build_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Train a small tokenizer of Llama's kind: BPE with byte fallback, every text can be encoded.

    Args:
        texts: Prompts whose words are worth a token of their own.
        vocab_size: Size of the vocabulary; its last 256 ids, those of actions, never come from text. ``<PAD>`` comes
            after it.
    """
    special = [UNKNOWN, BOS, EOS, *_BYTES]
    ascii_letters = [chr(code) for code in range(33, 127)]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - _ACTION_IDS,
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
    room = vocab_size - _ACTION_IDS - len(pieces)
    if room < 0:
        raise ValueError(f"vocab_size {vocab_size} is too small: at least {len(pieces) + _ACTION_IDS} is needed")
    pieces += [f"<unused{index}>" for index in range(room)]
    pieces += [f"<action{index}>" for index in range(_ACTION_IDS)]
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
    _close_prompts(tokenizer, end=False)
    return tokenizer


def _close_prompts(tokenizer: Tokenizer, *, end: bool) -> None:
    """Put BOS before each text, and EOS behind it where `end` says so; without BOS it is no tokenizer of Llama's."""
    ids = [(token, tokenizer.token_to_id(token)) for token in ((BOS, EOS) if end else (BOS,))]
    if all(index is not None for _, index in ids):
        template = f"{BOS} $A {EOS}" if end else f"{BOS} $A"
        tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=ids)


def _sentencepieces(data: bytes) -> Iterator[tuple[str, float]]:
    """Yield (piece, score) of a SentencePiece model: field 1 of ModelProto, whose fields 1 and 2 these are."""
    for field, value in _fields(data):
        if field == 1:
            parts = dict(_fields(value))
            if 1 not in parts:
                raise ValueError("it is not a SentencePiece model")
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
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise ValueError("it is not a SentencePiece model")
        if position + size > len(data):
            raise ValueError("the file is truncated")
        yield tag >> 3, data[position : position + size]
        position += size


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if position >= len(data) or shift > 63:
            raise ValueError("it is not a SentencePiece model, or cut short")
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
