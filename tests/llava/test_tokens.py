"""Token ids and label masks of every template, number by number: the numbers below are written by hand.

A conversation is written as its ids, with [what is learned] in brackets and -200 in the picture's place. Expected are
the rules of XTuner 0.1.23 (``dataset/utils.py``, ``utils/templates.py``) and, for plain and llava_v1, LLaVA-1.5's own.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from llava.data.collate import IGNORE, IMAGE_TOKEN
from llava.data.conversation import Encoded
from llava.data.index import TokenIndex, build_index, encode_records
from llava.data.records import Record, to_record
from llava.dialogue import Turn, encode_by_template
from llava.run_folder import read_lines
from llava.templates import TEMPLATES, get

WORDS = {
    "<unk>": 0, "<s>": 1, "</s>": 2, "\n": 3, " ": 4, ":": 5, ".": 6, ",": 7, "'": 8,
    "USER": 10, "ASSISTANT": 11, "user": 12, "assistant": 13, "[": 14, "INST": 15, "]": 16, "/": 17,
    "What": 20, "colour": 21, "How": 22, "many": 23, "red": 24, "two": 25, "?": 26,
    "<|im_start|>": 30, "<|im_end|>": 31, "<|User|>": 32, "<|Bot|>": 33, "<eoh>": 34, "<eoa>": 35,
    "<|start_header_id|>": 36, "<|end_header_id|>": 37, "<|eot_id|>": 38,
    "<|user|>": 39, "<|assistant|>": 40, "<|end|>": 41,
    "有": 52, "什": 53, "么": 54, "猫": 55, "一": 56, "只": 57, "。": 58, "？": 59,
    "A": 60, "chat": 61, "between": 62, "a": 63, "curious": 64, "and": 65, "an": 66, "artificial": 67,
    "intelligence": 68, "The": 69, "gives": 70, "helpful": 71, "detailed": 72, "polite": 73, "answers": 74,
    "to": 75, "the": 76, "s": 77, "questions": 78,
}  # fmt: skip
"""Each word, sign and character is one token, and so are the markers of all templates."""

SYSTEM = (  # A chat between ... assistant. The assistant gives ... questions.
    "60 4 61 4 62 4 63 4 64 4 12 4 65 4 66 4 67 4 68 4 13 6 "
    "4 69 4 13 4 70 4 71 7 4 72 7 4 65 4 73 4 74 4 75 4 76 4 12 8 77 4 78 6"
)
# <image> / What colour? / red / How many? / two
PICTURE = {
    "vicuna": "1 10 5 4 -200 3 20 4 21 26 4 11 5 [24 2] 3 1 10 5 4 22 4 23 26 4 11 5 [25 2] 3",
    "plain": "1 -200 [24 3 25 3]",
    "llava_v1": f"1 {SYSTEM} 4 10 5 4 -200 3 20 4 21 26 4 11 5 [24 2] 10 5 4 22 4 23 26 4 11 5 [25 2]",
    "internlm_chat": "1 32 5 -200 3 20 4 21 26 34 3 33 5 [24 35] 3 32 5 22 4 23 26 34 3 33 5 [25 35] 3",
    "internlm2_chat": "1 30 12 3 -200 3 20 4 21 26 31 3 30 13 3 [24 31] 3 30 12 3 22 4 23 26 31 3 30 13 3 [25 31] 3",
    "llama2_chat": (
        "1 14 15 16 4 -200 3 20 4 21 26 4 14 17 15 16 [24 2] 3 1 14 15 16 4 22 4 23 26 4 14 17 15 16 [25 2] 3"
    ),
    "llama3_chat": (
        "1 36 12 37 3 3 -200 3 20 4 21 26 38 36 13 37 3 3 [24 38] 36 12 37 3 3 22 4 23 26 38 36 13 37 3 3 [25 38]"
    ),
    "phi3_chat": "1 39 3 -200 3 20 4 21 26 41 3 40 3 [24 41] 3 39 3 22 4 23 26 41 3 40 3 [25 41] 3",
    "chatml": "1 30 12 3 -200 3 20 4 21 26 31 3 30 13 3 [24 31] 3 30 12 3 22 4 23 26 31 3 30 13 3 [25 31] 3",
    "qwen_chat": "1 30 12 3 -200 3 20 4 21 26 31 3 30 13 3 [24 31] 3 30 12 3 22 4 23 26 31 3 30 13 3 [25 31] 3",
    "qwen": "1 30 12 3 -200 3 20 4 21 26 31 3 30 13 3 [24 31] 3 30 12 3 22 4 23 26 31 3 30 13 3 [25 31] 3",
}
# No picture: 有猫？ / 一只。 / 什么？ / 猫。
CHINESE = {
    "vicuna": "1 10 5 4 52 55 59 4 11 5 [56 57 58 2] 3 1 10 5 4 53 54 59 4 11 5 [55 58 2] 3",
    "plain": "1 [56 57 58 3 55 58 3]",
    "llava_v1": f"1 {SYSTEM} 4 10 5 4 52 55 59 4 11 5 [56 57 58 2] 10 5 4 53 54 59 4 11 5 [55 58 2]",
    "internlm_chat": "1 32 5 52 55 59 34 3 33 5 [56 57 58 35] 3 32 5 53 54 59 34 3 33 5 [55 58 35] 3",
    "internlm2_chat": "1 30 12 3 52 55 59 31 3 30 13 3 [56 57 58 31] 3 30 12 3 53 54 59 31 3 30 13 3 [55 58 31] 3",
    "llama2_chat": (
        "1 14 15 16 4 52 55 59 4 14 17 15 16 [56 57 58 2] 3 1 14 15 16 4 53 54 59 4 14 17 15 16 [55 58 2] 3"
    ),
    "llama3_chat": (
        "1 36 12 37 3 3 52 55 59 38 36 13 37 3 3 [56 57 58 38] 36 12 37 3 3 53 54 59 38 36 13 37 3 3 [55 58 38]"
    ),
    "phi3_chat": "1 39 3 52 55 59 41 3 40 3 [56 57 58 41] 3 39 3 53 54 59 41 3 40 3 [55 58 41] 3",
    "chatml": "1 30 12 3 52 55 59 31 3 30 13 3 [56 57 58 31] 3 30 12 3 53 54 59 31 3 30 13 3 [55 58 31] 3",
    "qwen_chat": "1 30 12 3 52 55 59 31 3 30 13 3 [56 57 58 31] 3 30 12 3 53 54 59 31 3 30 13 3 [55 58 31] 3",
    "qwen": "1 30 12 3 52 55 59 31 3 30 13 3 [56 57 58 31] 3 30 12 3 53 54 59 31 3 30 13 3 [55 58 31] 3",
}


def tokenizer(marks_words: bool = False) -> Any:
    """One token a word.

    Args:
        marks_words: open every text with a blank, as Llama's tokenizer marks the start of a word.
    """
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel(WORDS, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex("[A-Za-z]+|[^A-Za-z]"), "isolated")
    if marks_words:
        backend.normalizer = normalizers.Prepend(" ")
    backend.add_special_tokens([word for word in WORDS if word.startswith("<")])
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def conversation(*texts: str, image: str | None = None) -> Record:
    messages = [{"from": ("human", "gpt")[n % 2], "value": text} for n, text in enumerate(texts)]
    return to_record({"id": "x", "image": image, "conversations": messages}, 0)


TWO_TURNS = conversation("What colour?\n<image>", "red", "How many?", "two", image="a.jpg")
IN_CHINESE = conversation("有猫？", "一只。", "什么？", "猫。")


def encode(record: Record, template: str, max_length: int = 1472, **options: bool) -> Encoded:
    ((_, encoded),) = encode_records([record], tokenizer(**options), get(template), max_length)
    return encoded


def written(expected: str) -> tuple[list[int], list[int]]:
    """Ids and labels from the way they are written above."""
    ids: list[int] = []
    labels: list[int] = []
    learned = False
    for word in expected.split():
        learned = learned or word.startswith("[")
        ids.append(int(word.strip("[]")))
        labels.append(ids[-1] if learned else IGNORE)
        learned = learned and not word.endswith("]")
    return ids, labels


@pytest.mark.parametrize("template", TEMPLATES)
def test_two_turns_about_a_picture(template: str) -> None:
    encoded = encode(TWO_TURNS, template)
    assert (encoded.ids, encoded.labels) == written(PICTURE[template])
    assert encoded.ids.count(IMAGE_TOKEN) == 1
    assert not encoded.truncated


@pytest.mark.parametrize("template", TEMPLATES)
def test_chinese_without_a_picture(template: str) -> None:
    encoded = encode(IN_CHINESE, template)
    assert (encoded.ids, encoded.labels) == written(CHINESE[template])


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_chat_asks_what_was_trained(template: str) -> None:
    """Up to the second answer the model sees the very numbers of training: BOS of each turn, separators and all."""
    picture = [Turn("<image>\nWhat colour?", "red"), Turn("How many?")]
    chinese = [Turn("有猫？", "一只。"), Turn("什么？")]
    for turns, (ids, labels) in ((picture, written(PICTURE[template])), (chinese, written(CHINESE[template]))):
        first, *rest = encode_by_template(turns, tokenizer(), template)
        seen = first + [token for chunk in rest for token in (IMAGE_TOKEN, *chunk)]
        answer = {"red": [25], "一只。": [55, 58]}[turns[0].answer or ""]
        assert seen == ids[: len(seen)]
        assert ids[len(seen) :][: len(answer)] == labels[len(seen) :][: len(answer)] == answer


def test_every_text_opens_with_llamas_word_mark() -> None:
    """Each piece is encoded alone, so that the answer after "ASSISTANT:" gets the mark though no blank is written."""
    encoded = encode(TWO_TURNS, "vicuna", marks_words=True)
    first = "1 4 10 5 4 -200 4 3 20 4 21 26 4 11 5 [4 24 2] 4 3"
    assert (encoded.ids, encoded.labels) == written(first + " 1 4 10 5 4 22 4 23 26 4 11 5 [4 25 2] 4 3")


@pytest.mark.parametrize(
    ("length", "expected", "lost"),
    [
        (31, "1 10 5 4 -200 3 20 4 21 26 4 11 5 [24 2] 3 1 10 5 4 22 4 23 26 4 11 5 [25 2] 3", 0),
        (30, "1 10 5 4 -200 3 20 4 21 26 4 11 5 [24 2] 3 1 10 5 4 22 4 23 26 4 11 5 [25 2] 3", 0),
        (29, "1 10 5 4 -200 3 20 4 21 26 4 11 5 [24 2] 3 1 10 5 4 22 4 23 26 4 11 5 [25 2]", 0),
        (28, "1 10 5 4 -200 3 20 4 21 26 4 11 5 [24 2] 3 1 10 5 4 22 4 23 26 4 11 5 [25]", 1),
        (17, "1 10 5 4 -200 3 20 4 21 26 4 11 5 [24 2] 3 1", 2),
        (14, "1 10 5 4 -200 3 20 4 21 26 4 11 5 [24]", 3),
        (13, "1 10 5 4 -200 3 20 4 21 26 4 11 5", 4),
        (4, "1 10 5 4", 4),
    ],
)
def test_the_cut_is_hard_and_on_the_right(length: int, expected: str, lost: int) -> None:
    encoded = encode(TWO_TURNS, "vicuna", length)
    assert (encoded.ids, encoded.labels) == written(expected)
    assert (encoded.whole, encoded.learned_lost, encoded.truncated) == (30, lost, length < 30)


@pytest.mark.parametrize(("question", "kept", "learned"), [(1462, 1472, 2), (1463, 1472, 2), (1464, 1472, 1)])
def test_the_recipes_length(question: int, kept: int, learned: int) -> None:
    """<s> USER : _ ... _ ASSISTANT : red </s> and the new line are ten tokens beside the question."""
    encoded = encode(conversation("猫" * question, "red"), "vicuna")
    assert (len(encoded.ids), encoded.whole, encoded.learned) == (kept, question + 10, learned)


def test_what_is_dropped_or_cut_is_counted_and_listed(tmp_path: Path) -> None:
    def talk(name: str, question: str, *answer: str, **more: str) -> dict[str, Any]:
        texts = [("human", question), *(("gpt", text) for text in answer)]
        return {"id": name, "conversations": [{"from": f, "value": v} for f, v in texts], **more}

    late = talk("late", "猫" * 22, "red", image="a.jpg")
    late["conversations"] += [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "two"}]
    values = [
        talk("fits", "<image>", "red", image="a.jpg"),
        talk("silent", "What?"),
        talk("long", "猫" * 30, "red"),
        talk("cut", "猫" * 28, "red"),
        late,
    ]
    (tmp_path / "records.json").write_text(json.dumps(values))
    folder = build_index(
        str(tmp_path / "records.json"), tokenizer(), get("vicuna"), 36, tmp_path / "cache", lambda: None
    )
    counts = asdict(TokenIndex(folder).counts)
    assert counts == {
        "records": 5, "samples": 3, "empty": 1, "unlearned": 1, "truncated": 2, "pictures_lost": 1
    }  # fmt: skip
    listed = list(read_lines(folder / "left_out.jsonl"))
    assert [(line["record"], line["fate"], line["tokens"], line["kept"], line["learned_lost"]) for line in listed] == [
        ("record 1 (id 'silent')", "dropped", 0, 0, 0),
        ("record 2 (id 'long')", "dropped", 40, 0, 2),
        ("record 3 (id 'cut')", "truncated", 38, 36, 1),
        ("record 4 (id 'late')", "truncated", 43, 36, 2),
    ]
    assert [line["picture_lost"] for line in listed] == [False, False, False, True]
    assert listed[1]["why"] == "no supervised token among the first 36"
    index = TokenIndex(folder)
    assert [index.image(n) for n in range(3)] == ["a.jpg", None, None]
    assert index.tokens(1)[1].tolist() == [IGNORE] * 35 + [24]
