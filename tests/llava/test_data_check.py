"""Checking data: everything wrong is found, told with its cure, and nothing else; links mend what they promise."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from llava.data.check import known
from llava.data.check.benchmark import check_benchmark, picture_name
from llava.data.check.cures import cure_of_folder, folder_of
from llava.data.check.findings import Section
from llava.data.check.pictures import look_at, look_at_all
from llava.data.check.progress import Bar
from llava.data.check.sources import Benchmark, Training, by_hand, find
from llava.data.check.training import check_training
from llava.data.collate import BadPicture
from llava.data.images import Pictures
from llava.errors import ConfigError, DataError
from llava.model.vision import load_processor
from llava.run_folder import read_lines
from tests.llava.terminal import Terminal
from tests.llava.tiny_hf import some_rows, write_tsv
from tests.llava.train_helpers import Bases, make_job, train_here, write_config


def llava(*arguments: object, given: str | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "llava", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, input=given)


def asks(image: str | None, question: str = "What?", answer: str = "red") -> dict[str, Any]:
    text = f"<image>\n{question}" if image else question
    talk = [{"from": "human", "value": text}, {"from": "gpt", "value": answer}]
    return {"id": image or "text", "image": image, "conversations": talk}


def picture(path: Path, form: str = "JPEG", mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.effect_noise((60, 40), 80).convert("RGB").convert(mode).save(path, form)
    return path


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Records and pictures of the 665K mix's kind, with one of every trouble."""
    images = tmp_path / "images"
    picture(images / "coco/train2017/1.jpg")
    picture(images / "ocr_vqa/images/2.jpg", "GIF")
    picture(images / "ocr_vqa/images/it's.gif", "GIF")
    whole = picture(images / "gqa/images/4.jpg").read_bytes()
    (images / "gqa/images/5.jpg").write_bytes(whole[: len(whole) // 2])
    (images / "vg").mkdir()
    (images / "vg/images2.zip").write_bytes(b"")
    names = [
        "coco/train2017/1.jpg", "coco/train2017/0.jpg", "ocr_vqa/images/2.jpg", "ocr_vqa/images/it's.jpg",
        "gqa/images/4.jpg", "gqa/images/4.jpg", "gqa/images/5.jpg", "vg/VG_100K_2/6.jpg", None,
    ]  # fmt: skip
    records = [*map(asks, names), {"id": "odd", "image": "x.jpg", "conversations": []}, {"id": "bad"}]
    (tmp_path / "records.json").write_text(json.dumps(records))
    return tmp_path


def kinds(section: Section | dict[str, Any]) -> list[tuple[str, str]]:
    """(kind, last part of the path) of each finding, in a fixed order."""
    found = section.findings if isinstance(section, Section) else [_finding(f) for f in section["findings"]]
    return sorted((f.kind, Path(f.where).name) for f in found)


def _finding(values: dict[str, Any]) -> Any:
    return type("Finding", (), values)


def test_every_trouble_is_found_and_told_with_its_cure(mixed: Path, tmp_path: Path) -> None:
    report = tmp_path / "report"
    options = ["--records", mixed / "records.json", "--images", mixed / "images", "--report", report]
    done = llava("data", "check", *options, "--processes", 2)
    assert done.returncode == 3
    assert "6 things stand in the way" in done.stderr
    assert (report / "report.txt").read_text() == done.stdout
    records, pictures = json.loads((report / "report.json").read_text())["sections"]
    assert records["numbers"] == {"records": 11, "about a picture": 9, "text alone": 1, "turns": 9}
    assert [f["what"] for f in records["findings"]] == ["record 10 (id 'bad') has no list of conversations"]
    assert kinds(pictures) == [
        ("missing folder", "VG_100K_2"),
        ("missing picture", "0.jpg"),
        ("missing picture", "x.jpg"),
        ("other content", "2.jpg"),
        ("unreadable picture", "5.jpg"),
        ("wrong suffix", "it's.jpg"),
    ]
    assert (pictures["numbers"]["pictures"], pictures["numbers"]["opened"]) == (8, 3)
    cures = {finding["kind"]: finding["cure"] for finding in pictures["findings"]}
    assert cures["missing folder"] == f"unzip {mixed}/images/vg/images2.zip -d {mixed}/images/vg"
    assert "data.max_bad_images" in cures["wrong suffix"], "some of OCR-VQA's pictures are gone for good"
    assert pictures["numbers"]["records by folder"]["gqa/images"] == 3

    subprocess.run(["sh", report / "cure.sh"], check=True)
    assert llava("data", "check", *options).returncode == 3
    again = json.loads((report / "report.json").read_text())["sections"][1]
    assert ("other content", "it's.jpg") in kinds(again), "the link can be opened"
    assert "wrong suffix" not in {kind for kind, _ in kinds(again)}
    assert not (report / "cure.sh").exists()


def test_pictures_that_training_skips_do_not_stand_in_the_way(mixed: Path) -> None:
    def grave(may_miss: int) -> set[str]:
        source = Training("x", mixed / "records.json", mixed / "images", may_miss=may_miss)
        _, pictures = check_training(source, 1, Bar)
        assert pictures.numbers["bad pictures"].startswith(f"4; data.max_bad_images is {may_miss}")
        return {finding.kind for finding in pictures.findings if finding.grave}

    assert grave(4) == {"missing folder"}
    assert grave(3) == {"missing folder", "missing picture", "unreadable picture", "wrong suffix"}


def test_what_the_check_refuses_is_what_training_refuses(tmp_path: Path, tiny_vision: Path) -> None:
    for mode, form, name in (
        ("RGB", "JPEG", "a.jpg"), ("CMYK", "JPEG", "b.jpg"), ("L", "JPEG", "c.jpg"), ("P", "PNG", "d.png"),
        ("RGBA", "PNG", "e.png"), ("I;16", "PNG", "f.png"), ("1", "PNG", "g.png"), ("RGBA", "WEBP", "h.webp"),
        ("P", "GIF", "i.gif"), ("RGB", "BMP", "j.bmp"), ("RGB", "TIFF", "k.tif"),
    ):  # fmt: skip
        if mode == "I;16":
            Image.new("I;16", (60, 40), 7).save(tmp_path / name, form)
            continue
        data = picture(tmp_path / name, form, mode).read_bytes()
        for share in (2, 3, 20):
            (tmp_path / f"cut{share}-{name}").write_bytes(data[: len(data) * (share - 1) // share])
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "page.jpg").write_text("<html>404</html>")
    (tmp_path / "folder.jpg").mkdir()
    names = [*sorted(path.name for path in tmp_path.iterdir()), "nowhere.jpg"]
    reader = Pictures(tmp_path, load_processor(str(tiny_vision)), "pad")
    refused = {name for name in names if isinstance(reader.read(name), BadPicture)}
    looked = look_at(str(tmp_path), [(name, None) for name in names])
    assert {trouble.name for trouble in looked.troubles if trouble.kind != "suffix"} == refused
    assert looked.opened == len(names) - len(refused)
    assert {"cut2-a.jpg", "empty.jpg", "page.jpg", "folder.jpg", "nowhere.jpg"} <= refused < set(names)


def test_one_process_or_three_find_the_same(mixed: Path) -> None:
    names = [(f"gqa/images/{n % 7}.jpg", None) for n in range(500)]
    told: list[int] = []
    one = look_at(str(mixed / "images"), names)
    three = look_at_all(str(mixed / "images"), names, 3, told.append)
    assert sum(told) == 500
    assert (one.opened, one.read_bytes) == (three.opened, three.read_bytes)
    assert sorted(map(str, one.troubles)) == sorted(map(str, three.troubles))


def test_a_killed_process_is_told(mixed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from llava.data.check import pictures

    monkeypatch.setattr(pictures, "look_at", _die)
    with pytest.raises(DataError, match=r"was killed, somewhere behind one of gqa/images/4.jpg"):
        look_at_all(str(mixed / "images"), [("gqa/images/4.jpg", None)], 1, lambda more: None)


def _die(folder: str, wanted: object) -> None:
    import os
    import signal

    os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture(scope="module")
def bases(tiny_language: Path, tiny_vision: Path, tiny_records: Path) -> Bases:
    return Bases(tiny_language, tiny_vision, tiny_records)


def test_lengths_are_those_of_training(bases: Bases, tmp_path: Path) -> None:
    records = json.loads((bases.data / "records.json").read_text())
    records += [asks(None, "a", "q" * 3000), asks(None, "q" * 3000, "a"), {"id": "s", "conversations": []}]
    (tmp_path / "records.json").write_text(json.dumps(records))
    job = make_job(bases, tmp_path / "run", records=str(tmp_path / "records.json"), max_steps=1)
    run = train_here(job)
    (source,) = find(str(write_config(job)))
    assert isinstance(source, Training)
    records_section, _, lengths = check_training(source, 2, Bar)
    assert records_section.grave == 0
    assert lengths.title == "train: tokens by template vicuna, cut after 1,472"
    index = json.loads(next((run.root / "cache").glob("index-*/index.json")).read_text())
    numbers = lengths.numbers
    assert (numbers["samples"], numbers["dropped"], numbers["truncated"]) == (25, 2, 1)
    assert index["samples"] == 25
    listed = [(line["fate"], line["record"]) for line in read_lines(run.left_out)]
    assert [(f.kind, f.where.removeprefix(f"{source.records}: ")) for f in lengths.findings] == listed
    assert numbers["tokens of a conversation"]["100 % have at most"] > 3000


def test_text_alone_may_be_longer(bases: Bases, tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text(json.dumps([asks("a.jpg", "q" * 60), asks(None, "q" * 60), asks(None, "q" * 99)]))
    source = Training("x", tmp_path / "r.json", tmp_path, bases.language, "vicuna", (50, 90))
    *_, lengths = check_training(source, 1, Bar)
    assert lengths.title.endswith("cut after 50 or 90")
    assert [f.where.split(": ")[1] for f in lengths.findings] == ["record 0 (id 'a.jpg')", "record 2 (id 'text')"]


def test_a_missing_tokenizer_is_a_finding(bases: Bases, tmp_path: Path) -> None:
    source = Training("x", bases.data / "records.json", bases.data / "images", tmp_path / "none", "vicuna")
    *_, lengths = check_training(source, 1, Bar)
    assert kinds(lengths) == [("tokens", "none")]


def test_known_records_must_be_complete(tmp_path: Path) -> None:
    (tmp_path / "llava_v1_5_mix665k.json").write_text(json.dumps([asks(None)]))
    source = Training("x", tmp_path / "llava_v1_5_mix665k.json", tmp_path / "images")
    (section,) = check_training(source, 1, Bar)
    assert section.findings[0].what == "1 records; the published file has 665,298"


def test_the_layout_is_looked_at_without_the_records(tmp_path: Path) -> None:
    (tmp_path / "images/coco/train2017").mkdir(parents=True)
    source = Training("x", tmp_path / "llava_v1_5_mix665k.json", tmp_path / "images")
    records, pictures = check_training(source, 1, Bar)
    assert records.findings[0].cure.startswith("hf download liuhaotian/LLaVA-Instruct-150K")
    assert [Path(f.where).relative_to(tmp_path / "images").as_posix() for f in pictures.findings] == [
        "gqa/images", "ocr_vqa/images", "textvqa/train_images", "vg/VG_100K", "vg/VG_100K_2"
    ]  # fmt: skip
    source = Training("x", tmp_path / "blip_laion_cc_sbu_558k.json", tmp_path / "nowhere")
    _, pictures = check_training(source, 1, Bar)
    assert kinds(pictures) == [("missing folder", "nowhere")]


def test_folders_and_their_cures(tmp_path: Path) -> None:
    assert folder_of("vg/VG_100K_2/1.jpg") == "vg/VG_100K_2"
    assert (folder_of("00453/004539375.jpg"), folder_of("1.jpg")) == ("00453", "")
    assert "train2017.zip" in cure_of_folder(tmp_path, "coco/train2017")
    (tmp_path / "images.zip").touch()
    assert cure_of_folder(tmp_path / "images", "00453") == f"unzip {tmp_path}/images.zip -d {tmp_path}/images"


def test_published_numbers() -> None:
    assert {name: records.count for name, records in known.RECORDS.items()} == {
        "blip_laion_cc_sbu_558k.json": 558_128, "llava_v1_5_mix665k.json": 665_298
    }  # fmt: skip
    files = {name: (tsv.md5[:8], tsv.rows, tsv.questions) for name, tsv in known.TSV.items() if tsv.rows}
    assert files == {
        "MMBench_DEV_EN": ("b6caf113", 4329, 1164), "MMBench_TEST_EN": ("6939fadb", 6666, 1784),
        "MMBench_DEV_CN": ("08b8fc33", 4329, 1164), "MMBench_TEST_CN": ("7e1239ba", 6666, 1784),
        "CCBench": ("f5dde47f", 2040, 510),
    }  # fmt: skip
    assert all(len(tsv.md5) == 32 for tsv in known.TSV.values())
    assert list(known.REFCOCO.values()) == [10834, 5657, 5095, 10758, 5726, 4889, 4896, 9602]


def check_tsv(path: Path) -> Section:
    (section,) = check_benchmark(Benchmark("x", path), 1, Bar)
    return section


def test_a_tsv_is_read_and_its_checksum_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_tsv(tmp_path / "MMBench_DEV_EN.tsv", some_rows(4))
    section = check_tsv(path)
    assert (section.numbers["rows"], section.numbers["questions"]) == (11, 4)
    assert kinds(section) == [("checksum", path.name), ("wrong rows", path.name)]
    assert section.findings[0].cure.endswith("/VLMEval/MMBench_DEV_EN.tsv again")
    md5 = str(section.numbers["md5"])
    monkeypatch.setitem(known.TSV, "MMBench_DEV_EN", known.Tsv(md5, 11, 4))
    assert check_tsv(path).findings == []
    assert check_tsv(path).numbers["md5"] == f"{md5}, as published"
    rows = some_rows(4)
    assert check_tsv(write_tsv(tmp_path / "mine.tsv", rows[1:])).findings[0].kind == "wrong rows"
    rows[0]["image"] = rows[0]["image"][: len(rows[0]["image"]) // 8 * 4]
    assert kinds(check_tsv(write_tsv(tmp_path / "mine.tsv", rows))) == [("unreadable picture", "mine.tsv: row 0")]
    assert kinds(check_tsv(tmp_path / "CCBench.tsv")) == [("missing file", "CCBench.tsv")]


def expression(img_id: str, box: object = (5, 5, 20, 20), **more: Any) -> dict[str, Any]:
    return {"img_id": img_id, "sents": "the left one", "bbox": box, "height": 40, "width": 60, **more}


def test_refcoco(tmp_path: Path) -> None:
    images = tmp_path / "images"
    picture(images / "coco/train2017/000000000007.jpg")
    picture(images / "coco/train2017/COCO_train2014_000000000008.jpg")
    rows: list[Any] = [
        expression("COCO_train2014_000000000007_1"),
        expression("COCO_train2014_000000000008_16", [0, 0, 60.4, 40]),
        expression("COCO_train2014_000000000007_2", [50, 5, 20, 20]),
        expression("COCO_train2014_000000000007_3", None),
        expression("COCO_train2014_000000000008_4", width=61),
        expression("COCO_train2014_000000000009_4"),
        {**expression(""), "image": "coco/train2017/000000000007.jpg"},
        {"img_id": "7", "bbox": []},
    ]
    (tmp_path / "ann/refcoco").mkdir(parents=True)
    (tmp_path / "ann/refcoco/refcoco_val.json").write_text(json.dumps(rows))
    (source,) = find(str(tmp_path / "ann"), images=str(images))
    assert isinstance(source, Benchmark)
    (section,) = check_benchmark(source, 1, Bar)
    whats = {(f.kind, f.what) for f in section.findings if f.kind not in ("missing file", "missing picture")}
    assert whats == {
        ("wrong rows", "8 rows, published are 10,834"),
        ("wrong rows", "bbox [50, 5, 20, 20] leaves the picture of 60 x 40"),
        ("wrong rows", "bbox None in 60 x 40 is not four numbers in two"),
        ("wrong rows", "lacks sents, height, width"),
        ("wrong size", "is 60 x 40, not as annotated"),
    }
    assert [f.where for f in section.findings if f.kind == "missing picture"] == [f"{images}/000000000009.jpg"]
    assert sum(f.kind == "missing file" for f in section.findings) == 7
    assert section.numbers["opened"] == 3
    assert picture_name("581857", images) == "000000581857.jpg"


def test_sources_of_a_recipe_a_plan_and_a_run(bases: Bases, tmp_path: Path) -> None:
    job = make_job(bases, tmp_path / "stages/pretrain")
    config = yaml.safe_load(write_config(job).read_text())
    (source,) = find(str(tmp_path))
    assert (source.title, source.images) == ("pretrain", bases.data / "images")
    plan = tmp_path / "plan.yaml"
    plan.write_text(yaml.safe_dump({"format": 2, "configs": {"a": config, "b": config}}))
    assert find(str(plan)) == [source, source]
    values = {"data.records": bases.data / "records.json", "model.language.path": bases.language}
    sets = [word for key, value in values.items() for word in ("--set", f"{key}={value}")]
    (recipe,) = find("pretrain", sets)
    assert recipe == Training(
        "train", bases.data / "records.json", Path.home() / "llavajob/data/LLaVA-Pretrain/images", bases.language,
        "vicuna", (1472, 1472), 100
    )  # fmt: skip
    mine = tmp_path / "mine.yaml"
    mine.write_text("base: pretrain\ndata: {max_length: 99, max_length_text_only: 2048}\n")
    (recipe,) = find(str(mine), sets)
    assert isinstance(recipe, Training)
    assert recipe.max_length == (99, 2048)
    assert by_hand("r.json", "i", None, None, 5) == [Training("r", Path("r.json"), Path("i"), None, "vicuna", (5, 5))]


def test_a_rendered_plan_comes_through_a_pipe(bases: Bases, tmp_path: Path) -> None:
    config = yaml.safe_load(write_config(make_job(bases, tmp_path)).read_text())
    plan = yaml.safe_dump({"configs": {"a": config}})
    done = llava("data", "check", "-", "--report", tmp_path / "report", given=plan)
    assert done.returncode == 0, done.stderr
    assert "  opened: 18\n" in done.stdout
    assert "  text alone: 6\n" in done.stdout
    assert "!" not in done.stdout


def test_a_bar_on_a_terminal_and_ctrl_c(tmp_path: Path) -> None:
    picture(tmp_path / "a.jpg")
    for number in range(20_000):
        (tmp_path / f"{number}.jpg").symlink_to("a.jpg")
    (tmp_path / "r.json").write_text(json.dumps([asks(f"{number}.jpg") for number in range(20_000)]))
    options = ["--records", str(tmp_path / "r.json"), "--images", str(tmp_path), "--processes", "1"]
    with Terminal([sys.executable, "-m", "llava", "data", "check", *options]) as terminal:
        terminal.until("/20000")
        terminal.until("/min")
        terminal.type("\x03")
        assert terminal.end() == 130


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to check is named"),
        (["--records", "r.json"], "nothing to check is named"),
        (["--records", "r.json", "--images", "i", "--template", "vicunna"], "template 'vicunna' is none of vicuna"),
        (["finetune", "--records", "r.json"], "give RECIPE or --records, not both"),
        (["nosuch"], "nosuch is neither a file nor a recipe"),
        (["-"], "standard input holds no config"),
        (["."], ". is neither a file nor a recipe"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_requests(arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = llava("data", "check", *arguments, given="#!/bin/bash\n")
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_recipe_that_reads_nothing(tmp_path: Path) -> None:
    (tmp_path / "toy.yaml").write_text(
        yaml.safe_dump({"kind": "toy", "run_dir": str(tmp_path), "toy": {"data": "d", "bases": "b"}})
    )
    with pytest.raises(ConfigError, match=r"nothing in .*toy\.yaml reads data"):
        find(str(tmp_path / "toy.yaml"))
