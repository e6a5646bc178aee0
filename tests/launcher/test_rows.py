"""The zoo: every row's numbers against the published recipes, and rows as something that can be named and submitted."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from launcher.errors import RequestError
from launcher.names import is_name
from launcher.planning import accumulation
from launcher.recipe import Override, load
from launcher.recipe_text import WIDTH, recipe_rows, recipes_text
from launcher.runs import Prepared, prepare
from launcher.shipped import common_stages, find_shipped, known_names, recipe_names, row_names
from launcher.store import new_name
from tests.shell import Shell

LCS, MIX = 558_128, 665_298
"""Records of LLaVA-Pretrain and of the 665K mix."""


class Row(NamedTuple):
    """One stage of a row as its source says it."""

    language: str
    """Folder, tuning and quantisation of the language model."""
    vision: str
    """Tuning of the tower: frozen, full, or lora rank/alpha."""
    template: str
    rate: float
    batch: tuple[int, int]
    """Samples per GPU and accumulation on 8 GPUs."""
    updates: int | None
    """Of one GPU node; None: the number of records is not published."""
    strategy: str = "zero2"
    lengths: tuple[int, int | None] = (1472, None)
    """With a picture; without one where that differs."""
    save: int = 500
    epochs: float = 1
    rules: str = "xtuner"
    projector_rate: float | None = None


VICUNA, VICUNA_13B = "vicuna-7b-v1.5", "vicuna-13b-v1.5"
QLORA, FULL, FROZEN = "lora 512/256 nf4", "full none", "frozen none"
TOWER = "lora 64/16"
OFFICIAL_LENGTHS = (2048 - 576 + 1, 2048)
"""LLaVA cuts at 2048 after the picture's 576 features have taken the place of one token."""
_PRE = {"rate": 1e-3, "vision": "frozen", "batch": (32, 1), "updates": 2181}
_QLORA = {"rate": 2e-4, "vision": TOWER, "batch": (16, 1), "updates": 5198}
_FULL = {"rate": 2e-5, "vision": "frozen", "batch": (16, 1), "updates": 5198}
_PHI = f"Phi-3-mini-4k-instruct {FULL}"


def _row(language: str, template: str, stage: dict[str, Any], **changes: Any) -> Row:
    return Row(**{"language": language, "template": template, **stage, **changes})


# XTuner v0.1.23: constants of all configs, stage 1 and stage 2 tables; LLaVA: scripts/v1_5/*.sh.
EXPECTED = {
    "pretrain": _row(f"{VICUNA} frozen nf4", "vicuna", _PRE),
    "finetune": _row(f"{VICUNA} {QLORA}", "vicuna", _QLORA),
    "llava-v1.5-13b/pretrain": _row(f"{VICUNA_13B} frozen nf4", "vicuna", _PRE),
    "llava-v1.5-13b/finetune": _row(f"{VICUNA_13B} {QLORA}", "vicuna", _QLORA),
    "internlm-7b/pretrain": _row("internlm-chat-7b frozen nf4", "internlm_chat", _PRE),
    "internlm-7b/finetune": _row(f"internlm-chat-7b {QLORA}", "internlm_chat", _QLORA),
    "internlm2-7b/pretrain": _row("internlm2-chat-7b frozen nf4", "internlm2_chat", _PRE),
    "internlm2-7b/finetune": _row(f"internlm2-chat-7b {QLORA}", "internlm2_chat", _QLORA),
    "internlm2-20b/pretrain": _row("internlm2-chat-20b frozen nf4", "internlm2_chat", _PRE),
    "internlm2-20b/finetune": _row(f"internlm2-chat-20b {QLORA}", "internlm2_chat", _QLORA, batch=(8, 2)),
    "aligned-7b/pretrain": _row(f"{VICUNA} {FROZEN}", "vicuna", _PRE),
    "aligned-7b/finetune": _row(f"{VICUNA} {FULL}", "vicuna", _FULL),
    "official-7b/pretrain": _row(
        f"{VICUNA} {FROZEN}", "plain", _PRE, lengths=OFFICIAL_LENGTHS, save=24000, rules="llava"
    ),
    "official-7b/finetune": _row(
        f"{VICUNA} {FULL}",
        "llava_v1",
        _FULL,
        lengths=OFFICIAL_LENGTHS,
        strategy="zero3",
        save=50000,
        rules="llava",
    ),
    "official-7b-lora/pretrain": _row(
        f"{VICUNA} {FROZEN}", "plain", _PRE, lengths=OFFICIAL_LENGTHS, save=24000, rules="llava"
    ),
    "official-7b-lora/finetune": _row(
        f"{VICUNA} lora 128/256 none",
        "llava_v1",
        _FULL,
        rate=2e-4,
        projector_rate=2e-5,
        lengths=OFFICIAL_LENGTHS,
        strategy="zero3",
        save=50000,
        rules="llava",
    ),
    "llama-3-8b/pretrain": _row(f"Meta-Llama-3-8B-Instruct {FROZEN}", "llama3_chat", _PRE),
    "llama-3-8b/finetune": _row(
        f"Meta-Llama-3-8B-Instruct {FULL}", "llama3_chat", _FULL, vision=TOWER, batch=(8, 2), save=1000
    ),
    # Pretrained on ShareGPT4V, finetuned twice over InternVL-SFT; 4096 less 576 places.
    "phi-3-mini/pretrain": _row(
        f"Phi-3-mini-4k-instruct {FROZEN}",
        "phi3_chat",
        _PRE,
        batch=(16, 2),
        lengths=(3520, None),
        save=1000,
        updates=None,
    ),
    "phi-3-mini/finetune": _row(
        _PHI,
        "phi3_chat",
        _FULL,
        vision="full",
        batch=(8, 2),
        lengths=(3520, None),
        save=5000,
        epochs=2,
        updates=None,
    ),
    "phi-3-mini-665k/pretrain": _row(f"Phi-3-mini-4k-instruct {FROZEN}", "phi3_chat", _PRE),
    "phi-3-mini-665k/finetune": _row(_PHI, "phi3_chat", _FULL, batch=(8, 2), save=1000),
    # This project's own.
    "qwen3-1.7b/pretrain": _row(f"Qwen3-1.7B {FROZEN}", "qwen_chat", _PRE),
    "qwen3-1.7b/finetune": _row(f"Qwen3-1.7B {FULL}", "qwen_chat", _FULL),
}
# XTuner v0.1.23, configs/llava/README.md: MMBench test EN, dev EN, test CN, dev CN, CCBench.
PUBLISHED = {
    "finetune": (67.7, 69.2, 61.0, 59.7, 28.4),
    "llava-v1.5-13b/finetune": (68.8, 69.5, 64.7, 63.1, 32.9),
    "internlm-7b/finetune": (69.0, 68.5, 66.7, 63.8, 37.3),
    "internlm2-7b/finetune": (73.3, 74.6, 71.7, 72.0, 42.5),
    "internlm2-20b/finetune": (75.1, 73.5, 73.7, 72.8, 46.3),
    "aligned-7b/finetune": (68.6, 68.0, 61.5, 61.4, 26.5),
    "official-7b/finetune": (65.2, 63.0, 57.3, 57.4, 25.2),
    "official-7b-lora/finetune": (None, 66.1, None, 58.9, None),  # LLaVA, docs/MODEL_ZOO.md
    "llama-3-8b/finetune": (68.9, None, 61.6, None, None),
    "phi-3-mini/finetune": (69.2, None, None, None, None),
}
BENCHMARKS = ("mmbench_test_en", "mmbench_dev_en", "mmbench_test_cn", "mmbench_dev_cn", "ccbench")


def _prepared(name: str, **changes: object) -> Prepared:
    overrides = [Override(tuple(key.split("__")), str(value), "--set") for key, value in changes.items()]
    return prepare(name, None, "x", overrides)


def _tuning(part: dict[str, Any]) -> str:
    lora = part["lora"]
    return part["tuning"] + (f" {lora['rank']}/{lora['alpha']}" if part["tuning"] == "lora" else "")


def _updates(said: str) -> int | None:
    return int(said.split(" steps")[0].replace(",", "")) if " steps (" in said else None


def test_the_table_names_every_recipe_that_trains() -> None:
    assert set(EXPECTED) == {row["name"] for row in recipe_rows() if row["kind"] == "train"}


@pytest.mark.parametrize("name", EXPECTED)
def test_a_stage_carries_its_sources_numbers(name: str) -> None:
    from launcher.explain import stage_lines

    prepared = _prepared(name)
    (config,) = prepared.plan.configs.values()
    (stage,) = prepared.stages
    model, data, train, row = config["model"], config["data"], config["train"], EXPECTED[name]
    language = model["language"]
    seen = Row(
        language=f"{Path(language['path']).name} {_tuning(language)} {language['quantize']}",
        vision=_tuning(model["vision"]),
        template=model["template"],
        rate=train["learning_rate"],
        batch=(train["device_batch"], accumulation(stage)),
        updates=_updates(stage_lines(stage)[2]),
        strategy=train["strategy"],
        lengths=(data["max_length"], data["max_length_text_only"]),
        save=train["save_every_steps"],
        epochs=train["epochs"],
        rules=train["rules"],
        projector_rate=model["projector"]["learning_rate"],
    )
    assert seen == row

    # What is the same in all of them.
    first = name.endswith("pretrain")
    assert train["global_batch"] == (256 if first else 128) == 8 * row.batch[0] * row.batch[1]
    assert (train["warmup_ratio"], train["betas"], train["weight_decay"], train["clip_norm"]) == (
        0.03,
        [0.9, 0.999],
        0,
        1,
    )
    assert train["group_by_length"] is not first
    assert data["square"] == ("pad" if not first or "qwen3" in name else "crop")
    assert (data["workers"], train["keep_last"], train["gradient_checkpointing"]) == (4, 2, True)
    assert (model["vision"]["layer"], model["projector"]["tuning"]) == (-2, "full")
    assert language["lora"]["dropout"] == model["vision"]["lora"]["dropout"] == 0.05
    assert (model["projector"]["path"] is None) == first
    assert config["seed"] == (1024 if name.startswith(("llama", "phi")) else 0)
    tower = "siglip2-so400m-patch16-384" if "qwen3" in name else "clip-vit-large-patch14-336"
    assert Path(model["vision"]["path"]).name == tower
    assert stage.tree.values["resources"] | {"threads_per_process": None} == {
        "nodes": 1,
        "gpus_per_node": 8,
        "processes_per_node": 1,
        "threads_per_process": None,
    }
    if row.updates:
        records = LCS if first else MIX
        assert stage.tree.values["records"] == records and row.updates == -(-records // train["global_batch"])


@pytest.mark.parametrize("name", EXPECTED)
def test_two_nodes_do_the_work_of_one(name: str) -> None:
    from launcher.explain import stage_lines

    (one,), (two,) = _prepared(name).stages, _prepared(name, resources__nodes=2).stages
    before, after = one.tree.values["train"], two.tree.values["train"]
    assert after["device_batch"] * accumulation(two) * 16 == before["global_batch"] == after["global_batch"]
    assert after["device_batch"] == min(before["device_batch"], before["global_batch"] // 16)
    assert stage_lines(one)[2] == stage_lines(two)[2], "as many updates"
    assert {k: v for k, v in before.items() if k != "device_batch"} == {
        k: v for k, v in after.items() if k != "device_batch"
    }


@pytest.mark.parametrize("name", [name for name in EXPECTED if name.endswith("finetune")])
def test_published_scores_stand_with_the_row(name: str) -> None:
    expected = dict(zip(BENCHMARKS, PUBLISHED.get(name, ()), strict=bool(PUBLISHED.get(name))))
    scores = load(name).tree.get(("scores",)) or {}
    assert scores == {key: value for key, value in expected.items() if value is not None}


def test_a_rows_stages_find_each_other() -> None:
    for row in row_names():
        prefix = "" if row == row_names()[0] else f"{row}/"
        finetune, convert, score = (load(f"{row}/{stage}") for stage in ("finetune", "convert", "mmbench"))
        assert [r.name for r in (finetune, convert, score)] == [
            f"{prefix}{s}" for s in ("finetune", "convert", "mmbench")
        ]
        assert finetune.tree.get(("model", "projector", "path")) == f"${{latest:{prefix}pretrain}}/model"
        assert convert.tree.get(("convert", "source")) == f"${{latest:{prefix}finetune}}/model"
        assert score.tree.get(("eval", "model")) == f"${{latest:{prefix}convert}}/hf"
        assert f"llavajob submit {prefix}finetune," in convert.tree.get(("needs", "convert.source"))


@pytest.mark.parametrize("row", row_names())
def test_a_rows_name_is_its_whole_pipeline(row: str) -> None:
    prepared = _prepared(row)
    folder = prepared.folder.root / "stages"
    pretrain, finetune, convert, score = prepared.plan.configs.values()
    prefix = "" if row == row_names()[0] else f"{row}/"
    for stage, config in (("pretrain", pretrain), ("finetune", finetune)):
        (alone,) = _prepared(prefix + stage).plan.configs.values()
        config["model"]["projector"]["path"] = alone["model"]["projector"]["path"] = None
        assert {**config, "run_dir": ""} == {**alone, "run_dir": ""}, stage
    again = _prepared(row).plan.configs.values()
    assert [c["model"]["projector"]["path"] for c in again if c["kind"] == "train"] == [
        None,
        str(folder / "pretrain/model"),
    ]
    assert convert["convert"]["source"] == str(folder / "finetune/model")
    assert convert["convert"]["output"] == score["eval"]["model"] == str(folder / "convert/hf")
    assert [step.name for step in prepared.plan.steps] == [
        "pretrain",
        "finetune",
        "convert",
        "mmbench",
        "mmbench-merge",
    ]


def test_the_first_row_goes_by_two_names() -> None:
    assert find_shipped("llava-v1.5-7b/finetune") == find_shipped("finetune")
    assert find_shipped("llava-v1.5-7b") == find_shipped("pipeline")
    assert find_shipped("internlm2-7b/quickstart") is find_shipped("nowhere/convert") is None
    assert find_shipped("internlm2-7b/pipeline") == find_shipped("internlm2-7b")
    assert {"convert", "mmbench", "pipeline"} <= set(common_stages()) and "quickstart" not in common_stages()


def test_a_recipe_of_ones_own_belongs_to_the_row_that_it_extends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("first.yaml").write_text("kind: train\nbase: internlm2-7b/finetune\ntrain: {epochs: 2}\n")
    Path("second.yaml").write_text('base: first\nenvironment: {BEFORE: "${recipe:./pretrain}"}\n')
    tree = load("./second.yaml").tree
    assert tree.get(("model", "projector", "path")) == "${latest:internlm2-7b/pretrain}/model"
    assert tree.get(("environment", "BEFORE")) == "internlm2-7b/pretrain"
    assert load("./second.yaml").name == "second"
    stages = "kind: pipeline\nstages:\n  a: {base: ./first}\n  b: {base: official-7b/finetune}\n"
    Path("both.yaml").write_text(stages)
    listed = load("./both.yaml").tree.values["stages"]
    assert [listed[name]["model"]["projector"]["path"] for name in "ab"] == [
        "${latest:internlm2-7b/pretrain}/model",
        "${latest:official-7b/pretrain}/model",
    ]


@pytest.mark.parametrize(
    ("reference", "meant"),
    [
        ("internlm-2-7b/finetun", "internlm2-7b/finetune"),
        ("internlm2-7b/mmbensh", "internlm2-7b/mmbench"),
        ("llava-1.5-13b", "llava-v1.5-13b"),
        ("finetoon", "finetune"),
    ],
)
def test_names_that_are_nearly_right(reference: str, meant: str) -> None:
    with pytest.raises(RequestError) as caught:
        load(reference)
    assert caught.value.message == f"no recipe named '{reference}'; did you mean '{meant}'?"
    assert "internlm2-20b" in caught.value.hint and "quickstart" in caught.value.hint


def test_runs_of_every_recipe_bear_legal_names() -> None:
    for name in known_names():
        run = new_name(load(name).name)
        assert is_name(run) and len(run) <= 50, run
    assert new_name("internlm2-7b/finetune").startswith("internlm2-7b-finetune-")


def test_a_row_is_submitted_and_its_run_is_found_by_the_next_stage(shell: Shell) -> None:
    missing = shell("submit", "internlm2-7b/finetune", "--nodes", "2", check=2).err
    assert "internlm2-7b/finetune cannot start yet" in missing and "llavajob submit internlm2-7b/pretrain" in missing
    parts = [shell.folder / name for name in ("lm", "vit", "images")]
    for part in parts:
        part.mkdir()
    (shell.folder / "r.json").write_text('[{"conversations": []}]')
    keys = ("model.language.path", "model.vision.path", "data.images", "data.records")
    here = [f"{key}={path}" for key, path in zip(keys, (*parts, shell.folder / "r.json"), strict=True)]
    standin = Path(__file__).parent / "standin"
    here += [f"environment.PYTHONPATH={standin}", "train.max_steps=2", "train.global_batch=2"]
    options = ["--gpus-per-node", "0", *(word for text in here for word in ("--set", text))]
    run = shell("submit", "internlm2-7b/pretrain", *options, "--follow", "--json")
    name = next(path.name for path in shell.runs.iterdir())
    assert run.code == 0 and name.startswith("internlm2-7b-pretrain-")
    assert shell.status(name)["recipe"] == "internlm2-7b/pretrain"
    out = yaml.safe_load(shell("submit", "internlm2-7b/finetune", *options, "--dry-run").out)
    config = next(iter(out["configs"].values()))
    assert config["model"]["projector"]["path"] == str(shell.runs / name / "model")
    other = shell("submit", "internlm-7b/finetune", *options, "--dry-run").err
    assert "<no finished run of internlm-7b/pretrain>/model" in other


def test_the_list_shows_the_zoo_within_a_page(shell: Shell) -> None:
    text = shell("recipes").out
    assert max(map(len, text.splitlines())) <= WIDTH
    line = next(line for line in text.splitlines() if line.startswith("internlm2-7b/finetune"))
    assert " ".join(line.split()[1:]) == (
        "8 x A100 80 GB 73.3 74.6 71.7 72.0 42.5 LLaVA-InternLM2-7B: QLoRA, tower LoRA"
    )
    zoo = text.split("\n\n")[0]
    assert "..." not in zoo and all(name in zoo for name in EXPECTED)
    rows = {row["name"]: row for row in shell("recipes", "--json").json}
    assert rows.keys() == set(recipe_names())
    assert rows["finetune"]["row"] == "llava-v1.5-7b" and rows["finetune"]["scores"]["mmbench_dev_en"] == 69.2
    assert rows["internlm2-20b/finetune"]["row"] == "internlm2-20b"
    assert rows["convert"]["every_row"] and not rows["quickstart"]["every_row"] and rows["convert"]["row"] is None
    explained = shell("recipes", "internlm2-7b/mmbench").out
    assert "${latest:internlm2-7b/convert}/hf" in explained


def test_a_long_description_is_cut_to_the_page() -> None:
    rows = recipe_rows()
    rows[-1]["description"] = "word " * 60
    assert max(map(len, recipes_text(rows).splitlines())) <= WIDTH
