"""Tokenizers of the zoo against SentencePiece itself, on models that are trained here."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

from llava.errors import ConfigError
from llava.model.language import load_tokenizer
from tests.llava.tiny_zoo import CHAT_TOKENS, build_sentencepiece

CHOICES = [*"abc xyz,.!?'é你好😀\t\n", "  ", "<s>", "</s>", "What ", "colour ", "<|im_start|>", "<|im_end|>", "<eoh>"]


def some_texts(count: int = 600) -> list[str]:
    rng = random.Random(0)
    texts = ["".join(rng.choices(CHOICES, k=rng.randint(1, 12))) for _ in range(count)]
    return [
        *texts,
        "",
        " ",
        "  a",
        "<0x41>",
        "USER: <eoh>\n<|Bot|>:",
        "<|im_start|>user\nWhat colour is it?<|im_end|>\n",
    ]


def slow(folder: Path, added: dict[str, int]) -> Callable[[str], list[int]]:
    """What a slow tokenizer does: cut at added tokens, encode each piece by the model."""
    model = sentencepiece.SentencePieceProcessor(str(folder / "tokenizer.model"))
    cut = re.compile("(" + "|".join(map(re.escape, sorted(added, key=len, reverse=True))) + ")")

    def encode(text: str) -> list[int]:
        ids: list[int] = []
        for piece in cut.split(text):
            ids += [added[piece]] if piece in added else model.encode(piece)
        return ids

    return encode


def check(folder: Path, added: dict[str, int]) -> Any:
    tokenizer, expected = load_tokenizer(str(folder)), slow(folder, {"<unk>": 0, "<s>": 1, "</s>": 2, **added})
    for text in some_texts():
        assert tokenizer.encode(text, add_special_tokens=False) == expected(text), repr(text)
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    return tokenizer


def test_llama_and_vicuna(tmp_path: Path) -> None:
    build_sentencepiece(tmp_path, {"tokenizer_class": "LlamaTokenizer", "pad_token": "<unk>", "legacy": True})
    tokenizer = check(tmp_path, {})
    assert tokenizer.encode("What colour")[0] == tokenizer.bos_token_id == 1
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id) == (2, 0, 0)
    assert tokenizer.decode(tokenizer.encode("What colour is 你?"), skip_special_tokens=True) == "What colour is 你?"


def test_internlm_has_its_marks_in_the_model(tmp_path: Path) -> None:
    build_sentencepiece(
        tmp_path, {"tokenizer_class": "InternLMTokenizer", "pad_token": "</s>"}, wholes=["<eoh>", "<eoa>"]
    )
    tokenizer = check(tmp_path, {})
    ids = tokenizer.encode("What<eoh>colour", add_special_tokens=False)
    assert tokenizer.convert_ids_to_tokens(ids).count("<eoh>") == 1
    after = tokenizer.convert_ids_to_tokens(ids[ids.index(tokenizer.convert_tokens_to_ids("<eoh>")) + 1])
    assert not after.startswith("▁"), "text after a symbol of the model is no new word"


def test_internlm2_puts_its_marks_in_place_of_pieces(tmp_path: Path) -> None:
    settings = {"tokenizer_class": "InternLM2Tokenizer", "auto_map": {"AutoTokenizer": ["x.A", "y.B"]}}
    build_sentencepiece(tmp_path, settings, replaced=CHAT_TOKENS)
    (tmp_path / "x.py").write_text("raise SystemExit('ran')")
    size = sentencepiece.SentencePieceProcessor(str(tmp_path / "tokenizer.model")).get_piece_size()
    ids = {name: size - len(CHAT_TOKENS) + n for n, name in enumerate(CHAT_TOKENS)}
    tokenizer = check(tmp_path, ids)
    assert len(tokenizer) == size
    assert tokenizer.convert_tokens_to_ids("<|im_start|>") == size - 1
    text = "<|im_start|>user\nWhat<|im_end|>\n"
    assert tokenizer.decode(tokenizer.encode(text), skip_special_tokens=True).split() == ["user", "What"]


def test_tokens_behind_the_models_own(tmp_path: Path) -> None:
    build_sentencepiece(tmp_path, {})
    size = sentencepiece.SentencePieceProcessor(str(tmp_path / "tokenizer.model")).get_piece_size()
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<|im_end|>": size, "<|im_start|>": size + 1}))
    check(tmp_path, {"<|im_end|>": size, "<|im_start|>": size + 1})
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<|im_end|>": size + 3}))
    with pytest.raises(ConfigError, match=r"leave gaps or clash: <\|im_end\|>"):
        load_tokenizer(str(tmp_path))


@pytest.mark.parametrize("rule", ["nmt_nfkc", "identity"])
@pytest.mark.parametrize("prefix", [True, False])
def test_normalising_models(tmp_path: Path, rule: str, prefix: bool) -> None:
    build_sentencepiece(
        tmp_path, {}, normalization_rule_name=rule, remove_extra_whitespaces=True, add_dummy_prefix=prefix
    )
    tokenizer, expected = load_tokenizer(str(tmp_path)), slow(tmp_path, {"<unk>": 0, "<s>": 1, "</s>": 2})
    for text in ["What  colour ", "  it　is ＡＢＣ", "①②", "a   b", "x"]:
        assert tokenizer.encode(text, add_special_tokens=False) == expected(text), repr(text)


def test_a_saved_folder_gives_the_same_ids_back(tmp_path: Path) -> None:
    build_sentencepiece(tmp_path / "first", {"pad_token": "</s>"}, wholes=["<eoh>"], replaced=CHAT_TOKENS)
    first = load_tokenizer(str(tmp_path / "first"))
    first.save_pretrained(tmp_path / "second")
    second = load_tokenizer(str(tmp_path / "second"))
    assert (second.bos_token_id, second.eos_token_id, second.pad_token_id) == (1, 2, 2)
    for text in some_texts(200):
        assert second.encode(text) == first.encode(text), repr(text)


def test_tokenizer_json_is_taken_as_it_is(tmp_path: Path) -> None:
    """As Llama's: transformers 5 would build the class's own, without the word-start mark that the file asks for."""
    pieces = ["<unk>", "<s>", "</s>", "▁", *"abcd", "▁a", "▁ab", "ab"]
    merges = [("▁", "a"), ("▁a", "b"), ("a", "b")]
    backend = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, merges, unk_token="<unk>"))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Strip(" ", 1, 0)])
    backend.add_special_tokens(["<s>", "</s>"])
    backend.save(str(tmp_path / "tokenizer.json"))
    settings = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer = load_tokenizer(str(tmp_path))
    for text in ["ab", " ab", "  ab", "a</s>ab", "a</s> ab", "cab d"]:
        assert tokenizer.encode(text, add_special_tokens=False) == backend.encode(text).ids, repr(text)
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode("a</s>ab", add_special_tokens=False)) == [
        "▁a",
        "</s>",
        "▁ab",
    ]
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (1, 2)


def test_damaged_or_foreign_models_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="folder not found"):
        load_tokenizer(str(tmp_path / "nowhere"))
    (tmp_path / "tokenizer.model").write_bytes(b"torn")
    with pytest.raises(ConfigError, match=r"tokenizer\.model"):
        load_tokenizer(str(tmp_path))
    build_sentencepiece(tmp_path, {}, model_type="unigram")
    with pytest.raises(ConfigError, match="is no byte-pair model of SentencePiece"):
        load_tokenizer(str(tmp_path))
