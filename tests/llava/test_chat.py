"""Talking: streamed text is the answer, turns are written as in training, pictures join at any turn; the command."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from PIL import Image

from llava.chat import Conversation, Style, chat
from llava.data.records import to_record
from llava.dialogue import Turn
from llava.errors import ConfigError, DataError
from llava.generate import Stop, generate
from llava.hf_model import Bits, HfLlava, load
from llava.plain_text import plain
from llava.talk import HELP, answer, path_and_rest, talk
from tests.llava.terminal import Terminal
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


@pytest.fixture
def other(tmp_path: Path) -> Path:
    Image.effect_noise((30, 40), 90).convert("RGB").save(tmp_path / "b.png")
    return tmp_path / "b.png"


def with_stop(llava: HfLlava, *words: str) -> HfLlava:
    return HfLlava(**{**llava.__dict__, "stop": Stop(llava.stop.ids, words)})


def reference(llava: HfLlava, turns: list[Turn], *pictures: Path, tokens: int) -> str:
    features = [f for p in pictures for f in llava.encode_pixels(llava.pixels([Image.open(p).convert("RGB")]))]
    prompt = llava.embed(llava.chunks(turns), features)
    return llava.answer_text(generate(llava.model, [prompt], llava.stop, tokens, llava.decode)[0])


def test_what_is_streamed_is_the_answer(llava: HfLlava, picture: Path) -> None:
    out = io.StringIO()
    answer(Conversation(llava, [picture], Style(max_new_tokens=20)), "What colour is it?", out)
    assert out.getvalue() == reference(llava, [Turn("<image>\nWhat colour is it?")], picture, tokens=20) + "\n"


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
    assert second == reference(llava, turns, picture, tokens=6)
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
    assert "Type /reset." in out.getvalue()
    assert len(out.getvalue().splitlines()) == 3


def test_pictures_that_cannot_be_seen_are_errors(llava: HfLlava, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="picture not found"):
        Conversation(llava, [tmp_path / "none.png"])
    (tmp_path / "bad.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match="cannot read the picture"):
        Conversation(llava, [tmp_path / "bad.png"])


def ask(conversation: Conversation, question: str) -> str:
    return list(conversation.ask(question))[-1]


def test_several_pictures_each_have_their_place(llava: HfLlava, picture: Path, other: Path) -> None:
    conversation = Conversation(llava, [picture, other], Style(max_new_tokens=6))
    assert ask(conversation, "What?") == reference(llava, [Turn("<image>\n<image>\nWhat?")], picture, other, tokens=6)
    swapped = Conversation(llava, [other, picture], Style(max_new_tokens=6))
    ask(swapped, "What?")
    assert swapped.turns != conversation.turns, "each picture is seen in its own place"


def test_a_picture_joins_in_the_middle(llava: HfLlava, picture: Path, other: Path) -> None:
    conversation = Conversation(llava, [picture], Style(max_new_tokens=6))
    first = ask(conversation, "What?")
    conversation.show(other)
    second = ask(conversation, "And this?")
    third = ask(conversation, "Both?")
    turns = [Turn("<image>\nWhat?", first), Turn("<image>\nAnd this?", second), Turn("Both?")]
    assert second == reference(llava, [turns[0], Turn(turns[1].question)], picture, other, tokens=6)
    assert third == reference(llava, turns, picture, other, tokens=6)
    bos = llava.tokenizer.bos_token_id
    assert [chunk.count(bos) for chunk in llava.chunks(turns)] == [1, 1, 1], "each turn begins as it was trained"
    conversation.reset()
    assert (conversation.pictures, ask(conversation, "What?")) == ([str(picture)], first)


def test_text_alone_and_then_a_picture(llava: HfLlava, picture: Path) -> None:
    conversation = Conversation(llava, (), Style(max_new_tokens=6))
    first = ask(conversation, "Hello")
    conversation.show(picture)
    turns = [Turn("Hello", first), Turn("<image>\nWhat?")]
    assert ask(conversation, "What?") == reference(llava, turns, picture, tokens=6)


@pytest.mark.parametrize(
    ("typed", "path", "rest"),
    [
        ("a.png", "a.png", ""),
        ("a.png What is it?", "a.png", "What is it?"),
        ('"my cat.png" What\'s it?', "my cat.png", "What's it?"),
        ("'my cat.png'", "my cat.png", ""),
        (r"my\ cat.png What?", "my cat.png", "What?"),
        ("图.png 什么？", "图.png", "什么？"),
        ("", "", ""),
    ],
)
def test_paths_as_they_are_typed(typed: str, path: str, rest: str) -> None:
    assert path_and_rest(typed) == (path, rest)


def said(conversation: Conversation, *lines: str) -> list[str]:
    out = io.StringIO()
    talk(conversation, io.StringIO("\n".join(lines) + "\n"), out)
    return out.getvalue().splitlines()


def test_commands(llava: HfLlava, picture: Path, other: Path, tmp_path: Path) -> None:
    conversation = Conversation(llava, [picture], Style(max_new_tokens=6))
    saved = tmp_path / "my chat.json"
    lines = said(
        conversation, "What?", f"/image {other}", "And?", "/history", f'/save "{saved}"', "/what", "/etc what?"
    )
    first, shown, second, *history = lines
    assert shown == "(shown with the next question)"
    assert history[:6] == [
        f"picture 1: {picture}", f"picture 2: {other}", "you: <image> What?", first, "you: <image> And?", second
    ]  # fmt: skip
    assert history[6:8] == [f"(saved to {saved})", "no command /what; /help lists those there are"]
    assert len(history) == 9, "a question may begin with a slash"
    (record,) = json.loads(saved.read_text())
    assert record["image"] == [str(picture), str(other)]
    assert [message["value"] for message in record["conversations"]] == [
        "<image>\nWhat?", first, "<image>\nAnd?", second
    ]  # fmt: skip
    assert said(conversation, "/help", "/image", "/save", "/exit", "never asked") == [
        *HELP.splitlines(), "which picture? /image FILE", "where to? /save FILE"
    ]  # fmt: skip
    wrong, refused = said(conversation, "/image none.png", f"/save {picture}/x")
    assert wrong == "picture not found: none.png"
    assert refused.startswith(f"cannot write {picture}/x: ")


def test_a_saved_chat_about_one_picture_is_a_record(llava: HfLlava, picture: Path) -> None:
    conversation = Conversation(llava, [picture], Style(max_new_tokens=6))
    answers = [ask(conversation, "What?"), ask(conversation, "And?")]
    record = to_record(conversation.record(), 0)
    assert (record.image, [turn.answer for turn in record.turns]) == (str(picture), answers)
    conversation = Conversation(llava, [picture], Style(max_new_tokens=6))
    assert "image" not in conversation.record(), "it was not shown yet"


@pytest.mark.parametrize(("bits", "layer"), [(4, "Linear4bit"), (8, "Linear8bitLt")])
def test_a_model_in_fewer_bits_answers(folder: Path, picture: Path, bits: Bits, layer: str) -> None:
    llava = load(folder, device="cpu", bits=bits)
    small = [name for name, module in llava.model.named_modules() if type(module).__name__ == layer]
    assert len(small) == 14
    assert all(name.startswith("model.language_model.") for name in small)
    assert ask(Conversation(llava, [picture], Style(max_new_tokens=4)), "What?")


def test_8_bits_stay_near_the_whole_weights(folder: Path, llava: HfLlava, picture: Path) -> None:
    features = llava.encode_pixels(llava.pixels([Image.open(picture).convert("RGB")]))
    prompt = llava.embed(llava.chunks([Turn("<image>\nWhat colour is it?")]), features)
    whole, fewer = (
        m.model(inputs_embeds=prompt[None]).logits[0, -1].float() for m in (llava, load(folder, "cpu", bits=8))
    )
    assert (whole - fewer).abs().max() < 0.05 * whole.abs().max()
    assert whole.argmax() == fewer.argmax()


def test_fewer_bits_without_bitsandbytes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ConfigError, match=r"bitsandbytes is not installed\n4 and 8 bits need .*pip install"):
        load(folder, device="cpu", bits=8)


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


def test_the_command_line_in_8_bits_and_without_a_network(folder: Path, picture: Path) -> None:
    """Hugging Face's switch is off: any attempt to connect or to look up a name would end the process."""
    options = ["--image", str(picture), "--8-bit", "--max-new-tokens", "4", "--device", "cpu"]
    code = (
        "import os, socket\n"
        "def asked(*a, **k): os._exit(77)\n"
        "socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = asked\n"
        "from llava.cli import app\n"
        f"app({['chat', str(folder), 'What?', *options]})"
    )
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_OFFLINE")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip()


def test_on_a_terminal(folder: Path, picture: Path, llava: HfLlava) -> None:
    """Prompts, a picture in the middle, an answer that Ctrl-C cuts short, arrow keys, and Ctrl-D."""
    command = [sys.executable, "-m", "llava", "chat", str(folder), "--device", "cpu", "--max-new-tokens", "150"]
    with Terminal(command) as terminal:
        terminal.until("/help lists what else there is")
        terminal.until("you: ")
        terminal.type("Tell me a word.\n")
        terminal.until("Tell me a word.\n")
        terminal.more()
        terminal.type("\x03")
        assert "(cut short, and not remembered)" in terminal.until("you: ")
        terminal.type(f"/image {picture}\n")
        assert "(shown with the next question)" in terminal.until("you: ")
        terminal.type("What?\n")
        terminal.until("What?\n")
        told = terminal.until("you: ").removesuffix("you: ")
        # Without control characters, which a terminal would obey.
        assert told.strip() == plain(reference(llava, [Turn("<image>\nWhat?")], picture, tokens=150)).strip()
        terminal.type("/history\n")
        assert "you: <image> What?" in terminal.until("you: <image> What?")
        terminal.until("you: ")
        terminal.type("\x1b[A\x1b[A\n")  # two lines up: the question again
        terminal.until("What?\n")
        terminal.until("you: ")
        terminal.type("\x04")
        assert terminal.end() == 0


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    yield
