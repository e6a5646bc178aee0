"""Evaluate a LLaVA folder in VLMEvalKit, asked exactly as :mod:`llava.mmbench` asks it.

With VLMEvalKit installed beside this package, either give its ``run.py`` to this module, which makes models known::

    python -m llava.vlmevalkit NAME=FOLDER --run VLMEvalKit/run.py --data MMBench_DEV_EN --mode infer

(torchrun in front works too: one process a GPU), or call :func:`register` before the kit looks for models, or import
:class:`LlavaFolder` in its ``vlmeval/vlm/__init__.py`` and name it in its ``vlmeval/config.py``. Interface as in
``vlmeval/vlm/base.py``, commit e8e78f05.

Two things are mended on the way: a literal ``<image>`` in a question is no second picture, and a box that our models
write in hundredths is handed over as fractions, because the kit's RefCOCO scorer takes numbers up to 1000 for
thousandths.
"""

from __future__ import annotations

import argparse
import os
import re
import runpy
import string
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmeval.dataset import DATASET_TYPE
from vlmeval.vlm.base import BaseModel

from llava.dialogue import Turn
from llava.errors import ConfigError
from llava.evals.mmbench.prompt import choice_question
from llava.evals.refcoco.boxes import as_fractions
from llava.generate import generate
from llava.templates import IMAGE_TAG

if TYPE_CHECKING:
    from PIL import Image

SHORT_ANSWER, LONG_ANSWER = 100, 512
"""Longest answers in tokens: of multiple choice, yes or no, and boxes, as ``llava mmbench`` has it; and of all else."""
_SHORT_TYPES = {"MCQ", "Y/N", "GROUNDING"}


class LlavaFolder(BaseModel):  # type: ignore[misc]
    """A Hugging Face LLaVA folder, as ``llava convert`` writes it, as one of VLMEvalKit's models.

    Args:
        model_path: the folder.
        template: overrides the conversation template that the folder names.
        device: auto, cpu or cuda.
        precision: auto, fp32, bf16 or fp16.
        four_bit: language model in NF4.
        max_new_tokens: longest answer; None: 100 for multiple choice, yes or no and boxes, else 512.

    Raises:
        ConfigError, WeightsError: the folder cannot be used.
    """

    INSTALL_REQ = False
    INTERLEAVE = True
    allowed_types = ("text", "image")

    def __init__(
        self,
        model_path: str,
        template: str | None = None,
        device: str = "auto",
        precision: str = "auto",
        four_bit: bool = False,
        max_new_tokens: int | None = None,
    ) -> None:
        from llava.hf_model import load

        super().__init__()
        self._longest = max_new_tokens
        with _first_gpu():
            self._llava = load(model_path, device, precision, template, 4 if four_bit else None)

    def use_custom_prompt(self, dataset: str) -> bool:
        """Whether ``build_prompt`` makes this benchmark's questions: multiple choice, as LLaVA was trained for it."""
        return bool(DATASET_TYPE(dataset) == "MCQ")

    def build_prompt(self, line: Mapping[str, Any], dataset: str | None = None) -> list[dict[str, str]]:
        """A row of the benchmark as pictures and text.

        Args:
            line: the row, a pandas Series; empty cells are nan.
            dataset: the benchmark's name.
        """
        paths = self.dump_image(line, dataset)
        options = {letter: _cell(line, letter) for letter in string.ascii_uppercase if _cell(line, letter)}
        text = choice_question(_cell(line, "hint"), _cell(line, "question"), options)
        pictures = [{"type": "image", "value": path} for path in ([paths] if isinstance(paths, str) else paths)]
        return [*pictures, {"type": "text", "value": text}]

    def generate_inner(self, message: list[dict[str, str]], dataset: str | None = None) -> str:
        """Answer one question, greedily.

        Args:
            message: pieces of text and paths of pictures, in their order.
            dataset: the benchmark's name.
        """
        llava, kind = self._llava, DATASET_TYPE(dataset) if dataset else ""
        paths = [piece["value"] for piece in message if piece["type"] == "image"]
        features = llava.encode_pixels(llava.pixels([_open(path) for path in paths])) if paths else []
        prompt = llava.embed(llava.chunks([Turn(turn_text(message))]), features)
        longest = self._longest or (SHORT_ANSWER if kind in _SHORT_TYPES else LONG_ANSWER)
        (tokens,) = generate(llava.model, [prompt], llava.stop, longest, llava.decode)
        answer = llava.answer_text(tokens)
        return as_fractions(answer) if kind == "GROUNDING" else answer


def turn_text(message: list[dict[str, str]]) -> str:
    """The user's turn: one picture stands in front, as in training; several stand where the message has them."""
    several = sum(piece["type"] == "image" for piece in message) > 1
    words, pieces = [], []
    for piece in message:
        if piece["type"] == "image":
            pieces.append(IMAGE_TAG)
        else:
            text = piece["value"].replace(IMAGE_TAG, "")
            words.append(text)
            pieces.append(text)
    if several:
        return "\n".join(pieces)
    return "\n".join([*(piece for piece in pieces if piece == IMAGE_TAG), *words])


def register(name: str, model_path: str, **options: Any) -> None:
    """Make a folder known to VLMEvalKit under a name; the class too, for its ``--config`` files.

    Args:
        name: what ``--model`` calls it.
        model_path: the folder.
        options: of LlavaFolder.
    """
    # Not above: the kit itself may be importing this file just now.
    import vlmeval.config
    import vlmeval.vlm

    vlmeval.vlm.LlavaFolder = LlavaFolder
    vlmeval.config.supported_VLM[name] = partial(LlavaFolder, model_path=model_path, **options)


def _cell(line: Mapping[str, Any], name: str) -> str:
    value = line.get(name)
    return "" if value is None or value != value else str(value)  # nan alone differs from itself


def _open(path: str) -> Image.Image:
    from PIL import Image

    return Image.open(path).convert("RGB")


@contextmanager
def _first_gpu() -> Iterator[None]:
    """Under torchrun the kit shows each process its own GPUs only, whatever its rank; the first of them is taken."""
    rank = os.environ.pop("LOCAL_RANK", None)
    try:
        yield
    finally:
        if rank is not None:
            os.environ["LOCAL_RANK"] = rank


def main(arguments: list[str] | None = None) -> int:
    """Register models, then run VLMEvalKit's ``run.py`` with what is left of the arguments; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m llava.vlmevalkit", description=(__doc__ or "").splitlines()[0], allow_abbrev=False
    )
    parser.add_argument("models", nargs="+", metavar="NAME=FOLDER", help="a model's name and its folder")
    parser.add_argument("--run", required=True, metavar="FILE", help="VLMEvalKit's run.py; all else is for it")
    given, rest = parser.parse_known_args(arguments)
    try:
        models = dict(_named(word) for word in given.models)
        if not Path(given.run).is_file():
            raise ConfigError(f"file not found: {given.run}", "--run names VLMEvalKit's run.py.")
    except ConfigError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    for name, folder in models.items():
        register(name, folder)
    chosen = [] if {"--model", "--config"} & set(rest) else ["--model", *models]
    sys.argv = [given.run, *rest, *chosen]
    runpy.run_path(given.run, run_name="__main__")
    return 0


def _named(word: str) -> tuple[str, str]:
    from llava.hf_model import checked_folder

    found = re.fullmatch(r"([\w.+-]+)=(.+)", word)
    if not found:
        raise ConfigError(f"{word!r} is not NAME=FOLDER", "A name and a Hugging Face LLaVA folder.")
    return found.group(1), str(checked_folder(found.group(2)).resolve())


if __name__ == "__main__":
    sys.exit(main())
