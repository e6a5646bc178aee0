"""Tokens and labels against sequences written out by hand; the index; the layout of a micro-batch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llava.data.collate import IGNORE, IMAGE_TOKEN, Sample, collate
from llava.data.conversation import assemble, encode_texts, specials, texts
from llava.data.index import TokenIndex, build_index
from llava.data.records import Record, Turn
from llava.errors import ConfigError, DataError
from llava.logs import LOG
from llava.run_folder import read_lines
from llava.templates import get
from tests.llava.train_helpers import Bases, make_job, train_here

ONE = Record("one", "p.jpg", (Turn("<image>\nQ", "A"),))
TWO = Record("two", "p.jpg", (Turn("<image>\nQ", "A"), Turn("R", "B")))
BOS, EOS = 1, 2


class Words:
    """A tokenizer that gives each text one number, so that a sequence can be read back as texts."""

    bos_token_id: int | None = BOS
    eos_token_id: int | None = EOS

    def __init__(self) -> None:
        self.texts: list[str] = []

    def __call__(self, many: list[str], add_special_tokens: bool) -> Any:
        assert not add_special_tokens
        self.texts += [text for text in many if text not in self.texts]
        return type("Encoding", (), {"input_ids": [[self.number(text)] for text in many]})

    def number(self, text: str) -> int:
        return 1000 + self.texts.index(text)


def readable(record: Record, name: str, max_length: int = 100, tokenizer: Words | None = None) -> str:
    """The sequence as text: learned pieces in [brackets], the picture as <image>."""
    tokenizer = tokenizer or Words()
    template = get(name)
    tokens = encode_texts(tokenizer, texts(record, template))
    encoded = assemble(record, template, tokens, specials(tokenizer, template), max_length)
    shown = []
    for token, label in zip(encoded.ids, encoded.labels, strict=True):
        names = {BOS: "<s>", EOS: "</s>", IMAGE_TOKEN: "<image>"}
        text = names.get(token) or tokenizer.texts[token - 1000]
        assert label in (token, IGNORE)
        shown.append(f"[{text}]" if label == token else text)
    return "|".join(shown)


def test_vicuna_has_a_bos_a_turn_and_an_unlearned_new_line_between() -> None:
    assert readable(TWO, "vicuna") == (
        "<s>|USER: |<image>|\nQ ASSISTANT:|[A]|[</s>]|\n|<s>|USER: R ASSISTANT:|[B]|[</s>]|\n"
    )


def test_llava_v1_has_one_bos_and_no_new_lines() -> None:
    system = get("llava_v1").instruction.partition("USER")[0]
    assert readable(TWO, "llava_v1") == (
        f"<s>|{system}USER: |<image>|\nQ ASSISTANT:|[A]|[</s>]|USER: R ASSISTANT:|[B]|[</s>]"
    )


def test_a_suffix_that_ends_the_answer_takes_the_eos_place() -> None:
    user, bot = "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"
    assert readable(TWO, "internlm2_chat") == (
        f"<s>|{user}|<image>|\nQ{bot}|[A<|im_end|>]|\n|{user}R{bot}|[B<|im_end|>]|\n"
    )
    head = "<|start_header_id|>{}<|end_header_id|>\n\n"
    start, middle = head.format("user"), "<|eot_id|>" + head.format("assistant")
    assert readable(ONE, "llama3_chat") == f"<s>|{start}|<image>|\nQ{middle}|[A<|eot_id|>]"


def test_plain_is_picture_and_caption() -> None:
    assert readable(ONE, "plain") == "<s>|<image>|[A\n]"


def test_no_bos_where_the_tokenizer_has_none() -> None:
    tokenizer = Words()
    tokenizer.bos_token_id = None
    text = Record("text", None, (Turn("", "A"),))
    assert readable(text, "plain", tokenizer=tokenizer) == "A\n", "nothing comes before it that could foretell it"
    tokenizer.eos_token_id = None
    with pytest.raises(ConfigError, match="template vicuna ends answers with an eos token"):
        specials(tokenizer, get("vicuna"))


def test_a_tag_without_a_picture_is_text() -> None:
    text = Record("text", None, (Turn("say <image>", "A"),))
    assert readable(text, "vicuna") == "<s>|USER: say <image> ASSISTANT:|[A]|[</s>]|\n"


def test_cut_hard_on_the_right() -> None:
    assert readable(TWO, "vicuna", max_length=5) == "<s>|USER: |<image>|\nQ ASSISTANT:|[A]"
    template, tokenizer = get("vicuna"), Words()
    tokens = encode_texts(tokenizer, texts(TWO, template))
    for length, learned, truncated in ((4, 0, True), (6, 2, True), (11, 4, True), (12, 4, False)):
        encoded = assemble(TWO, template, tokens, specials(tokenizer, template), length)
        assert (len(encoded.ids), encoded.learned, encoded.truncated) == (length, learned, truncated)


def test_a_real_tokenizer_gives_the_ids_of_the_pieces(tiny_language: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_language)
    template = get("internlm2_chat")
    tokens = encode_texts(tokenizer, texts(ONE, template))
    encoded = assemble(ONE, template, tokens, specials(tokenizer, template), 100)

    def ids(text: str) -> list[int]:
        found: list[int] = tokenizer(text, add_special_tokens=False).input_ids
        return found

    start, end = tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    before = [tokenizer.bos_token_id, start, *ids("user\n"), IMAGE_TOKEN]
    question = [*ids("\nQ"), end, *ids("\n"), start, *ids("assistant\n")]
    assert encoded.ids == [*before, *question, *ids("A"), end, *ids("\n")]
    quiet = [IGNORE] * len(before + question)
    assert encoded.labels == [*quiet, *ids("A"), end, *[IGNORE] * len(ids("\n"))]


def write(folder: Path, values: list[Any]) -> str:
    path = folder / "records.json"
    path.write_text(json.dumps(values))
    return str(path)


def talk(*texts: str, **more: Any) -> dict[str, Any]:
    roles = ("human", "gpt")
    return {"conversations": [{"from": roles[n % 2], "value": t} for n, t in enumerate(texts)], **more}


def test_index_keeps_every_sample_and_counts_what_it_leaves_out(tmp_path: Path, tiny_language: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_language)
    long = "word " * 60
    records = write(
        tmp_path,
        [
            talk("a", "b"),
            talk("no answer"),
            talk("<image>\na", "b", image="käse/1.png"),
            talk(long, "never reached"),
            talk("a", long),
        ],
    )
    folder = build_index(records, tokenizer, get("vicuna"), 40, tmp_path / "cache", lambda: None)
    index = TokenIndex(folder)
    counts = index.counts
    assert (counts.records, counts.samples, counts.empty, counts.unlearned, counts.truncated) == (5, 3, 1, 1, 1)
    assert [index.image(n) for n in range(3)] == [None, "käse/1.png", None]
    assert index.has_image.tolist() == [False, True, False]
    assert index.lengths.tolist() == [len(index.tokens(n)[0]) for n in range(3)]
    assert index.lengths[2] == 40
    ids, labels = index.tokens(1)
    learned = ids[labels != IGNORE]
    assert tokenizer.decode(learned) == "b</s>"
    assert (ids == IMAGE_TOKEN).sum() == 1


def test_index_is_found_again_and_made_anew_for_anything_else(
    tmp_path: Path, tiny_language: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_language)
    records, cache = write(tmp_path, [talk("a", "b")]), tmp_path / "cache"

    def build(template: str = "vicuna", length: int = 40) -> Path:
        return build_index(records, tokenizer, get(template), length, cache, lambda: None)

    first = build()
    assert build() == first
    others = {build("phi3_chat"), build(length=41)}
    write(tmp_path, [talk("a", "b"), talk("c", "d")])
    others.add(build())
    assert len(others | {first}) == 4
    assert sorted(p.name for p in cache.iterdir()) == sorted(p.name for p in {*others, first})


def test_index_of_nothing_is_an_error_and_leaves_nothing(tmp_path: Path, tiny_language: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_language)
    with pytest.raises(DataError, match=r"has no record to learn from: .*'records': 1"):
        build_index(write(tmp_path, [talk("a")]), tokenizer, get("vicuna"), 9, tmp_path / "cache", lambda: None)
    with pytest.raises(KeyboardInterrupt):

        def stop() -> None:
            raise KeyboardInterrupt

        build_index(write(tmp_path, [talk("a", "b")]), tokenizer, get("vicuna"), 9, tmp_path / "cache", stop)
    assert not list((tmp_path / "cache").iterdir())


def test_training_says_and_lists_what_it_leaves_out(
    tmp_path: Path,
    tiny_language: Path,
    tiny_vision: Path,
    tiny_records: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(LOG, "propagate", True)
    caplog.set_level("INFO", "llava")
    records = write(tmp_path, [talk("a", "b", id="short"), talk("a", "q" * 3000, id="long"), talk("a", id="silent")])
    job = make_job(Bases(tiny_language, tiny_vision, tiny_records), tmp_path / "run", records=records, max_steps=1)
    run = train_here(job)
    assert (
        "2 of 3 records to learn from; 1 without an answer and 0 cut before it are left out; 1 are cut" in caplog.text
    )
    assert f"what is dropped or cut is listed in {run.root}/left_out.jsonl" in caplog.text
    long, silent = read_lines(run.left_out)
    assert (long["record"], long["fate"], long["kept"]) == ("record 1 (id 'long')", "truncated", 1472)
    assert long["learned_lost"] == long["tokens"] - 1472 - 1, "all but the separator behind the last answer"
    assert (silent["record"], silent["fate"]) == ("record 2 (id 'silent')", "dropped")


def test_layout_of_a_micro_batch() -> None:
    picture = np.zeros((3, 4, 4), np.uint8)
    first = Sample(np.array([1, IMAGE_TOKEN, 5, 6], np.int32), np.array([IGNORE, IGNORE, IGNORE, 6], np.int32), picture)
    second = Sample(np.array([1, 7], np.int32), np.array([IGNORE, 7], np.int32))
    batch = collate([first, second], patches=3, side=4)
    # Row 0: 1 i i i 5 6; row 1: 1 7 and four positions of padding.
    assert (batch.samples, batch.length, batch.tokens, batch.supervised) == (2, 6, 8, 2)
    assert batch.text_ids.tolist() == [1, 5, 6, 1, 7]
    assert batch.text_at.tolist() == [0, 4, 5, 6, 7]
    assert batch.image_at.tolist() == [1, 2, 3]
    assert batch.target_at.tolist() == [4, 6]
    assert batch.targets.tolist() == [6, 7]
    assert tuple(batch.pixels.shape) == (1, 3, 4, 4)
