"""The projector: two linear layers with a GELU between, from the tower's width to the language model's."""

from __future__ import annotations

import json
from pathlib import Path

from torch import Tensor, nn

from llava.errors import ConfigError, WeightsError

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
_XTUNER = {"model.0": "linear_1", "model.2": "linear_2"}


class Projector(nn.Module):
    """LLaVA-1.5's ``mlp2x_gelu``; the layers are named as in Hugging Face's LLaVA.

    Args:
        vision_width: width of a picture's features (D).
        language_width: width of the language model (H).
    """

    def __init__(self, vision_width: int, language_width: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(vision_width, language_width)
        self.linear_2 = nn.Linear(language_width, language_width)

    def forward(self, features: Tensor) -> Tensor:
        """(..., D) to (..., H)."""
        hidden: Tensor = self.linear_2(nn.functional.gelu(self.linear_1(features)))
        return hidden

    def config(self) -> dict[str, object]:
        """What ``config.json`` beside the weights says."""
        return {
            "vision_hidden_size": self.linear_1.in_features,
            "language_hidden_size": self.linear_1.out_features,
            "hidden_act": "gelu",
            "depth": 2,
            "bias": True,
        }


def projector_folder(path: str | Path) -> Path:
    """The folder with the projector's weights: ``path`` itself, or ``projector`` in a trained run's ``model`` folder.

    Raises:
        ConfigError: neither holds weights.
    """
    for folder in (Path(path), Path(path) / "projector"):
        if (folder / WEIGHTS).is_file():
            return folder
    raise ConfigError(
        f"no projector in {path}: neither {WEIGHTS} nor projector/{WEIGHTS} is there",
        "model.projector.path takes a finished run's model folder",
    )


def load_projector(projector: Projector, path: str | Path) -> None:
    """Copy a trained projector's weights in.

    Raises:
        ConfigError: the folder holds none.
        WeightsError: a key is missing or left over, or a shape differs.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    file = projector_folder(path) / WEIGHTS
    try:
        state = load_file(file)
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"cannot read {file}: {error}") from None
    fill_projector(projector, state, str(file))


def fill_projector(projector: Projector, state: dict[str, Tensor], source: str) -> None:
    """Copy weights in, under our names or XTuner's (``model.0``, ``model.2``).

    Raises:
        WeightsError: a key is missing or left over, or a shape differs.
    """
    if all(name.rpartition(".")[0] in _XTUNER for name in state):
        state = {f"{_XTUNER[name.rpartition('.')[0]]}.{name.rpartition('.')[2]}": t for name, t in state.items()}
    check_state(f"projector {source}", projector.state_dict(), state)
    projector.load_state_dict(state)


def save_projector(projector: Projector, state: dict[str, Tensor], folder: Path) -> None:
    """Write config and weights (keys linear_1.weight, linear_1.bias, linear_2.weight, linear_2.bias)."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    (folder / CONFIG).write_text(json.dumps(projector.config(), indent=2) + "\n", encoding="utf-8")
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})


def check_state(what: str, wanted: dict[str, Tensor], seen: dict[str, Tensor]) -> None:
    """Hold a file's tensors against the model's.

    Raises:
        WeightsError: a key is missing or left over, or a shape differs; every kind is named with examples.
    """
    problems = []
    if missing := sorted(wanted.keys() - seen.keys()):
        problems.append(f"missing: {_some(missing)}")
    if left_over := sorted(seen.keys() - wanted.keys()):
        problems.append(f"left over: {_some(left_over)}")
    shapes = [
        f"{key} is {tuple(seen[key].shape)}, the model's is {tuple(wanted[key].shape)}"
        for key in sorted(wanted.keys() & seen.keys())
        if seen[key].shape != wanted[key].shape
    ]
    if shapes:
        problems.append(f"other shapes: {_some(shapes)}")
    if problems:
        raise WeightsError(f"{what} does not fit this model: " + "; ".join(problems))


def _some(names: list[str], at_most: int = 5) -> str:
    more = len(names) - at_most
    return ", ".join(names[:at_most]) + (f" and {more} more" if more > 0 else "")
