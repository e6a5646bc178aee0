"""What a ``config.yaml`` may hold: one model per kind of job, checked strictly, all problems at once.

The launcher checks recipes against the JSON schema exported from here (``llava schema``), so this file is the one
place where a key, its type, its default and its meaning are written down.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from llava.errors import ConfigError
from llava.yaml_file import read_file, read_values

Positive = Annotated[int, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]
BatchSize = Annotated[int, Field(gt=0, le=1_000_000_000)]
Shards = Annotated[int, Field(gt=0, le=100_000)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Template = Literal[
    "vicuna",
    "plain",
    "llava_v1",
    "internlm_chat",
    "internlm2_chat",
    "llama2_chat",
    "llama3_chat",
    "phi3_chat",
    "chatml",
    "qwen_chat",
    "qwen",
]
Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["auto", "bf16", "fp16", "fp32"]
Rules = Literal["xtuner", "llava"]


class Section(BaseModel):
    """A part of a config: unknown keys are errors, a key's docstring is its documentation."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=())


class LoraConfig(Section):
    """Low-rank adapters (Hu et al., arXiv 2106.09685) on every linear layer of a part."""

    rank: Positive = 64
    """Rank of the two factors."""
    alpha: Positive = 16
    """Scale: the update is multiplied by alpha / rank."""
    dropout: Fraction = 0.05
    """Dropout before the first factor."""
    head: bool = False
    """Adapters on the language head too, as XTuner's InternLM2 recipes have them."""


class PartConfig(Section):
    """A pretrained part of the model (language model or vision tower) and how it takes part in training."""

    path: str
    """Hugging Face folder of the part, with its tokenizer or image processor."""
    tuning: Literal["frozen", "full", "lora"] = "frozen"
    """What trains: nothing, every weight, or LoRA adapters."""
    quantize: Literal["none", "nf4"] = "none"
    """nf4: 4-bit NormalFloat with double quantisation (QLoRA, arXiv 2305.14314); needs tuning frozen or lora."""
    lora: LoraConfig = LoraConfig()
    """The adapters' shape, read when tuning is lora."""
    learning_rate: Annotated[float, Field(gt=0)] | None = None
    """Peak learning rate of this part; null: train.learning_rate."""
    allow_pickle: bool = False
    """Read .bin weights where the folder has no safetensors; they may hold tensors only, other content is refused."""

    @model_validator(mode="after")
    def _quantised_weights_cannot_train(self) -> PartConfig:
        if self.quantize != "none" and self.tuning == "full":
            raise ValueError("quantize: nf4 goes with tuning: frozen or lora, because 4-bit weights take no updates")
        return self


class VisionConfig(PartConfig):
    """The vision tower."""

    layer: int = -2
    """Which hidden state is used, without CLIP's CLS token (LLaVA: the second to last)."""


class ProjectorConfig(Section):
    """The two-layer GELU projector between vision and language."""

    path: str | None = None
    """A trained run's ``model`` folder to start from; null: fresh weights."""
    tuning: Literal["full", "frozen"] = "full"
    """What trains."""
    learning_rate: Annotated[float, Field(gt=0)] | None = None
    """Peak learning rate of this part; null: train.learning_rate."""


class ModelConfig(Section):
    """Which weights make up the model and what of them trains."""

    template: Template = "vicuna"
    """Conversation template; it travels with the weights."""
    language: PartConfig
    """The language model."""
    vision: VisionConfig
    """The vision tower."""
    projector: ProjectorConfig = ProjectorConfig()
    """The projector."""


class DataConfig(Section):
    """What the model learns from."""

    records: str
    """LLaVA records: a JSON list, or JSON lines when the name ends in .jsonl."""
    images: str
    """Folder that the records' ``image`` paths start from."""
    square: Literal["crop", "pad"] = "pad"
    """crop: as the tower's image processor does by itself (CLIP: resize the short side and cut the centre; SigLIP:
    resize both sides); pad: to a square with the mean colour, then resize."""
    max_length: Positive = 1472
    """Longest text in tokens, each picture counted as one; the rest is cut off on the right."""
    max_length_text_only: Positive | None = None
    """Longest text of a record without a picture; null: max_length."""
    max_bad_images: Count = 0
    """How many missing or broken pictures are skipped before training stops; each is reported with its path."""
    workers: Count = 4
    """Processes per rank that read and prepare pictures."""


class TrainingConfig(Section):
    """How the model learns."""

    global_batch: BatchSize = 128
    """Samples per update over all ranks, whatever the number of nodes."""
    device_batch: BatchSize = 16
    """Samples per rank in one forward pass; accumulation is global_batch / (device_batch x ranks)."""
    epochs: Annotated[float, Field(gt=0)] = 1.0
    """Passes over the records."""
    max_steps: Positive | None = None
    """Stop after this many updates; null: when the epochs are over."""
    learning_rate: Annotated[float, Field(gt=0)] = 2e-4
    """Peak learning rate."""
    warmup_ratio: Fraction = 0.03
    """Share of the updates that warm up linearly, before the cosine to zero."""
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    """AdamW's decay rates of the first and second moment."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """AdamW's weight decay."""
    clip_norm: Annotated[float, Field(ge=0)] = 1.0
    """Largest norm of the gradient; 0: no clipping."""
    precision: Precision = "auto"
    """Number format of the forward pass; auto: bf16 on GPUs that have it, fp16 on other GPUs, fp32 on CPU."""
    strategy: Literal["ddp", "zero2", "zero3"] = "ddp"
    """How ranks share the work: DDP, or DeepSpeed ZeRO stage 2 or 3."""
    rules: Rules = "xtuner"
    """Whose warm-up and order of samples: XTuner 0.1.23's, or those of the trainer that LLaVA-1.5 was made with."""
    group_by_length: bool = False
    """Batches of alike length and modality (less padding); otherwise a plain shuffle."""
    gradient_checkpointing: bool = False
    """Recompute activations of trained parts in the backward pass: less memory, about a third more time."""
    device: Device = "auto"
    """auto: a GPU where there is one."""
    save_every_steps: Positive = 500
    """Updates between checkpoints."""
    keep_last: Positive = 2
    """How many of the newest checkpoints are kept."""
    keep_every_steps: Positive | None = None
    """Checkpoints at multiples of this are kept for good; null: none."""
    log_every_steps: Positive = 10
    """Updates between lines in metrics.jsonl and in the log."""

    @model_validator(mode="after")
    def _batch_divides(self) -> TrainingConfig:
        if self.global_batch % self.device_batch:
            raise ValueError(f"global_batch {self.global_batch} is no multiple of device_batch {self.device_batch}")
        return self


class Job(Section):
    """What every kind of config has."""

    run_dir: str
    """Folder of the run (or of a pipeline's stage); everything the job writes lies below it."""
    seed: int = 0
    """Seed of everything random."""


class TrainJob(Job):
    """``llava train``: one stage of LLaVA training."""

    kind: Literal["train"]
    """What the job does."""
    model: ModelConfig
    """Which weights, and what of them trains."""
    data: DataConfig
    """What it learns from."""
    train: TrainingConfig = TrainingConfig()
    """How it learns."""


class ConvertConfig(Section):
    """A LLaVA model from one layout into another; the source's layout is seen, not told."""

    source: str | None = None
    """A trained run's ``model`` folder, or a folder of XTuner, official LLaVA or Hugging Face; null: bases with a fresh
    projector (the untrained model), see language."""
    language: str | None = None
    """Base language model; null: the one that the source names."""
    vision: str | None = None
    """Base vision tower; null: the one that the source names."""
    template: Template | None = None
    """Conversation template; null: the one that the source names (vicuna where there is none)."""
    output: str
    """Folder to write."""
    to: Literal["hf", "run", "xtuner", "official"] = "hf"
    """Its layout: Hugging Face's LlavaForConditionalGeneration with processor and chat template, a trained run's
    ``model`` folder, XTuner's, or official LLaVA's; adapters are merged for hf and official, kept for the others."""
    base: Literal["as_trained", "original"] = "as_trained"
    """What adapters of a 4-bit run are merged onto: the de-quantised weights it was trained with, or the originals."""
    dtype: Literal["auto", "keep", "fp32", "bf16", "fp16"] = "auto"
    """Number format of the written weights; keep: each as it is stored; auto: fp16 where a run's or XTuner's parts
    become one model, else keep."""
    max_shard_size: str = "5GB"
    """Largest weight file."""
    allow_pickle: bool = False
    """Read pickled weights (.bin) where a folder has no others, by torch's reader of weights alone."""


class ConvertJob(Job):
    """``llava convert``: a model into another layout, for one a trained run into a Hugging Face folder."""

    kind: Literal["convert"]
    """What the job does."""
    convert: ConvertConfig
    """From where, to where."""


class EvalConfig(Section):
    """One benchmark on one model, in shards."""

    benchmark: Literal["mmbench", "refcoco"] = "mmbench"
    """What is measured: MMBench or CCBench (multiple choice), or RefCOCO (grounding)."""
    model: str
    """Hugging Face LLaVA folder, as written by convert."""
    baseline: str | None = None
    """Another such folder, answered by the same shards and shown beside the model; null: none."""
    data: str
    """The benchmark's file: TSV for mmbench, JSON for refcoco."""
    images: str | None = None
    """Folder with COCO's pictures, for refcoco; mmbench's file holds its own."""
    shards: Shards | None = None
    """How many parts the rows are answered in, one process each; null: one per process that the job is given."""
    batch: Positive = 16
    """Rows answered in one generation; 1 is the reference."""
    max_new_tokens: Positive = 100
    """Longest answer in tokens."""
    template: Template | None = None
    """Conversation template; null: the one that travels with the model."""
    scorer: Literal["xtuner", "vlmevalkit"] = "vlmevalkit"
    """mmbench: how a letter is read, by XTuner's first run of capitals or by VLMEvalKit's rules without a judge."""
    device: Device = "auto"
    """auto: a GPU where there is one."""
    precision: Precision = "auto"
    """Number format of the weights; auto: bf16 on GPUs that have it, fp16 on other GPUs, fp32 on CPU."""


class EvalJob(Job):
    """``llava mmbench`` or ``llava refcoco``: answers in shards, then one score."""

    kind: Literal["eval"]
    """What the job does."""
    eval: EvalConfig
    """Which model, which rows, how."""


class ToyConfig(Section):
    """The quickstart's own world: drawn pictures and tiny base models."""

    data: str
    """Folder for pictures, records and the TSV file."""
    bases: str
    """Folder for the tiny language model, vision tower and tokenizer."""
    cache: str | None = None
    """Folder that finished bases are kept in and taken from, keyed by seed and code; null: none."""


class ToyJob(Job):
    """``llava toy``: draws the quickstart's data and builds its bases."""

    kind: Literal["toy"]
    """What the job does."""
    toy: ToyConfig
    """Where to."""


AnyJob = Annotated[TrainJob | ConvertJob | EvalJob | ToyJob, Field(discriminator="kind")]
_ADAPTER: TypeAdapter[TrainJob | ConvertJob | EvalJob | ToyJob] = TypeAdapter(AnyJob)


def schema() -> dict[str, Any]:
    """JSON schema of a config: what the launcher checks recipes against."""
    return _ADAPTER.json_schema()


def parse(values: object, where: str) -> TrainJob | ConvertJob | EvalJob | ToyJob:
    """Check already loaded YAML.

    Args:
        values: what the YAML file held.
        where: its name, for the message.

    Raises:
        ConfigError: with every problem, one a line.
    """
    try:
        return _ADAPTER.validate_python(values)
    except ValidationError as error:
        lines = [f"  {_dotted(e['loc'])}: {e['msg']} (seen: {_short(e['input'])})" for e in error.errors()]
        raise ConfigError(f"{where} is not a valid config:\n" + "\n".join(lines)) from None


def load(path: str | Path) -> TrainJob | ConvertJob | EvalJob | ToyJob:
    """Read and check a config file.

    Raises:
        ConfigError: the file is missing, not YAML, or not a config.
    """
    values = read_values(read_file(path), str(path))
    return parse(values, str(path))


def _dotted(location: tuple[int | str, ...]) -> str:
    # The discriminator's value stands first in pydantic's location; a person's file has no such level.
    return ".".join(str(part) for part in location[1:]) or "kind"


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
