from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from flashvla_ros.core.errors import CheckpointError
from flashvla_ros.vla.processor import format_prompt
from flashvla_ros.vla.tokenizer import build_tokenizer, load_tokenizer, save_tokenizer

TOKENIZER = build_tokenizer([format_prompt("open the drawer"), format_prompt("close the drawer")], 1024)


def test_known_words_are_one_token_each():
    tokens = TOKENIZER.encode(format_prompt("open the drawer")).tokens
    assert tokens[:3] == ["<s>", "▁In", ":"]
    assert "▁drawer" in tokens
    assert "<0x0A>" in tokens  # the line break, a byte as in Llama


def test_special_ids_are_llamas():
    assert [TOKENIZER.token_to_id(token) for token in ("<unk>", "<s>", "</s>", "<0x00>", "<PAD>")] == [0, 1, 2, 3, 1024]
    assert TOKENIZER.get_vocab_size() == 1025


@settings(max_examples=50, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_any_text_is_encoded_without_loss_and_without_action_tokens(text):
    encoding = TOKENIZER.encode(text, add_special_tokens=False)
    if not any(token in text for token in ("<unk>", "<s>", "</s>", "<PAD>")):
        assert TOKENIZER.decode(encoding.ids) == text
        assert max(encoding.ids, default=0) < 768


def test_too_small_a_vocabulary_is_refused():
    with pytest.raises(ValueError, match="vocab_size 400 is too small"):
        build_tokenizer([], 400)


def test_transformers_reads_the_same_from_the_folder(tmp_path):
    save_tokenizer(TOKENIZER, tmp_path, 512)
    other = AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    for text in (format_prompt("open the drawer"), format_prompt("Schließe die Tür, 12 mal")):
        assert other(text).input_ids == TOKENIZER.encode(text).ids
        assert load_tokenizer(tmp_path).encode(text).ids == TOKENIZER.encode(text).ids


def sentencepiece_file(pieces: list[tuple[str, float]]) -> bytes:
    """A SentencePiece model with these pieces and, as real ones have, other fields after them."""
    data = b""
    for piece, score in pieces:
        text = piece.encode()
        body = b"\x0a" + bytes([len(text)]) + text + b"\x15" + struct.pack("<f", score) + b"\x18\x01"
        data += b"\x0a" + bytes([len(body)]) + body
    return data + b"\x12\x02\x18\x02"


def test_sentencepiece_form_merges_by_score(tmp_path):
    pieces = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0)] + [(f"<0x{byte:02X}>", 0.0) for byte in range(256)]
    words = ["▁t", "he", "▁the", "▁a"]
    pieces += [(word, -float(rank)) for rank, word in enumerate(words)]
    pieces += [(letter, -10.0 - rank) for rank, letter in enumerate("▁thea")]
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece_file(pieces))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.encode("the a").tokens == ["<s>", "▁the", "▁a"]
    assert tokenizer.encode("at\n").tokens == ["<s>", "▁a", "t", "<0x0A>"]
    assert tokenizer.token_to_id("▁") == 259 + 4


def test_missing_tokenizer(tmp_path):
    with pytest.raises(CheckpointError, match=r"has no tokenizer: copy tokenizer\.json or tokenizer\.model"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(("name", "content"), [("tokenizer.json", b"{}"), ("tokenizer.model", b"\x0a\x7fshort")])
def test_damaged_tokenizer(name, content, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=r"tokenizer files in .* cannot be read"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    "doubling",
    [
        {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"},
        {"type": "Replace", "pattern": {"Regex": ""}, "content": "a"},
        {"type": "Sequence", "normalizers": [{"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}]},
    ],
)
def test_a_normaliser_that_doubles_the_text_again_and_again_is_refused(tmp_path: Path, doubling: dict) -> None:
    save_tokenizer(build_tokenizer(["open the drawer"], 900), tmp_path, 100)
    path = tmp_path / "tokenizer.json"
    content = json.loads(path.read_text())
    content["normalizer"]["normalizers"] += [doubling] * 24
    path.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: its normalizer makes a text up to .* times as long"):
        load_tokenizer(tmp_path)
