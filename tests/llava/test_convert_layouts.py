"""One model in four layouts: the same numbers there and back; folders from elsewhere; no pickle read unasked."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from itertools import permutations
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer, CLIPVisionModel, LlamaForCausalLM

from llava.errors import ConfigError, LlavaError, WeightsError
from llava.export.layouts import detect, read
from llava.export.parts import read_said
from llava.export.request import Request
from llava.hf_model import load
from llava.model.load import load_trained
from llava.model.projector import Projector
from tests.llava.convert_helpers import CLOSE, convert, our_logits, their_logits, train
from tests.llava.tiny_hf import build_llava

LAYOUTS = ("run", "xtuner", "official", "hf")
CLIP_LINEAR = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]
LLAMA_LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def keep(output: Path, to: str, **values: Any) -> Path:
    return convert(output, to=to, **{"dtype": "keep", **values})


def tensors(folder: Path) -> dict[str, Tensor]:
    """Every tensor of every weight file, by folder and name."""
    found = {}
    for file in sorted(folder.rglob("*.safetensors")):
        found |= {f"{file.parent.relative_to(folder)}/{name}": tensor for name, tensor in load_file(file).items()}
    return found


def whole(folder: Path) -> dict[str, Tensor]:
    """The model as one, whatever the layout: names as in the hub's folders."""
    stored = read(folder, Request())
    parts = {role: stored.part(role).whole("original", "fp32").weights for role in ("language", "vision")}
    found = {f"{role}.{name}": weight.read() for role, weights in parts.items() for name, weight in weights.items()}
    return found | {f"projector.{name}": weight.read() for name, weight in stored.projector.items()}


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert tensor.dtype == other[name].dtype, name
        # By their bytes: 4-bit weights look like numbers of another format, and not all of those equal themselves.
        assert torch.equal(*(t.contiguous().flatten().view(torch.uint8) for t in (tensor, other[name]))), name


def texts(folder: Path) -> dict[str, Any]:
    """What configs, tokenizers and processors say; an export names a tokenizer's class anew, and how to generate."""
    files = [file for file in folder.rglob("*.json") if file.name not in ("llavajob.json", "generation_config.json")]
    found = {str(file.relative_to(folder)): json.loads(file.read_text()) for file in files}
    for values in found.values():
        values.pop("tokenizer_class", None)
    return found


@pytest.fixture(scope="module")
def layouts(tmp_path_factory: pytest.TempPathFactory, tiny_language: Path, tiny_vision: Path) -> dict[str, Path]:
    """The same model, trained in full in mixed number formats, in every layout."""
    folder = tmp_path_factory.mktemp("layouts")
    run = train(folder / "trained", tiny_language, tiny_vision, ("full", "full", "none"))
    save_file({n: t.bfloat16() for n, t in load_file(run / "language/model.safetensors").items()},
              run / "language/model.safetensors", metadata={"format": "pt"})  # fmt: skip
    return {layout: keep(folder / layout, layout, source=run) for layout in LAYOUTS}


@pytest.mark.parametrize(("first", "second"), list(permutations(LAYOUTS, 2)), ids="-".join)
def test_there_and_back_every_bit_is_the_same(
    tmp_path: Path, layouts: dict[str, Path], first: str, second: str
) -> None:
    there = keep(tmp_path / "there", second, source=layouts[first])
    assert (detect(layouts[first]), detect(there)) == (first, second)
    back = keep(tmp_path / "back", first, source=there)
    equal(tensors(layouts[first]), tensors(back))
    equal(whole(layouts[first]), whole(there))
    assert texts(layouts[first]) == texts(back)
    assert read_said(layouts[first]) == read_said(back)


@pytest.mark.parametrize("to", ["xtuner", "run"])
def test_adapters_stay_adapters_and_frozen_parts_are_named(
    tmp_path: Path, tiny_language: Path, tiny_vision: Path, to: str
) -> None:
    source = train(tmp_path / "model", tiny_language, tiny_vision, ("lora", "lora", "nf4"))
    there = keep(tmp_path / "there", to, source=source)
    back = keep(tmp_path / "back", "run", source=there)
    equal(tensors(source), tensors(back))
    manifests = [json.loads((folder / "llava.json").read_text()) for folder in (source, back)]
    assert manifests[0] == manifests[1]
    equal(dict(load_trained(source).model.state_dict()), dict(load_trained(back).model.state_dict()))
    frozen = train(tmp_path / "frozen", tiny_language, tiny_vision, ("frozen", "frozen", "none"))
    folder = keep(tmp_path / "frozen-there", to, source=frozen)
    assert {name.split("/")[0] for name in tensors(folder)} == {"projector"}
    equal(tensors(frozen), tensors(keep(tmp_path / "frozen-back", "run", source=folder)))


def test_a_frozen_tower_is_included_where_the_layout_needs_it(
    tmp_path: Path, tiny_language: Path, tiny_vision: Path
) -> None:
    source = train(tmp_path / "model", tiny_language, tiny_vision, ("full", "frozen", "none"))
    tower = {f"vision.{name}": tensor for name, tensor in load_file(tiny_vision / "model.safetensors").items()}
    hf, official = keep(tmp_path / "hf", "hf", source=source), keep(tmp_path / "official", "official", source=source)
    for folder in (hf, official):
        seen = whole(folder)
        equal(tower, {name: tensor for name, tensor in seen.items() if name.startswith("vision.")})
    assert not [name for name in tensors(official) if "vision_tower" in name]
    assert json.loads((official / "config.json").read_text())["mm_vision_tower"] == str(tiny_vision)
    gone = tmp_path / "gone"
    with pytest.raises(ConfigError, match=r"convert\.vision: folder not found: .*gone"):
        keep(tmp_path / "other", "hf", source=official, vision=gone)


def build_xtuner(folder: Path, language: Path, vision: Path, *, pickled: bool = False) -> dict[str, Any]:
    """A folder as XTuner's pth_to_hf writes it, by peft alone, with adapters on every layer of both parts."""
    torch.manual_seed(3)
    models = {}
    for name, base, targets in (
        ("llm_adapter", LlamaForCausalLM.from_pretrained(language), LLAMA_LINEAR),
        ("visual_encoder_adapter", CLIPVisionModel.from_pretrained(vision), CLIP_LINEAR),
    ):
        kind = "CAUSAL_LM" if name == "llm_adapter" else None
        lora = peft.LoraConfig(r=4, lora_alpha=6, lora_dropout=0.05, target_modules=targets, task_type=kind)
        models[name] = peft.get_peft_model(base, lora)
        for key, parameter in models[name].named_parameters():
            if "lora_B" in key and "encoder.layers.2" not in key:  # the tower's last layer never gets a gradient
                torch.nn.init.normal_(parameter, std=0.05)
        models[name].save_pretrained(folder / name)
    file = folder / "visual_encoder_adapter/adapter_model.safetensors"
    renamed = {n.replace("base_model.model.", "base_model.model.vision_model."): t for n, t in load_file(file).items()}
    save_file(renamed, file, metadata={"format": "pt"})
    projector = Projector(64, 64)
    state = {f"model.{2 * int(n[7]) - 2}.{n[9:]}": t.half() for n, t in projector.state_dict().items()}
    (folder / "projector").mkdir()
    described = {"visual_hidden_size": 64, "llm_hidden_size": 64, "depth": 2, "hidden_act": "gelu", "bias": True}
    (folder / "projector/config.json").write_text(json.dumps(described))
    if pickled:
        torch.save(state, folder / "projector/pytorch_model.bin")
    else:
        save_file(state, folder / "projector/model.safetensors", metadata={"format": "pt"})
    (folder / "xtuner_config.py").write_text(
        "prompt_template = 'xtuner.utils.PROMPT_TEMPLATE.internlm2_chat'\nraise SystemExit('this is never run')\n"
        "model = dict(llm=dict(torch_dtype='torch.float16'), visual_select_layer=-2)\n"
    )
    return models


def test_a_folder_that_xtuner_wrote_is_read(tmp_path: Path, tiny_language: Path, tiny_vision: Path) -> None:
    folder = tmp_path / "xtuner"
    models = build_xtuner(folder, tiny_language, tiny_vision)
    for name in ("llm_adapter", "visual_encoder_adapter"):
        path = folder / name / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": "not/here"}))
    with pytest.raises(ConfigError, match=r"convert\.(language|vision)"):
        convert(tmp_path / "hf", source=folder)
    bases = {"language": tiny_language, "vision": tiny_vision}
    hf = convert(tmp_path / "hf", source=folder, **bases)
    seen = load_file(hf / "model.safetensors")
    for name, prefix in (("llm_adapter", "language_model."), ("visual_encoder_adapter", "vision_tower.vision_model.")):
        for key, tensor in models[name].merge_and_unload().state_dict().items():
            written = seen[prefix + key][: len(tensor)]
            assert torch.max(torch.abs(written - tensor)).item() <= 1e-6, key
    assert load(hf, device="cpu").template == "internlm2_chat"
    run = keep(tmp_path / "run", "run", source=folder, **bases)
    manifest = json.loads((run / "llava.json").read_text())
    assert manifest["language"]["lora"] == {"rank": 4, "alpha": 6, "dropout": 0.05, "head": False}
    assert (manifest["template"], manifest["vision_layer"], manifest["square"]) == ("internlm2_chat", -2, "pad")
    ours = our_logits(load_trained(run), "<image>\nWhat?")
    assert torch.max(torch.abs(their_logits(hf, "What?")[:, : ours.shape[-1]] - ours)).item() <= CLOSE
    # Adapters on the layer that never runs stay with the run, though it does not load them.
    equal(tensors(folder), tensors(keep(tmp_path / "back", "xtuner", source=run)))


@pytest.mark.parametrize("base", ["as_trained", "original"])
def test_a_4_bit_run_of_xtuners_goes_onto_the_base_that_is_chosen(
    tmp_path: Path, tiny_language: Path, tiny_vision: Path, base: str
) -> None:
    folder = tmp_path / "xtuner"
    models = build_xtuner(folder, tiny_language, tiny_vision)
    written = folder / "xtuner_config.py"
    written.write_text(written.read_text() + "quantization_config = dict(load_in_4bit=True)\n")
    bases = {"language": tiny_language, "vision": tiny_vision}
    run = keep(tmp_path / "run", "run", source=folder, **bases)
    manifest = json.loads((run / "llava.json").read_text())
    assert (manifest["dtype"], manifest["language"]["quantize"]) == ("fp16", "nf4")
    seen = load_file(convert(tmp_path / "hf", source=folder, base=base, **bases) / "model.safetensors")
    merged = models["llm_adapter"].merge_and_unload().state_dict()
    gaps = [torch.max(torch.abs(seen["language_model." + n][: len(t)] - t)).item() for n, t in merged.items()]
    assert max(gaps) <= 1e-6 if base == "original" else max(gaps) > 1e-3
    layer = load_trained(run, torch.float16).model.language.model.layers[1].mlp.down_proj
    packed = layer.base_layer.weight
    opened = dequantize_4bit(packed.data, packed.quant_state).float() + layer.get_delta_weight("default").float()
    gap = torch.max(torch.abs(seen["language_model.model.layers.1.mlp.down_proj.weight"] - opened)).item()
    assert gap <= 1e-6 if base == "as_trained" else gap > 1e-3


def test_xtuners_own_classes_read_what_is_written(tmp_path: Path, layouts: dict[str, Path]) -> None:
    folder = layouts["xtuner"]
    projector = AutoModel.from_pretrained(folder / "projector", trust_remote_code=True)
    run = load_trained(layouts["run"]).model
    features = torch.randn(3, 64, generator=torch.Generator().manual_seed(1))
    assert torch.equal(projector(features), run.projector(features))
    language = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    equal(dict(language.state_dict()), dict(run.language.state_dict()))
    tower = CLIPVisionModel.from_pretrained(folder / "visual_encoder")
    with run.vision.whole() as own:
        equal(dict(tower.state_dict()), dict(own.state_dict()))


def test_adapters_for_xtuner_are_read_by_peft(tmp_path: Path, tiny_language: Path, tiny_vision: Path) -> None:
    source = train(tmp_path / "model", tiny_language, tiny_vision, ("lora", "lora", "none"))
    folder = keep(tmp_path / "xtuner", "xtuner", source=source)
    model = peft.PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(tiny_language), folder / "llm_adapter")
    own = load_trained(source).model.language
    ids = torch.arange(20).view(1, 20)
    with torch.no_grad():
        assert torch.equal(model(ids).logits, own(ids).logits)
    names = load_file(folder / "visual_encoder_adapter/adapter_model.safetensors")
    assert all(name.startswith("base_model.model.vision_model.encoder.layers.") for name in names)


class OfficialModel(LlamaForCausalLM):
    """Names of the modules as in LLaVA's llava_arch.py and clip_encoder.py."""

    def __init__(self, config: Any, tower: nn.Module) -> None:
        super().__init__(config)
        self.model.mm_projector = nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 64))
        self.model.vision_tower = nn.ModuleDict({"vision_tower": nn.ModuleDict({"vision_model": tower})})


def test_official_names_are_those_of_llavas_modules(
    tmp_path: Path, layouts: dict[str, Path], tiny_language: Path, tiny_vision: Path
) -> None:
    base = LlamaForCausalLM.from_pretrained(tiny_language)
    model = OfficialModel(base.config, CLIPVisionModel.from_pretrained(tiny_vision))
    model.load_state_dict(load_file(layouts["official"] / "model.safetensors"), strict=True)
    values = json.loads((layouts["official"] / "config.json").read_text())
    assert {key: values[key] for key in values if "mm_" in key or key in ("image_aspect_ratio", "model_type")} == {
        "model_type": "llava_llama",
        "image_aspect_ratio": "pad",
        "mm_vision_tower": str(tiny_vision),
        "mm_hidden_size": 64,
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_select_layer": -2,
        "mm_vision_select_feature": "patch",
        "mm_use_im_start_end": False,
        "mm_use_im_patch_token": False,
        "use_mm_proj": True,
        "tune_mm_mlp_adapter": False,
        "unfreeze_mm_vision_tower": True,
    }
    assert values["rope_theta"] == 10000.0


def build_official(folder: Path, language: Path, vision: Path) -> Path:
    """A folder as the published LLaVA-1.5 ones: pickled shards, the tower only named, no word of ours."""
    shutil.copytree(language, folder)
    (folder / "model.safetensors").unlink()
    state = dict(LlamaForCausalLM.from_pretrained(language).half().state_dict())
    torch.manual_seed(6)
    layers = Projector(64, 64).half().state_dict()
    state |= {f"model.mm_projector.{2 * int(name[7]) - 2}.{name[9:]}": tensor for name, tensor in layers.items()}
    names, shards = sorted(state), {}
    for number, part in enumerate((names[:9], names[9:]), 1):
        shards |= dict.fromkeys(part, f"pytorch_model-0000{number}-of-00002.bin")
        torch.save({name: state[name] for name in part}, folder / shards[part[0]])
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": shards}))
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "llava", "mm_vision_tower": str(vision), "mm_projector_type": "mlp2x_gelu",
               "mm_vision_select_layer": -2, "mm_vision_select_feature": "patch", "mm_hidden_size": 64,
               "image_aspect_ratio": "pad", "mm_use_im_start_end": False}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_a_published_official_folder_is_read_when_pickles_are_allowed(
    tmp_path: Path, tiny_language: Path, tiny_vision: Path
) -> None:
    source = build_official(tmp_path / "official", tiny_language, tiny_vision)
    with pytest.raises(ConfigError, match=r"are pickles \(\.bin\)(.|\n)*--allow-pickle"):
        convert(tmp_path / "hf", source=source)
    with pytest.raises(ConfigError, match=r"names no conversation template(.|\n)*llava_v1"):
        convert(tmp_path / "hf", source=source, allow_pickle=True)
    allowed = {"allow_pickle": True, "template": "llava_v1"}
    hf = keep(tmp_path / "hf", "hf", source=source, **allowed)
    run = keep(tmp_path / "run", "run", source=hf)
    back = keep(tmp_path / "back", "official", source=run)
    seen = load_file(back / "model.safetensors")
    pickled = {}
    for file in source.glob("*.bin"):
        pickled |= torch.load(file, weights_only=True)
    assert pickled.keys() < seen.keys()
    equal(pickled, {name: seen[name] for name in pickled})
    assert {name.split(".")[1] for name in seen.keys() - pickled.keys()} == {"vision_tower"}
    assert load(hf, device="cpu").template == "llava_v1"


class Evil:
    """Does something when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.path),))


def test_a_pickle_that_does_more_than_hold_weights_is_never_run(
    tmp_path: Path, tiny_language: Path, tiny_vision: Path
) -> None:
    source, trap = tmp_path / "xtuner", tmp_path / "trap"
    build_xtuner(source, tiny_language, tiny_vision, pickled=True)
    bases = {"language": tiny_language, "vision": tiny_vision}
    with pytest.raises(ConfigError, match=r"projector are pickles"):
        convert(tmp_path / "hf", source=source, **bases)
    convert(tmp_path / "hf", source=source, allow_pickle=True, **bases)
    for protocol in (2, 4):
        (source / "projector/pytorch_model.bin").write_bytes(pickle.dumps({"model.0.weight": Evil(trap)}, protocol))
        with pytest.raises(WeightsError, match=r"cannot read .*pytorch_model\.bin"):
            convert(tmp_path / "other", source=source, allow_pickle=True, **bases)
    assert not trap.exists()


def test_a_hub_folder_goes_through_every_layout_unchanged(
    tmp_path: Path, tiny_language: Path, tiny_vision: Path
) -> None:
    """Written by transformers alone: its own rows for <image>, no note of ours, newer names too."""
    source = build_llava(tmp_path / "hub", tiny_language, tiny_vision)
    file = source / "model.safetensors"
    newer = {
        name.replace("language_model.lm_head.", "lm_head.")
        .replace("language_model.model.", "model.language_model.")
        .replace("vision_tower.", "model.vision_tower.")
        .replace("multi_modal_projector.", "model.multi_modal_projector."): tensor
        for name, tensor in load_file(file).items()
    }
    save_file(newer, file, metadata={"format": "pt"})
    start = whole(source)
    folder = source
    for number, to in enumerate(("official", "run", "xtuner", "hf", "xtuner", "official", "hf")):
        names = {"template": "vicuna", "vision": tiny_vision} if number == 0 else {}
        folder = keep(tmp_path / f"{number}-{to}", to, source=folder, **names)
        equal(start, whole(folder))
    assert "<image>" in AutoTokenizer.from_pretrained(folder).get_vocab()
    ours = our_logits(load_trained(tmp_path / "1-run"), "<image>\nWhat?")
    assert torch.max(torch.abs(their_logits(folder, "What?") - ours)).item() <= CLOSE


def test_growing_is_undone_on_the_way_back(tmp_path: Path, layouts: dict[str, Path]) -> None:
    before, back = (AutoTokenizer.from_pretrained(layouts[n] / sub) for n, sub in (("run", "language"), ("hf", ".")))
    assert len(back) == len(before) + 1
    run = keep(tmp_path / "run", "run", source=layouts["hf"])
    again = AutoTokenizer.from_pretrained(run / "language")
    assert again.get_vocab() == before.get_vocab()
    assert (again.pad_token, again.encode("<s>What <image>?")) == (before.pad_token, before.encode("<s>What <image>?"))
    assert load_file(run / "language/model.safetensors")["lm_head.weight"].shape == (400, 64)


def test_weights_are_split_and_read_together_again(tmp_path: Path, layouts: dict[str, Path]) -> None:
    for layout in LAYOUTS:
        folder = keep(tmp_path / layout, layout, source=layouts["run"], max_shard_size="60KB")
        root = folder / "language" if layout == "run" else folder
        places = json.loads((root / "model.safetensors.index.json").read_text())
        shards = sorted(root.glob("model-*.safetensors"))
        assert [path.name for path in shards] == sorted(set(places["weight_map"].values()))
        assert len(shards) > 3
        assert all(path.stat().st_size < 70_000 for path in shards)
        sizes = 0
        for path in shards:
            with safe_open(path, "pt") as file:
                sizes += sum(file.get_tensor(n).nbytes for n in file.keys())  # noqa: SIM118
        assert places["metadata"]["total_size"] == sizes
        equal(whole(layouts["run"]), whole(folder))
        shards[1].unlink()
        with pytest.raises(WeightsError, match=r"cannot read .*model-00002-of"):
            keep(tmp_path / "other", "run", source=folder)


def test_a_weight_without_a_home_is_an_error(tmp_path: Path, layouts: dict[str, Path]) -> None:
    places = {
        "run": "language/model.safetensors", "xtuner": "projector/model.safetensors",
        "official": "model.safetensors", "hf": "model.safetensors",
    }  # fmt: skip
    for layout, place in places.items():
        folder = tmp_path / layout
        shutil.copytree(layouts[layout], folder)
        state = load_file(folder / place)
        gone = sorted(state)[1]
        left = {"model.extra.weight": torch.zeros(2), **{n: t for n, t in state.items() if n != gone}}
        if layout == "hf":
            left["language_model.model.extra.weight"] = left.pop("model.extra.weight")
        save_file(left, folder / place, metadata={"format": "pt"})
        with pytest.raises(WeightsError, match=r"missing: .*; left over: .*extra\.weight"):
            keep(tmp_path / "out", "run" if layout == "hf" else "hf", source=folder)
    assert not (tmp_path / "out").exists()


def test_what_is_no_model_is_said(tmp_path: Path, tiny_language: Path, layouts: dict[str, Path]) -> None:
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "empty", tiny_language, tmp_path / "none"):
        with pytest.raises(ConfigError, match=r"no trained model in .* neither a run's model folder"):
            convert(tmp_path / "out", source=folder)
    odd = tmp_path / "odd"
    shutil.copytree(layouts["official"], odd)
    config = json.loads((odd / "config.json").read_text())
    for change in ({"mm_projector_type": "linear"}, {"mm_use_im_start_end": True}, {"image_aspect_ratio": "anyres"}):
        (odd / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(LlavaError, match=next(iter(change))):
            convert(tmp_path / "out", source=odd)


def test_by_hand(tmp_path: Path, layouts: dict[str, Path]) -> None:
    words = [sys.executable, "-m", "llava", "convert", layouts["hf"], tmp_path / "x", "--to", "xtuner"]
    done = subprocess.run([*map(str, words), "--max-shard-size", "80KB"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert detect(tmp_path / "x") == "xtuner"
    equal(whole(layouts["hf"]), whole(tmp_path / "x"))
    wrong = subprocess.run([*map(str, words[:-1]), "gguf"], capture_output=True, text=True)
    assert wrong.returncode == 2
    assert "convert.to" in wrong.stderr
