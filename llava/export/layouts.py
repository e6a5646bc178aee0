"""In which layout does a folder stand, and which of them is written?"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from llava.errors import ConfigError
from llava.export import huggingface, official, run, xtuner
from llava.export.architecture import ROLES
from llava.export.bodies import How
from llava.export.parts import Model
from llava.export.request import Request

Layout = Literal["run", "xtuner", "official", "hf"]
_READ = {"run": run, "xtuner": xtuner, "official": official, "hf": huggingface}


def detect(folder: Path) -> Layout:
    """The layout of a folder.

    Raises:
        ConfigError: it is of none.
    """
    for name, layout in _READ.items():
        if layout.holds(folder):
            return name  # type: ignore[return-value]
    raise ConfigError(
        f"no trained model in {folder}: it is neither a run's model folder (llava.json), nor XTuner's (projector/), "
        "nor official LLaVA's (mm_projector_type in config.json), nor Hugging Face's (vision_config there)",
        "Name a run's model folder, for example.",
    )


def read(folder: Path, request: Request) -> Model:
    """A folder of any layout."""
    model: Model = _READ[detect(folder)].read(folder, request)
    return model


def write(model: Model, folder: Path, layout: Layout, how: How) -> dict[str, Any]:
    """Write a layout into an empty folder.

    Returns:
        what llavajob.json has to say beyond what it says of every layout.
    """
    if layout == "hf":
        return huggingface.write_hf(model, folder, how)
    if layout == "official":
        return official.write_official(model, folder, how)
    if layout == "run":
        run.write_run(model, folder, how)
    else:
        xtuner.write_xtuner(model, folder, how)
    parts = [part for role in ROLES if (part := model.part(role)).tuning == "full" and part.body.marks]
    return {"merged": {part.role: list(part.body.marks) for part in parts}}
