"""Recipes: bases, references, overrides, origins, and mistakes with file and line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from launcher.errors import Problem, RecipeError
from launcher.plan import Plan
from launcher.recipe import Override, load
from launcher.references import Names, resolve
from launcher.runs import prepare
from launcher.shipped import recipe_names
from launcher.tree import Tree, read_tree
from tests.shell import Shell

Write = Callable[..., str]
MINIMAL = """\
kind: train
model:
  language: {path: lm}
  vision: {path: vit}
data: {records: r.json, images: i}
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _plan(text: str, here: Path, *overrides: str) -> Plan:
    (here / "r.yaml").write_text(text)
    given = [Override(tuple(o.split("=")[0].split(".")), o.split("=")[1], "--set") for o in overrides]
    return prepare("./r.yaml", None, "r", given).plan


def _config(text: str, here: Path, *overrides: str) -> dict[str, object]:
    return next(iter(_plan(text, here, *overrides).configs.values()))


def _problems(text: str, here: Path, *overrides: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        _plan(text, here, *overrides)
    return [f"{p.where}: {p.message}" for p in caught.value.problems]


def test_defaults_are_filled_in_and_paths_made_absolute(here: Path) -> None:
    config = _config(MINIMAL, here)
    assert config["train"]["global_batch"] == 128  # type: ignore[index]
    assert config["data"]["records"] == str(here / "r.json")  # type: ignore[index]
    assert config["run_dir"] == str(here / "runs/r")
    assert "resources" not in config and "retries" not in config


def test_all_problems_come_at_once_with_file_and_line(here: Path) -> None:
    text = "kind: train\nmodle: {}\ntrain:\n  learning_rate: fast\n  epochs: 0\n  strategy: zero4\ndata: {records: 3}\n"
    found = _problems(text, here)
    assert "./r.yaml:2: unknown key 'modle'; did you mean 'model'?" in found
    assert './r.yaml:4: train.learning_rate is "fast"; a number above 0 is needed' in found
    assert "./r.yaml:5: train.epochs is 0; a number above 0 is needed" in found
    assert any(line.startswith('./r.yaml:6: train.strategy is "zero4"; one of ddp, zero2, zero3') for line in found)
    assert any(line.startswith("./r.yaml:7: data.records is 3; text is needed") for line in found)
    assert any("'model' is missing" in line for line in found)
    assert any("'data.images' is missing" in line for line in found)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("kind: train\n  bad: [", "not valid YAML"),
        ("- a list", "a mapping of keys is needed"),
        ("kind: trian", "did you mean 'train'"),
        ("model: {}", "kind is missing"),
        ("kind: train\nkind: eval", "a second time"),
        ("kind: train\nbase: finetoon", "did you mean 'finetune'"),
        ("kind: train\nbase: ./r", "base goes round in a circle"),
    ],
)
def test_broken_files_are_explained(here: Path, text: str, said: str) -> None:
    assert any(said in line for line in _problems(text, here))


def test_base_is_extended_and_keeps_its_origins(here: Path) -> None:
    (here / "below.yaml").write_text(MINIMAL + "train: {epochs: 3, learning_rate: 1e-3}\n")
    (here / "r.yaml").write_text("kind: train\nbase: below\ntrain:\n  epochs: 5\n")
    tree = load("./r.yaml").tree
    assert tree.get(("train",)) == {"epochs": 5, "learning_rate": "1e-3"}
    assert tree.origin(("train", "epochs")) == "./r.yaml:4"
    assert tree.origin(("train", "learning_rate")) == "below.yaml:6"


def test_numbers_that_yaml_takes_for_text_are_numbers(here: Path) -> None:
    config = _config(MINIMAL + "train: {learning_rate: 2e-4}\n", here)
    assert config["train"]["learning_rate"] == 2e-4  # type: ignore[index]


def test_set_is_typed_by_the_schema(here: Path) -> None:
    config = _config(MINIMAL, here, "train.max_steps=7", "train.betas=[0.8, 0.9]", "model.projector.path=3", "seed=4")
    assert config["train"]["max_steps"] == 7 and config["train"]["betas"] == [0.8, 0.9]  # type: ignore[index]
    assert config["model"]["projector"]["path"] == str(here / "3")  # type: ignore[index]
    assert config["seed"] == 4


def test_references(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHERE", "/data")
    text = MINIMAL.replace("r.json", '"${env:WHERE}/${paths.set}/r.json"').replace(
        "images: i", 'images: "${run.dir}/i"'
    )
    text += 'paths: {set: "${env:NOT_THERE:-mix}"}\nseed: 3\ntrain: {save_every_steps: "${seed}"}\n'
    config = _config(text, here)
    assert config["data"]["records"] == "/data/mix/r.json"  # type: ignore[index]
    assert config["data"]["images"] == str(here / "runs/r/i")  # type: ignore[index]
    assert config["train"]["save_every_steps"] == 3, "a whole reference keeps its type"  # type: ignore[index]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("${sed}", "refers to nothing; did you mean 'seed'?"),
        ("${env:NOT_THERE}", "NOT_THERE is not set"),
        ("${data.records}", "goes round in a circle"),
        ("${model}", "is a group of keys"),
    ],
)
def test_references_that_lead_nowhere_are_errors(here: Path, value: str, said: str) -> None:
    found = _problems(MINIMAL.replace("r.json", f'"{value}"'), here)
    assert len(found) == 1 and said in found[0] and found[0].startswith("./r.yaml:5: ")


def test_a_doubled_dollar_is_literal() -> None:
    tree, problems = Tree(), list[Problem]()
    tree.set(("a",), "$${HOME} ${b}", "x")
    tree.set(("b",), "c", "x")
    resolve(tree, Names(), problems)
    assert tree.values["a"] == "${HOME} c" and not problems


def test_a_batch_that_cannot_be_shared_names_ranks_that_can(here: Path) -> None:
    found = _problems(MINIMAL + "resources: {nodes: 3}\ntrain: {global_batch: 8}\n", here)
    assert found == [
        "./r.yaml:7: train.global_batch 8 cannot be shared by 3 ranks; ranks may be 1, 2, 4, or change the batch"
    ]


def test_the_device_batch_is_lowered_so_that_more_nodes_fit(here: Path) -> None:
    config = _config(MINIMAL + "train: {global_batch: 12, device_batch: 4}\n", here, "resources.nodes=2")
    assert config["train"]["device_batch"] == 3  # type: ignore[index]


def test_four_bit_weights_cannot_train(here: Path) -> None:
    text = MINIMAL.replace("{path: lm}", "{path: lm, quantize: nf4, tuning: full}")
    assert "4-bit weights take no updates" in _problems(text, here)[0]


@pytest.mark.parametrize("name", ["../escape", "a b", "x/y", "Score", "a.b", ""])
def test_stage_names_cannot_leave_the_runs_folder(here: Path, name: str) -> None:
    inner = "".join(f"    {line}\n" for line in MINIMAL.splitlines())
    found = _problems(f'kind: pipeline\nstages:\n  "{name}":\n{inner}', here)
    assert any("cannot be a stage's name" in line and line.startswith("./r.yaml:3: ") for line in found)


def test_a_stage_may_be_named_like_a_merge(shell: Shell, pipeline: Write) -> None:
    path = shell.folder / pipeline()
    path.write_text(path.read_text().replace("  merge:", "  my-merge:").replace("stages.merge.", "stages.my-merge."))
    shell("submit", path.name, "--name", "named", "--follow")
    status = shell.status("named")
    assert (status["state"], status["attempts"]) == ("SUCCEEDED", 3)


def test_lines_are_kept_through_nested_lists(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("a:\n  - b\n  - c: 1\n")
    tree = read_tree(path, "a.yaml")
    assert tree.origin(("a", "1", "c")) == "a.yaml:3"


def test_profile_values_lie_over_the_recipe_and_under_the_command_line(shell: Shell, recipe: Write) -> None:
    values = {"resources": {"nodes": 3}, "train": {"epochs": 9.0}, "eval": {"batch": 2}}
    profiles = {"default": "lab", "profiles": {"lab": {"backend": "local", "values": values}}}
    (shell.folder / "llavajob.yaml").write_text(yaml.safe_dump(profiles))
    name = recipe(train={"global_batch": 12, "device_batch": 1})
    out = yaml.safe_load(shell("submit", name, "--dry-run").out)
    assert out["steps"][0]["nodes"] == 3
    assert next(iter(out["configs"].values()))["train"]["epochs"] == 9
    assert yaml.safe_load(shell("submit", name, "--dry-run", "--nodes", "2").out)["steps"][0]["nodes"] == 2


def test_mistakes_in_profiles_are_named(shell: Shell, recipe: Write) -> None:
    text = "profiles:\n  lab:\n    backend: local\n    gpu: 3\n    values:\n      trian: {epochs: 1}\n"
    (shell.folder / "llavajob.yaml").write_text(text)
    said = shell("submit", recipe(), "--on", "lab", check=2).err
    assert "llavajob.yaml:4: unknown key 'gpu'; did you mean 'gpus'?" in said
    assert "llavajob.yaml:6: values: no recipe has a key 'trian.epochs'" in said


@pytest.mark.parametrize("name", recipe_names())
def test_every_shipped_recipe_renders(shell: Shell, name: str) -> None:
    done = shell("submit", name, "--dry-run", "--nodes", "2", "--name", "x")
    assert done.out == shell("render", name, "--nodes", "2", "--name", "x").out
    document = yaml.safe_load(done.out)
    assert document["run"] == "x" and document["steps"]
    head = Path(__file__).parents[2].joinpath("jobs", f"{name}.yaml").read_text().splitlines()[:3]
    assert head[0].startswith("# llavajob submit ") and head[2].startswith("# Result: ")
    assert not shell.runs.exists(), "a dry run writes nothing"


def test_finetune_and_pretrain_carry_the_seed_recipes_numbers() -> None:
    """XTuner v0.1.23, configs/llava/vicuna_7b_v15_clip_vit_large_p14_336."""
    plans = {name: prepare(name, None, "x", []).plan for name in ("pretrain", "finetune")}
    (pretrain,), (finetune,) = (list(plan.configs.values()) for plan in plans.values())
    train = pretrain["train"]
    assert (train["global_batch"], train["device_batch"], train["learning_rate"]) == (256, 32, 1e-3)
    assert (pretrain["data"]["square"], pretrain["data"]["max_length"]) == ("crop", 1472)
    assert pretrain["model"]["language"]["tuning"] == "frozen" and pretrain["model"]["language"]["quantize"] == "nf4"
    train = finetune["train"]
    assert (train["global_batch"], train["device_batch"], train["learning_rate"]) == (128, 16, 2e-4)
    assert (train["warmup_ratio"], train["betas"], train["weight_decay"], train["clip_norm"]) == (
        0.03,
        [0.9, 0.999],
        0,
        1,
    )
    assert train["group_by_length"] and train["save_every_steps"] == 500 and train["keep_last"] == 2
    assert finetune["data"]["square"] == "pad"
    assert finetune["model"]["language"]["lora"] == {"rank": 512, "alpha": 256, "dropout": 0.05, "head": False}
    assert finetune["model"]["vision"]["lora"] == {"rank": 64, "alpha": 16, "dropout": 0.05, "head": False}
    assert finetune["model"]["vision"]["layer"] == -2 and finetune["model"]["template"] == "vicuna"


def test_missing_inputs_are_told_with_their_cure(shell: Shell) -> None:
    said = shell("submit", "finetune", check=2).err
    for word in ("vicuna-7b-v1.5 is not there", "hf download lmsys/vicuna-7b-v1.5", "llavajob submit pretrain"):
        assert word in said
    assert not shell.runs.exists()


def test_what_is_rendered_is_what_is_stored(shell: Shell, recipe: Write) -> None:
    name = recipe()
    shown = shell("submit", name, "--dry-run", "--name", "same").out
    shell("submit", name, "--name", "same")
    run_id = json.loads((shell.runs / "same/run.json").read_text())["run_id"]
    stored = (shell.runs / "same/attempts/0/rendered.yaml").read_text()
    assert stored.replace(f"run_id: {run_id}", "run_id: ''") == shown and len(run_id) == 16
    shell.wait("same")


def test_the_record_keeps_origins_and_the_code(shell: Shell, recipe: Write) -> None:
    shell("submit", recipe(), "--name", "kept", "--set", "train.epochs=2")
    record = json.loads((shell.runs / "kept/run.json").read_text())
    assert record["origins"]["train.epochs"] == "--set train.epochs"
    assert record["origins"]["resources.nodes"].startswith("train.yaml:")
    assert record["command"].startswith("llavajob submit train.yaml") and record["versions"]["llavajob"]
    shell.wait("kept")


def test_nothing_from_a_recipe_reaches_a_shell(shell: Shell, recipe: Write) -> None:
    trap = "$(touch hacked); `touch hacked` '; touch hacked #"
    name = recipe(environment={"PYTHONPATH": str(Path(__file__).parent / "standin"), "TRAP": trap})
    shell("submit", name, "--name", "safe", "--follow")
    assert not list(shell.folder.rglob("hacked")) and not list(shell.runs.rglob("hacked"))


def test_the_latest_finished_run_is_found_by_reference(shell: Shell, recipe: Write) -> None:
    stage = recipe("stage")
    shell("submit", stage, "--name", "older", "--follow")
    shell("submit", stage, "--name", "newer", "--follow")
    shell("submit", stage, "--name", "broken", "--follow", check=1, STANDIN_FAIL="exit:3")
    parts = {"language": {"path": "."}, "vision": {"path": "."}, "projector": {"path": "${latest:stage}/model"}}
    out = yaml.safe_load(shell("submit", recipe("next", model=parts), "--dry-run").out)
    config = next(iter(out["configs"].values()))
    assert config["model"]["projector"]["path"] == str(shell.runs / "newer/model")
