"""The own decoding loop gives what transformers' generate gives, and the own conversation ids are the trained ones."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from llava.data.conversation import assemble, encode_texts, specials, texts
from llava.data.records import Record
from llava.data.records import Turn as Trained
from llava.dialogue import Turn, encode_by_template
from llava.errors import ConfigError, WeightsError
from llava.generate import Heads, Stop, cut_at_words, generate
from llava.hf_model import HfLlava, load
from llava.templates import TEMPLATES, get
from tests.llava.tiny_hf import build_llava

QUESTIONS = ["What colour is it?", "Tell me a word. Tell me a word.", "one", "How many are there, one or two or three?"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_language: Path, tiny_vision: Path) -> Path:
    place = tmp_path_factory.mktemp("hf")
    return build_llava(place, tiny_language, tiny_vision, {"template": "vicuna", "square": "pad"})


@pytest.fixture(scope="module")
def llava(folder: Path) -> HfLlava:
    return load(folder, device="cpu", precision="fp32")


def prompts(llava: HfLlava) -> list[torch.Tensor]:
    pictures = [Image.new("RGB", (20 + 9 * i, 40), (60 * i, 90, 200)) for i in range(len(QUESTIONS))]
    features = llava.encode_pixels(llava.pixels(pictures))
    chunks = [llava.chunks([Turn(f"<image>\n{question}")]) for question in QUESTIONS]
    return [llava.embed(chunk, [picture]) for chunk, picture in zip(chunks, features, strict=True)]


@torch.inference_mode()
def by_transformers(llava: HfLlava, prompt: torch.Tensor, tokens: int) -> list[int]:
    out = llava.model.generate(
        inputs_embeds=prompt[None],
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        max_new_tokens=tokens,
        do_sample=False,
        eos_token_id=[],
    )
    return [int(token) for token in out[0]]


def test_a_batch_gives_what_generate_gives_row_by_row(llava: HfLlava) -> None:
    rows = prompts(llava)
    assert len({len(row) for row in rows}) > 1
    expected = [by_transformers(llava, row, 12) for row in rows]
    assert len({tuple(row) for row in expected}) > 1
    assert generate(llava.model, rows, Stop(frozenset()), 12, llava.decode) == expected
    assert [generate(llava.model, [row], Stop(frozenset()), 12, llava.decode)[0] for row in rows] == expected


def test_a_shared_beginning_read_once_changes_nothing(llava: HfLlava) -> None:
    rows = prompts(llava)
    heads = [rows[0][:21], rows[1][:19]]
    tails = [rows[0][21:], rows[0][22:], rows[1][19:], rows[2][:3]]
    whole = [torch.cat(pair) for pair in zip([heads[0], heads[0], heads[1], heads[0]], tails, strict=True)]
    expected = [by_transformers(llava, row, 12) for row in whole]
    assert len({tuple(row) for row in expected}) > 2
    shared = Heads(heads, [0, 0, 1, 0])
    assert generate(llava.model, tails, Stop(frozenset()), 12, llava.decode, shared) == expected


def test_embeddings_are_those_of_the_whole_model(llava: HfLlava) -> None:
    picture = Image.new("RGB", (32, 32), (60, 90, 200))
    pixels = llava.pixels([picture])
    chunks = llava.chunks([Turn("<image>\nWhat colour is it?")])
    ids = [*chunks[0], *[llava.model.config.image_token_index] * 16, *chunks[1]]
    with torch.inference_mode():
        whole = llava.model(input_ids=torch.tensor([ids]), pixel_values=pixels).logits
        spliced = llava.embed(chunks, llava.encode_pixels(pixels))
        assert torch.equal(llava.model(inputs_embeds=spliced[None]).logits, whole)


def test_a_row_stops_by_itself_and_the_others_go_on(llava: HfLlava) -> None:
    rows = prompts(llava)
    free = generate(llava.model, rows, Stop(frozenset()), 12, llava.decode)
    end = free[0][3]
    expected = [row[: row.index(end)] if end in row else row for row in free]
    assert len(expected[0]) <= 3
    assert any(len(row) == 12 for row in expected)
    assert generate(llava.model, rows, Stop(frozenset({end})), 12, llava.decode) == expected


def test_a_stop_word_of_several_tokens_ends_a_row_and_is_cut_off(llava: HfLlava) -> None:
    free = generate(llava.model, prompts(llava)[:1], Stop(frozenset()), 12, llava.decode)[0]
    word = llava.decode(free)[3:6]
    (stopped,) = generate(llava.model, prompts(llava)[:1], Stop(frozenset(), (word,)), 12, llava.decode)
    assert word in llava.decode(stopped)
    assert word not in llava.decode(stopped[:-1])
    assert cut_at_words(llava.decode(stopped), (word,)) == llava.decode(free).split(word)[0]


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_conversation_is_encoded_as_it_was_trained(llava: HfLlava, name: str) -> None:
    template, tokenizer = get(name), llava.tokenizer
    asked = [("<image>\nWhat colour is it?", "It is red."), ("How many are there?", "two"), ("one?", "")]
    record = Record(name="r", image="a.png", turns=tuple(Trained(*turn) for turn in asked))
    special = specials(tokenizer, template)
    trained = assemble(record, template, encode_texts(tokenizer, texts(record, template)), special, 10_000).ids
    chunks = encode_by_template([Turn(*turn) for turn in asked[:-1]] + [Turn(asked[-1][0])], tokenizer, name)
    flat = [token for i, chunk in enumerate(chunks) for token in ([-200] if i else []) + chunk]
    assert trained[: len(flat)] == flat
    # What follows is the last answer, here empty: its suffix or end of sequence, and the separator.
    assert len(trained) - len(flat) <= len(tokenizer.encode(template.suffix + template.sep)) + 1


def test_a_foreign_folder_goes_by_its_chat_template_or_by_a_named_one(
    tmp_path: Path, tiny_language: Path, tiny_vision: Path
) -> None:
    folder = build_llava(tmp_path / "hf", tiny_language, tiny_vision)
    with pytest.raises(ConfigError, match="names no conversation template"):
        load(folder, device="cpu")
    assert load(folder, device="cpu", template="chatml").template == "chatml"
    (folder / "chat_template.jinja").write_text(
        "{{ bos_token }}{% for message in messages %}{% for part in message['content'] %}"
        "{% if part['type'] == 'image' %}<image>\n{% else %}USER: {{ part['text'] }}{% endif %}"
        "{% endfor %}{% endfor %}{% if add_generation_prompt %} ASSISTANT:{% endif %}"
    )
    llava = load(folder, device="cpu")
    assert llava.template is None
    chunks = llava.chunks([Turn("<image>\nWhat?")])
    assert chunks == [[llava.tokenizer.bos_token_id], llava.tokenizer.encode("\nUSER: What? ASSISTANT:")]


def test_a_missing_and_a_left_over_weight_are_errors(folder: Path, tmp_path: Path) -> None:
    import shutil

    from safetensors.torch import load_file, save_file

    place = tmp_path / "hf"
    shutil.copytree(folder, place)
    weights = load_file(place / "model.safetensors")
    key = next(name for name in weights if name.endswith("linear_1.bias"))
    save_file({**weights, "stranger": torch.zeros(2)}, place / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(WeightsError, match="stranger"):
        load(place, device="cpu")
    weights.pop(key)
    save_file(weights, place / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(WeightsError, match=r"linear_1\.bias"):
        load(place, device="cpu")


def test_a_folder_of_another_model_is_refused(tiny_language: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="model of type 'llama'"):
        load(tiny_language)
    with pytest.raises(ConfigError, match="no Hugging Face model folder"):
        load(tmp_path / "nowhere")


def test_a_gpu_is_picked_by_its_number_on_this_node(monkeypatch: pytest.MonkeyPatch) -> None:
    from llava.hf_device import local_device

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setenv("RANK", "6")
    monkeypatch.setenv("LOCAL_RANK", "2")
    assert local_device("auto") == torch.device("cuda", 2)
    assert local_device("cpu") == torch.device("cpu")
    monkeypatch.setenv("LOCAL_RANK", "4")
    with pytest.raises(ConfigError, match="local rank 4 has no GPU of its own"):
        local_device("cuda")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert local_device("cuda") == torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert local_device("auto") == torch.device("cpu")
    with pytest.raises(ConfigError, match="sees no GPU"):
        local_device("cuda")
