"""The quickstart's world: what its pictures, questions and tiny bases must hold to be an honest test."""

from __future__ import annotations

import base64
import csv
import io
import json
import queue
import random
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from llava.toy import words
from llava.toy.draw import COLUMNS, PASS, SIDE, draw_data, paint

QUESTIONS = 64
SHORT = {"language_steps": 2, "language_batch": 4, "vision_steps": 2, "vision_batch": 4}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("toy")
    draw_data(path, seed=3, pictures=60, text_rows=8, questions=QUESTIONS)
    return path


def _records(folder: Path, name: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads((folder / name).read_text(encoding="utf-8"))
    return rows


def _dev(folder: Path) -> list[dict[str, str]]:
    csv.field_size_limit(10**9)
    with (folder / "dev.tsv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def _files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_one_seed_gives_one_set_of_bytes_and_another_seed_another(folder: Path, tmp_path: Path) -> None:
    draw_data(tmp_path / "same", seed=3, pictures=60, text_rows=8, questions=QUESTIONS)
    draw_data(tmp_path / "other", seed=4, pictures=60, text_rows=8, questions=QUESTIONS)
    first, other = _files(folder), _files(tmp_path / "other")
    assert _files(tmp_path / "same") == first
    assert first.keys() == other.keys()
    assert not {first[name] for name in first} & {other[name] for name in other}


def test_pictures_are_jpeg_of_the_stated_size(folder: Path) -> None:
    for path in (folder / "images" / "train").iterdir():
        with Image.open(path) as image:
            assert (image.format, image.size) == ("JPEG", (SIDE, SIDE))


def test_test_pictures_do_not_occur_in_training(folder: Path) -> None:
    trained = {path.read_bytes() for path in (folder / "images" / "train").iterdir()}
    tested = [base64.b64decode(row["image"]) for row in _dev(folder) if int(row["index"]) < PASS]
    assert len(set(tested)) == QUESTIONS
    assert not trained & set(tested)


def test_no_scene_of_training_comes_back_in_the_test(monkeypatch: pytest.MonkeyPatch) -> None:
    from llava.toy import draw

    asked: list[words.Scene] = []

    def ask(scene: words.Scene, *rest: Any) -> words.Question:
        asked.append(scene)
        return words.ask(scene, *rest)

    monkeypatch.setattr(draw, "ask", ask)
    first = words.draw_scene(random.Random("3/dev/0"))
    draw.dev_rows(3, 8, {first})
    assert first not in asked
    assert len(asked) == 8


def test_records_are_llava_records_and_their_pictures_exist(folder: Path) -> None:
    captions, turns = _records(folder, "pretrain.json"), _records(folder, "finetune.json")
    assert len({row["id"] for row in captions + turns}) == len(captions + turns)
    for row in captions + turns:
        speakers = [one["from"] for one in row["conversations"]]
        assert speakers == ["human", "gpt"] * (len(speakers) // 2)
        text = "".join(one["value"] for one in row["conversations"])
        if "image" in row:
            assert (folder / "images" / row["image"]).is_file()
            assert row["conversations"][0]["value"].startswith("<image>\n")
        assert text.count("<image>") == ("image" in row)
    assert all("image" in row and len(row["conversations"]) == 2 for row in captions)
    assert sum("image" not in row for row in turns) == 8
    assert all(len(row["conversations"]) > 2 for row in turns)


def test_tsv_has_mmbench_columns_and_several_categories_in_several_groups(folder: Path) -> None:
    rows = _dev(folder)
    assert tuple(rows[0]) == COLUMNS
    assert all(row[name] for row in rows for name in COLUMNS if name != "hint")
    groups = defaultdict(set)
    for row in rows:
        groups[row["l2-category"]].add(row["category"])
    assert len(groups) >= 2
    assert len(set.union(*groups.values())) >= 4
    assert {bool(row["hint"]) for row in rows} == {True, False}


def test_every_letter_is_right_equally_often_in_every_family(folder: Path) -> None:
    main = [row for row in _dev(folder) if int(row["index"]) < PASS]
    seen = Counter((row["comment"], row["answer"]) for row in main)
    families = len({row["comment"] for row in main})
    assert set(seen.values()) == {QUESTIONS // families // 4}
    assert len(seen) == 4 * families


def test_circular_copies_shift_options_and_answer_together(folder: Path) -> None:
    groups: dict[int, list[dict[str, str]]] = defaultdict(list)
    for row in _dev(folder):
        groups[int(row["index"]) % PASS].append(row)
    assert len(groups) == QUESTIONS
    for index, rows in groups.items():
        assert [int(row["index"]) for row in rows] == [index + k * PASS for k in range(4)]
        assert len({row[row["answer"]] for row in rows}) == 1
        assert sorted(row["answer"] for row in rows) == list("ABCD")
        first = [rows[0][letter] for letter in "ABCD"]
        assert len(set(first)) == 4
        for k, row in enumerate(rows):
            assert [row[letter] for letter in "ABCD"] == first[k:] + first[:k]
        assert all(row["image"] == str(index) and len(row["image"]) < 16 for row in rows[1:])
        with Image.open(io.BytesIO(base64.b64decode(rows[0]["image"]))) as image:
            assert image.size == (SIDE, SIDE)


@pytest.mark.parametrize("family", words.FAMILIES, ids=lambda family: family.name)
def test_answers_follow_from_the_scene_and_not_from_the_question(family: words.Family) -> None:
    rng = random.Random(0)
    letters, answers, offered = Counter[str](), Counter[str](), Counter[str]()
    for _ in range(2000):
        scene = words.draw_scene(rng)
        question = words.ask(scene, family, rng)
        assert question.options[question.answer] == family.truth(scene)
        letters[question.letter] += 1
        answers[family.truth(scene)] += 1
        offered.update(question.options)
    # Who sees the text alone is right one time in four: whatever is offered is right in a quarter of the cases.
    assert all(0.21 < count / 2000 < 0.29 for count in letters.values())
    assert set(answers) == set(family.pool)
    assert all(0.19 < answers[option] / offered[option] < 0.31 for option in family.pool)


def test_no_part_of_a_scene_tells_another_part() -> None:
    scenes = [words.draw_scene(random.Random(number)) for number in range(20000)]
    for one, other in (("colour", "shape"), ("ground", "colour"), ("place", "count"), ("word", "shape")):
        pairs = Counter((getattr(scene, one), getattr(scene, other)) for scene in scenes)
        expected = len(scenes) / len(pairs)
        assert all(0.7 < count / expected < 1.3 for count in pairs.values())


@pytest.mark.parametrize("part", ["shape", "colour", "ground", "place", "count", "word"])
def test_every_part_of_a_scene_changes_the_picture(part: str) -> None:
    scene = words.Scene("circle", "red", "white", "left", 2, "CAT")
    other = {"shape": "star", "colour": "blue", "ground": "pink", "place": "top", "count": 3, "word": "DOG"}[part]
    changed = words.Scene(**{**vars(scene), part: other})
    assert paint(scene, random.Random(1)).tobytes() != paint(changed, random.Random(1)).tobytes()


def test_prompt_is_xtuners_for_mmbench() -> None:
    family = next(family for family in words.FAMILIES if family.hint)
    question = words.Question(family, ("two", "five", "three", "four"), 1)
    assert question.prompt() == (
        f"{family.hint}\n{family.question}\nA. two\nB. five\nC. three\nD. four\n"
        "Answer with the option's letter from the given choices directly."
    )
    assert (question.shifted(1).options, question.shifted(1).letter) == (("five", "three", "four", "two"), "A")


def test_files_are_moved_into_place(folder: Path) -> None:
    assert not [name for name in _files(folder) if Path(name).name.startswith(".")]


class TestBases:
    """The tiny bases, trained for a step or two only."""

    @pytest.fixture
    def bases(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
        # The real thing trains in two processes of their own; here both work in this one, to be quick.
        bases = pytest.importorskip("llava.toy.bases")

        def train(folder: Path, data_folder: Path, seed: int, effort: Any, report: Any) -> None:
            said: queue.Queue[Any] = queue.Queue()
            bases._make_language(folder, data_folder, seed, effort, said)
            bases._make_vision(folder, data_folder, seed, effort, said)
            bases._follow([], said, effort, report)

        monkeypatch.setattr(bases, "_train_both", train)
        monkeypatch.setattr(bases, "Effort", lambda: SimpleNamespace(**SHORT))
        threads = bases.torch.get_num_threads()
        yield bases
        bases.torch.set_num_threads(threads)

    def test_folders_load_as_any_hugging_face_folder(self, bases: Any, folder: Path, tmp_path: Path) -> None:
        from transformers import AutoTokenizer, CLIPImageProcessorPil, CLIPVisionModel, LlamaForCausalLM

        told: list[tuple[int, int]] = []
        bases.build_bases(tmp_path / "b", folder, 3, report=lambda step, of, metrics: told.append((step, of)))
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / "b" / "language")
        language, report = LlamaForCausalLM.from_pretrained(tmp_path / "b" / "language", output_loading_info=True)
        assert not report["missing_keys"]
        assert len(tokenizer) <= language.config.vocab_size
        assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == ("<s>", "</s>", "<pad>")
        vision, report = CLIPVisionModel.from_pretrained(tmp_path / "b" / "vision", output_loading_info=True)
        assert not report["missing_keys"]
        processor = CLIPImageProcessorPil.from_pretrained(tmp_path / "b" / "vision")
        with Image.open(folder / "images" / "train" / "00000.jpg") as image:
            pixels = processor(image, return_tensors="pt")["pixel_values"]
        hidden = vision(pixels, output_hidden_states=True).hidden_states[-2]
        assert hidden.shape == (1, 1 + (SIDE // bases.PATCH) ** 2, bases.WIDTH)
        assert told[-1] == (4, 4)

    def test_same_seed_same_weights_and_finished_bases_are_kept(
        self, bases: Any, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        bases.build_bases(tmp_path / "one", folder, 3)
        bases.build_bases(tmp_path / "two", folder, 3, cache=tmp_path / "cache")
        weights = [f"{part}/model.safetensors" for part in ("language", "vision")]
        for name in weights:
            assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()

        def fail(*rest: Any) -> None:
            raise AssertionError("finished bases were built again")

        monkeypatch.setattr(bases, "_train_both", fail)
        bases.build_bases(tmp_path / "one", folder, 3)
        bases.build_bases(tmp_path / "three", folder, 3, cache=tmp_path / "cache")
        assert (tmp_path / "three" / weights[0]).read_bytes() == (tmp_path / "one" / weights[0]).read_bytes()
        with pytest.raises(AssertionError, match="built again"):
            bases.build_bases(tmp_path / "one", folder, 4)

    @pytest.mark.parametrize("place", ["file/bases"])
    def test_a_cache_that_cannot_be_made_is_done_without(
        self, bases: Any, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, place: str
    ) -> None:
        (tmp_path / "file").write_text("mine", encoding="utf-8")
        bases.build_bases(tmp_path / "out", folder, 3, cache=tmp_path / place)
        assert bases._complete(tmp_path / "out", bases.bases_key(folder, 3, bases.Effort()))
        assert (tmp_path / "out" / "language" / "model.safetensors").is_file()
        assert "the cache of base models is not used (toy.cache)" in caplog.text
        assert (tmp_path / "file").read_text(encoding="utf-8") == "mine"
        assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []

    def test_a_cache_that_cannot_be_read_is_done_without(
        self, bases: Any, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        bases.build_bases(tmp_path / "one", folder, 3, cache=tmp_path / "cache")
        key = bases.bases_key(folder, 3, bases.Effort())
        (weights,) = (tmp_path / "cache" / key / "language").glob("*.safetensors")
        weights.unlink()
        weights.symlink_to(tmp_path / "nowhere")
        bases.build_bases(tmp_path / "two", folder, 3, cache=tmp_path / "cache")
        name = "language/model.safetensors"
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()

    def test_a_folder_with_other_files_is_not_touched(self, bases: Any, folder: Path, tmp_path: Path) -> None:
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / "notes.txt").write_text("keep", encoding="utf-8")
        with pytest.raises(OSError):
            bases.build_bases(tmp_path / "mine", folder, 3)
        assert (tmp_path / "mine" / "notes.txt").read_text(encoding="utf-8") == "keep"

    def test_every_word_of_this_world_is_one_token(self, bases: Any) -> None:
        tokenizer = bases.build_tokenizer()
        for family in words.FAMILIES:
            for word in " ".join(family.pool).split():
                assert len(tokenizer.encode(word, add_special_tokens=False)) == 1
        for seed in range(50):
            rng = random.Random(seed)
            for question, answer in words.reading_turns(rng):
                ids = tokenizer.encode(f"USER: {question} ASSISTANT:{answer}", add_special_tokens=False)
                assert tokenizer.unk_token_id not in ids
                assert tokenizer.decode(tokenizer.encode(answer, add_special_tokens=False)) == answer
        assert tokenizer.decode(tokenizer.encode("zebra", add_special_tokens=False)) == "zebra"

    def test_labels_are_on_answers_and_ends_only(self, bases: Any) -> None:
        tokenizer = bases.build_tokenizer()
        ids, labels = bases.encode(tokenizer, [("red?", "red"), ("blue?", "blue")])
        said = [label for label in labels if label != -100]
        end = tokenizer.eos_token_id
        assert said == [tokenizer.convert_tokens_to_ids("red"), end, tokenizer.convert_tokens_to_ids("blue"), end]
        assert [one for one, label in zip(ids, labels, strict=True) if label != -100] == said
        assert ids.count(tokenizer.bos_token_id) == 2
