"""The class for VLMEvalKit, under a stand-in of the kit's interface: what it calls, in its order, with its types."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from llava import mmbench
from llava.config import EvalJob
from llava.evals.mmbench.rows import Table, read
from llava.evals.refcoco.boxes import as_fractions
from llava.run_folder import read_lines
from tests.llava.tiny_hf import build_llava, some_rows, write_tsv

TYPES = {"MMBench_DEV_EN": "MCQ", "MME": "Y/N", "MMVet": "VQA", "RefCOCO": "GROUNDING"}


class StandInBase:
    """What VLMEvalKit's base class does around a model (vlmeval/vlm/base.py, commit e8e78f05)."""

    INTERLEAVE = False
    allowed_types: Any = ("text", "image", "video")

    def __init__(self) -> None:
        self.dump_image_func: Callable[[Any], Any] | None = None

    def set_dump_image(self, dump_image_func: Callable[[Any], Any]) -> None:
        self.dump_image_func = dump_image_func

    def dump_image(self, line: Any, dataset: str) -> Any:
        assert self.dump_image_func is not None
        return self.dump_image_func(line)

    def generate(self, message: list[dict[str, str]], dataset: str | None = None) -> str:
        for item in message:
            assert item["type"] in self.allowed_types and isinstance(item["value"], str)
        answer: str = self.generate_inner(message, dataset)  # type: ignore[attr-defined]
        return answer


@pytest.fixture
def kit(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """llava.vlmevalkit, imported where a package ``vlmeval`` is."""
    modules = {name: ModuleType(name) for name in (
        "vlmeval", "vlmeval.config", "vlmeval.dataset", "vlmeval.vlm", "vlmeval.vlm.base",
    )}  # fmt: skip
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
        if "." in name:
            setattr(modules[name.rpartition(".")[0]], name.rpartition(".")[2], module)
    modules["vlmeval.config"].supported_VLM = {}  # type: ignore[attr-defined]
    modules["vlmeval.dataset"].DATASET_TYPE = TYPES.__getitem__  # type: ignore[attr-defined]
    modules["vlmeval.vlm.base"].BaseModel = StandInBase  # type: ignore[attr-defined]
    monkeypatch.delitem(sys.modules, "llava.vlmevalkit", raising=False)
    yield importlib.import_module("llava.vlmevalkit")
    sys.modules.pop("llava.vlmevalkit", None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_language: Path, tiny_vision: Path) -> Path:
    place = tmp_path_factory.mktemp("hf")
    return build_llava(place, tiny_language, tiny_vision, {"template": "vicuna", "square": "pad"})


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Table:
    return read(write_tsv(tmp_path_factory.mktemp("data") / "MMBench_DEV_EN.tsv", some_rows(6)))


def lines(table: Table) -> list[dict[str, Any]]:
    """Rows as pandas hands them over: empty cells are nan, the index is a number."""
    return [
        {name: cell or float("nan") for name, cell in row.cells.items()} | {"index": row.index} for row in table.rows
    ]


def dumper(table: Table, folder: Path, as_list: bool) -> Callable[[Any], Any]:
    """Writes a row's picture to disk, as the kit's benchmarks do, and returns its path or a list with it."""
    pictures = {row.index: row.picture for row in table.rows}

    def dump(line: Any) -> Any:
        path = folder / f"{line['index']}.png"
        table.open_picture(pictures[line["index"]]).save(path)
        return [str(path)] if as_list else str(path)

    return dump


@pytest.mark.parametrize("as_list", [True, False])
def test_every_answer_is_that_of_llava_mmbench(
    kit: ModuleType, tmp_path: Path, folder: Path, table: Table, as_list: bool
) -> None:
    values = {"model": str(folder), "data": table.path, "batch": 1, "max_new_tokens": 6, "device": "cpu"}
    mmbench.start(EvalJob.model_validate({"kind": "eval", "run_dir": str(tmp_path), "eval": values}))
    ours = {line["index"]: line["prediction"] for line in read_lines(tmp_path / "eval/mmbench/predictions.jsonl")}
    model = kit.LlavaFolder(str(folder), device="cpu", max_new_tokens=6)
    model.set_dump_image(dumper(table, tmp_path, as_list))
    assert model.use_custom_prompt("MMBench_DEV_EN")
    messages = {line["index"]: model.build_prompt(line, dataset="MMBench_DEV_EN") for line in lines(table)}
    theirs = {index: model.generate(message, dataset="MMBench_DEV_EN") for index, message in messages.items()}
    assert theirs == ours
    assert len(set(ours.values())) > 3


def test_only_multiple_choice_is_asked_in_our_words(kit: ModuleType, folder: Path) -> None:
    model = kit.LlavaFolder(str(folder), device="cpu")
    assert {name: model.use_custom_prompt(name) for name in TYPES} == {
        "MMBench_DEV_EN": True, "MME": False, "MMVet": False, "RefCOCO": False,
    }  # fmt: skip


def test_turns_are_written_as_in_training(kit: ModuleType) -> None:
    picture, question = {"type": "image", "value": "a.png"}, {"type": "text", "value": "What is <image>?"}
    assert kit.turn_text([picture, question]) == "<image>\nWhat is ?"
    assert kit.turn_text([question, picture]) == "<image>\nWhat is ?"
    assert kit.turn_text([question]) == "What is ?"
    assert kit.turn_text([picture, question, picture, question]) == "<image>\nWhat is ?\n<image>\nWhat is ?"


def test_text_alone_and_several_pictures_are_answered(
    kit: ModuleType, tmp_path: Path, folder: Path, table: Table
) -> None:
    model = kit.LlavaFolder(str(folder), device="cpu", max_new_tokens=4)
    dump = dumper(table, tmp_path, False)
    pictures = [{"type": "image", "value": dump(line)} for line in lines(table)[:2]]
    text = {"type": "text", "value": "What colour is it?"}
    both = [model.generate([*some, text], dataset="MMVet") for some in ([], pictures[:1], pictures, pictures[::-1])]
    assert len(set(both)) > 1
    assert all(isinstance(answer, str) for answer in both)


def test_answers_are_as_long_as_the_kind_of_question_asks(
    kit: ModuleType, monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    model = kit.LlavaFolder(str(folder), device="cpu")
    asked = []
    monkeypatch.setattr(kit, "generate", lambda *given: asked.append(given[3]) or [[]])
    for name in TYPES:
        model.generate([{"type": "text", "value": "Why?"}], dataset=name)
    assert asked == [100, 100, 512, 100]


def test_boxes_are_fractions_for_a_reader_of_thousandths(
    kit: ModuleType, monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    assert as_fractions("{<0><74><41><100>}") == "[0.0, 0.74, 0.41, 1.0]"
    assert as_fractions("a dog {<1><2><3><4>} and [5, 6, 7, 8]") == "a dog [0.01, 0.02, 0.03, 0.04] and [5, 6, 7, 8]"
    model = kit.LlavaFolder(str(folder), device="cpu")
    monkeypatch.setattr(kit, "generate", lambda *given: [[]])
    monkeypatch.setattr(type(model._llava), "answer_text", lambda self, tokens: "{<10><20><30><40>}")
    message = [{"type": "text", "value": "Where?"}]
    assert model.generate(message, dataset="RefCOCO") == "[0.1, 0.2, 0.3, 0.4]"
    assert model.generate(message, dataset="MMVet") == "{<10><20><30><40>}"


def test_the_first_visible_gpu_is_taken_whatever_the_rank(
    kit: ModuleType, monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    """The kit shows each process its own GPUs only, so a rank is no number of one."""
    import os

    seen = []
    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.setattr("llava.hf_model.load", lambda *given: seen.append(os.environ.get("LOCAL_RANK")))
    kit.LlavaFolder(str(folder))
    assert seen == [None]
    assert os.environ["LOCAL_RANK"] == "3"


def test_the_kits_program_finds_the_models(
    kit: ModuleType, tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "run.py"
    program.write_text(
        "import json, sys, vlmeval.vlm\nfrom vlmeval.config import supported_VLM\n"
        "made = {name: type(build(device='cpu')).__name__ for name, build in supported_VLM.items()}\n"
        f"open({str(tmp_path / 'seen.json')!r}, 'w').write(json.dumps("
        "[made, sys.argv[1:], vlmeval.vlm.LlavaFolder.__name__]))\n"
    )
    monkeypatch.setattr(sys, "argv", ["x"])
    assert kit.main([f"tuned={folder}", "--run", str(program), "--data", "MMBench_DEV_EN", "--mode", "infer"]) == 0
    made, arguments, named = json.loads((tmp_path / "seen.json").read_text())
    assert (made, named) == ({"tuned": "LlavaFolder"}, "LlavaFolder")
    assert arguments == ["--data", "MMBench_DEV_EN", "--mode", "infer", "--model", "tuned"]


def test_a_wrong_request_is_told(
    kit: ModuleType, tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert kit.main([str(folder), "--run", "x"]) == 2
    assert kit.main([f"tuned={tmp_path}", "--run", "x"]) == 2
    assert kit.main([f"tuned={folder}", "--run", str(tmp_path / "no.py")]) == 2
    told = capsys.readouterr().err
    for words in ("is not NAME=FOLDER", "is no Hugging Face model folder", "file not found"):
        assert words in told
