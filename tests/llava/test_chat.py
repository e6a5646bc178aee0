"""Talking: streamed text is the answer, later turns are written as in training, pictures are looked at once."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from PIL import Image

from llava.chat import Conversation, Style, answer, chat, talk
from llava.dialogue import Turn
from llava.errors import ConfigError, DataError
from llava.generate import Stop, generate
from llava.hf_model import HfLlava, load
from tests.llava.tiny_hf import build_llava


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_language: Path, tiny_vision: Path) -> Path:
    return build_llava(tmp_path_factory.mktemp("hf"), tiny_language, tiny_vision, {"template": "vicuna"})


@pytest.fixture(scope="module")
def llava(folder: Path) -> HfLlava:
    return load(folder, device="cpu", precision="fp32")


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    Image.new("RGB", (40, 30), (10, 200, 90)).save(tmp_path / "a.png")
    return tmp_path / "a.png"


def with_stop(llava: HfLlava, *words: str) -> HfLlava:
    return HfLlava(**{**llava.__dict__, "stop": Stop(llava.stop.ids, words)})


def reference(llava: HfLlava, turns: list[Turn], picture: Path, tokens: int) -> str:
    features = llava.encode_pixels(llava.pixels([Image.open(picture).convert("RGB")]))
    prompt = llava.embed(llava.chunks(turns), features)
    return llava.answer_text(generate(llava.model, [prompt], llava.stop, tokens, llava.decode)[0])


def test_what_is_streamed_is_the_answer(llava: HfLlava, picture: Path) -> None:
    out = io.StringIO()
    answer(Conversation(llava, [picture], Style(max_new_tokens=20)), "What colour is it?", out)
    assert out.getvalue() == reference(llava, [Turn("<image>\nWhat colour is it?")], picture, 20) + "\n"


def test_it_is_streamed_piece_by_piece(llava: HfLlava, picture: Path) -> None:
    texts = list(Conversation(llava, [picture], Style(max_new_tokens=20)).ask("What colour is it?"))
    assert len(set(texts)) > 5
    assert all(later.startswith(earlier) for earlier, later in pairwise(texts))


def test_a_stop_word_is_never_shown_not_even_its_beginning(llava: HfLlava, picture: Path) -> None:
    free = list(Conversation(llava, [picture], Style(max_new_tokens=20)).ask("one"))[-1]
    word = next(free[i : i + 5] for i in range(4, len(free) - 5) if "\ufffd" not in free[i : i + 5])
    texts = list(Conversation(with_stop(llava, word), [picture], Style(max_new_tokens=20)).ask("one"))
    assert texts[-1] == free.split(word)[0].strip()
    assert all(len(text) <= len(texts[-1]) for text in texts)


def test_the_second_turn_follows_the_trained_format(llava: HfLlava, picture: Path) -> None:
    conversation = Conversation(llava, [picture], Style(max_new_tokens=6))
    first = list(conversation.ask("What colour is it?"))[-1]
    second = list(conversation.ask("And how many <image>?"))[-1]
    turns = [Turn("<image>\nWhat colour is it?", first), Turn("And how many ?")]
    assert second == reference(llava, turns, picture, 6)
    chunks = llava.chunks(turns)
    bos, eos = llava.tokenizer.bos_token_id, llava.tokenizer.eos_token_id
    assert [chunks[0][0], *(chunk.count(bos) for chunk in chunks)] == [bos, 1, 1]
    # The answer, its end, the separator, and the next turn's beginning.
    after = llava.tokenizer.encode(first, add_special_tokens=False)
    after += [eos, *llava.tokenizer.encode("\n", add_special_tokens=False), bos]
    assert any(chunks[1][i : i + len(after)] == after for i in range(len(chunks[1])))


def test_lines_reset_and_exit(llava: HfLlava, picture: Path) -> None:
    conversation = Conversation(llava, [picture], Style(max_new_tokens=6))
    out = io.StringIO()
    talk(conversation, io.StringIO("What?\nAnd?\n\nRESET\nWhat?\nEXIT\nnever asked\n"), out)
    first, _, forgotten, again = out.getvalue().split("\n")[:4]
    assert forgotten == "(forgotten)"
    assert first == again
    assert out.getvalue().count("\n") == 4


def test_a_drawn_answer_depends_on_the_seed_alone(llava: HfLlava, picture: Path) -> None:
    def drawn(seed: int) -> str:
        return list(Conversation(llava, [picture], Style(12, temperature=1.0, seed=seed)).ask("What?"))[-1]

    assert drawn(1) == drawn(1)
    assert len({drawn(seed) for seed in range(4)}) > 1


def test_a_conversation_longer_than_the_model_reads_is_refused(llava: HfLlava) -> None:
    conversation = Conversation(llava, (), Style(max_new_tokens=4))
    with pytest.raises(ConfigError, match=r"the model reads 512"):
        list(conversation.ask("word " * 600))
    out = io.StringIO()
    talk(conversation, io.StringIO("word " * 600 + "\nWhat?\n"), out)
    assert "Type RESET." in out.getvalue()
    assert len(out.getvalue().splitlines()) == 3


def test_pictures_that_cannot_be_seen_are_errors(llava: HfLlava, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="picture not found"):
        Conversation(llava, [tmp_path / "none.png"])
    (tmp_path / "bad.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match="cannot read the picture"):
        Conversation(llava, [tmp_path / "bad.png"])


def test_several_pictures_each_have_their_place(llava: HfLlava, picture: Path) -> None:
    texts = list(Conversation(llava, [picture, picture], Style(max_new_tokens=6)).ask("What?"))
    assert texts


def test_a_model_in_4_bits_answers(folder: Path, picture: Path) -> None:
    from bitsandbytes.nn import Linear4bit

    llava = load(folder, device="cpu", four_bit=True)
    small = [name for name, module in llava.model.named_modules() if isinstance(module, Linear4bit)]
    assert len(small) == 14
    assert all(name.startswith("model.language_model.") for name in small)
    assert list(Conversation(llava, [picture], Style(max_new_tokens=4)).ask("What?"))


def test_the_command_line_answers_line_by_line_as_it_answers_once(
    folder: Path, picture: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--image", str(picture), "--max-new-tokens", "8", "--device", "cpu"]
    done = subprocess.run(
        [sys.executable, "-m", "llava", "chat", str(folder), *options],
        input="What colour is it?\nRESET\nWhat colour is it?\n",
        capture_output=True,
        text=True,
    )
    chat(folder, [picture], "What colour is it?", device="cpu", style=Style(max_new_tokens=8))
    once = capsys.readouterr().out.strip()
    assert done.stdout.splitlines() == [once, "(forgotten)", once]
    assert done.stderr == ""


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    yield
