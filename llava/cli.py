"""The command ``llava``: one command a verb, each with a config or, by hand, with arguments.

Nothing heavy is imported here, so that ``llava --help`` answers at once.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import typer.core

if TYPE_CHECKING:
    from llava.config import ConvertJob, EvalJob


class Commands(typer.core.TyperGroup):
    """The commands, with two ends that are no errors: Ctrl-C, and a reader that has seen enough (``| head``)."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            sys.exit(128 + signal.SIGINT)
        except BrokenPipeError:
            sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
            os.dup2(sys.stdout.fileno(), 1)
            sys.exit(128 + signal.SIGPIPE)


app = typer.Typer(
    name="llava",
    cls=Commands,
    help="Train LLaVA models, convert them, measure them and talk to them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

data_app = typer.Typer(help="Look after data.", no_args_is_help=True)
app.add_typer(data_app, name="data")

Config = Annotated[str, typer.Option("--config", metavar="FILE", help="The job's YAML file.")]
MaybeConfig = Annotated[str | None, typer.Option("--config", metavar="FILE", help="The job's YAML file.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda; auto: a GPU where there is one.")]
Precision = Annotated[str, typer.Option(help="auto, fp32, bf16 or fp16.")]
Base = Annotated[str, typer.Option(help="Adapters of a 4-bit run go onto: as_trained or original.")]
ShardSize = Annotated[str, typer.Option(help="Largest weight file.")]
Pickle = Annotated[bool, typer.Option("--allow-pickle", help="Read pickled weights (.bin) where there are no others.")]
Template = Annotated[str | None, typer.Option(help="Conversation template; left out: the model's own.")]


def main() -> None:
    """What the console script calls."""
    _prepare_streams()
    try:
        app()
    except Exception as error:
        raise SystemExit(_fail(error)) from None
    except KeyboardInterrupt:
        raise SystemExit(128 + signal.SIGINT) from None


def _prepare_streams() -> None:
    """Have the standard streams take every character, and be there at all, whatever the terminal and the caller."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _fail(error: Exception) -> int:
    """Say an error in a line, with what to do; return the exit code."""
    from llava import unforeseen
    from llava.errors import EXIT_FAILED, LlavaError

    if isinstance(error, LlavaError):
        message, hint, code = error.message, error.hint, error.exit_code
    elif isinstance(error, OSError):
        where = f" ({error.filename})" if error.filename else ""
        message, hint, code = f"{error.strerror or error}{where}", "", EXIT_FAILED
    else:
        message, hint = unforeseen.describe(error)
        code = EXIT_FAILED
    typer.echo(f"Error: {message}", err=True)
    if hint:
        typer.echo(hint, err=True)
    return code


@app.command()
def train(config: Config) -> None:
    """Train one stage; under torchrun on several processes."""
    from llava.train import main as run

    run(["--config", config])


@app.command()
def toy(config: Config) -> None:
    """Draw the quickstart's pictures and build its tiny base models."""
    from llava.toy.__main__ import from_config

    raise typer.Exit(from_config(config))


@app.command()
def schema() -> None:
    """Print the JSON schema of a config."""
    from llava.config import schema as of_config

    typer.echo(json.dumps(of_config(), indent=2, sort_keys=True, ensure_ascii=False))


@app.command()
def convert(
    paths: Annotated[
        list[str] | None,
        typer.Argument(metavar="[SOURCE] OUTPUT", help="A model folder of any layout, and the folder to write."),
    ] = None,
    config: MaybeConfig = None,
    to: Annotated[str, typer.Option(help="Layout to write: hf, run, xtuner or official.")] = "hf",
    base: Base = "as_trained",
    dtype: Annotated[str, typer.Option(help="Written number format: auto, keep, fp32, bf16 or fp16.")] = "auto",
    language: Annotated[str | None, typer.Option(help="Base language model; left out: the source's.")] = None,
    vision: Annotated[str | None, typer.Option(help="Base vision tower; left out: the source's.")] = None,
    template: Template = None,
    max_shard_size: ShardSize = "5GB",
    allow_pickle: Pickle = False,
    seed: Annotated[int, typer.Option(help="Seed of a fresh projector, where there is no SOURCE.")] = 0,
) -> None:
    """Turn a model folder into another layout: a run's, XTuner's, official LLaVA's or Hugging Face's.

    The source's layout is seen, not told. Without SOURCE, --language and --vision make the untrained model.
    """
    from llava.convert import convert_job, from_config
    from llava.entry import guarded

    if config is not None:
        raise typer.Exit(from_config(config) if not paths else _refuse("--config", "paths"))
    values = {
        "to": to, "base": base, "dtype": dtype, "language": language, "vision": vision, "template": template,
        "max_shard_size": max_shard_size, "allow_pickle": allow_pickle,
    }  # fmt: skip
    raise typer.Exit(guarded(lambda: convert_job(_convert_job(paths or [], values, seed)), on_signal="stop"))


@app.command()
def merge(
    source: Annotated[str, typer.Argument(help="A run's or XTuner's model folder, or a bare PEFT adapter folder.")],
    output: Annotated[str, typer.Argument(help="Folder to write, in the source's layout.")],
    language: Annotated[str | None, typer.Option(help="Base language model; left out: the source's.")] = None,
    vision: Annotated[str | None, typer.Option(help="Base vision tower; left out: the source's.")] = None,
    part: Annotated[str, typer.Option(help="Whose adapters: both, language or vision.")] = "both",
    base: Base = "as_trained",
    dtype: Annotated[str, typer.Option(help="Written number format: keep, fp32, bf16 or fp16.")] = "keep",
    max_shard_size: ShardSize = "5GB",
    allow_pickle: Pickle = False,
) -> None:
    """Merge adapters into the weights that they were trained on; never twice."""
    from llava.entry import guarded
    from llava.merge import merge as run

    values = {
        "base": base, "dtype": dtype, "language": language, "vision": vision, "max_shard_size": max_shard_size,
        "allow_pickle": allow_pickle,
    }  # fmt: skip
    raise typer.Exit(guarded(lambda: run(_convert_job([source, output], values, 0).convert, part), on_signal="stop"))


def _convert_job(paths: list[str], values: dict[str, Any], seed: int) -> ConvertJob:
    from llava.config import ConvertJob, parse
    from llava.errors import ConfigError

    if not 1 <= len(paths) <= 2:
        raise ConfigError("convert takes --config FILE, or SOURCE OUTPUT", "llava convert runs/x/model x-hf")
    *source, output = paths
    wanted = {**values, "output": output, "source": source[0] if source else None}
    job = parse({"kind": "convert", "run_dir": ".", "seed": seed, "convert": wanted}, "the command line")
    assert isinstance(job, ConvertJob)
    return job


@app.command()
def mmbench(
    model: Annotated[str | None, typer.Argument(help="Hugging Face LLaVA folder.")] = None,
    data: Annotated[str | None, typer.Argument(help="The benchmark's TSV file.")] = None,
    config: MaybeConfig = None,
    shard: Annotated[int | None, typer.Option(help="Answer only the shard of this number, from 0.")] = None,
    merge: Annotated[bool, typer.Option("--merge", help="Only merge and score what is answered.")] = False,
    shards: Annotated[int, typer.Option(help="How many shards --shard counts.")] = 1,
    batch: Annotated[int, typer.Option(help="Rows in one generation; 1 is the reference.")] = 16,
    scorer: Annotated[str, typer.Option(help="xtuner or vlmevalkit.")] = "vlmevalkit",
    baseline: Annotated[str | None, typer.Option(help="A second folder, shown beside the first.")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer in tokens.")] = 100,
    template: Template = None,
    device: Device = "auto",
    precision: Precision = "auto",
    work_dir: Annotated[
        str | None, typer.Option(help="Where answers and scores go; left out: mmbench/<data>-<model>.")
    ] = None,
) -> None:
    """Answer MMBench or CCBench and score it; a second start does only what is missing."""
    values = {
        "model": model, "data": data, "shards": shards, "batch": batch, "scorer": scorer, "baseline": baseline,
        "max_new_tokens": max_new_tokens, "template": template, "device": device, "precision": precision,
    }  # fmt: skip
    raise typer.Exit(_evaluate("mmbench", config, values, work_dir, shard, merge))


@app.command()
def refcoco(
    model: Annotated[str | None, typer.Argument(help="Hugging Face LLaVA folder.")] = None,
    data: Annotated[str | None, typer.Argument(help="JSON file with phrases and boxes.")] = None,
    images: Annotated[str | None, typer.Option(help="Folder with COCO's pictures.")] = None,
    config: MaybeConfig = None,
    shard: Annotated[int | None, typer.Option(help="Answer only the shard of this number, from 0.")] = None,
    merge: Annotated[bool, typer.Option("--merge", help="Only merge and score what is answered.")] = False,
    shards: Annotated[int, typer.Option(help="How many shards --shard counts.")] = 1,
    batch: Annotated[int, typer.Option(help="Rows in one generation; 1 is the reference.")] = 16,
    baseline: Annotated[str | None, typer.Option(help="A second folder, shown beside the first.")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer in tokens.")] = 100,
    template: Template = None,
    device: Device = "auto",
    precision: Precision = "auto",
    work_dir: Annotated[
        str | None, typer.Option(help="Where answers and scores go; left out: refcoco/<data>-<model>.")
    ] = None,
) -> None:
    """Find what phrases name (RefCOCO, +, g) and score it; a second start does only what is missing."""
    values = {
        "model": model, "data": data, "images": images, "shards": shards, "batch": batch, "baseline": baseline,
        "max_new_tokens": max_new_tokens, "template": template, "device": device, "precision": precision,
    }  # fmt: skip
    raise typer.Exit(_evaluate("refcoco", config, values, work_dir, shard, merge))


@app.command()
def refcoco_data(
    annotations: Annotated[Path, typer.Argument(help="Folder with REFER's refcoco, refcoco+ and refcocog.")],
    output: Annotated[Path, typer.Argument(help="Folder to write to.")],
    limit: Annotated[int, typer.Option(help="Most records of each kind to learn from.", min=1)] = 70_000,
    seed: Annotated[int, typer.Option(help="What they are drawn by.")] = 0,
    mix: Annotated[Path | None, typer.Option(help="Records to train on together with these (JSON list).")] = None,
) -> None:
    """Make RefCOCO's evaluation files and training records from REFER's annotations."""
    from llava.entry import guarded
    from llava.evals.refcoco.prepare import prepare
    from llava.plain_text import plain

    def work() -> None:
        for line in prepare(annotations, output, limit, seed, mix):
            typer.echo(plain(line))

    raise typer.Exit(guarded(work, on_signal="stop"))


def _evaluate(
    benchmark: str, config: str | None, values: dict[str, Any], work_dir: str | None, shard: int | None, merge: bool
) -> int:
    from llava.entry import guarded
    from llava.evals.command import from_config, rank_of, start

    if config is not None:
        return from_config(benchmark, config, shard, merge) if values["model"] is None else _refuse("--config", "MODEL")
    return guarded(
        lambda: start(_eval_job({**values, "benchmark": benchmark}, work_dir), shard, merge=merge),
        on_signal="remember",
        rank=rank_of(shard),
    )


def _eval_job(values: dict[str, Any], work_dir: str | None) -> EvalJob:
    from llava.config import EvalJob, parse
    from llava.errors import ConfigError

    benchmark, model, data = values["benchmark"], values["model"], values["data"]
    if model is None or data is None:
        raise ConfigError(f"{benchmark} takes --config FILE, or MODEL DATA", f"llava {benchmark} x-hf FILE")
    place = work_dir or str(Path(benchmark) / f"{Path(data).stem}-{Path(model).resolve().name}")
    job = parse({"kind": "eval", "run_dir": place, "eval": values}, "the command line")
    assert isinstance(job, EvalJob)
    return job


@app.command()
def chat(
    model: Annotated[str, typer.Argument(help="Hugging Face LLaVA folder.")],
    question: Annotated[str | None, typer.Argument(help="Left out: talk line by line.")] = None,
    image: Annotated[list[str] | None, typer.Option(help="Picture to look at; repeatable.", metavar="FILE")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer in tokens.", min=1)] = 512,
    temperature: Annotated[float, typer.Option(help="0: the likeliest answer; higher: freer.", min=0.0)] = 0.0,
    seed: Annotated[int, typer.Option(help="Seed of free answers.")] = 0,
    template: Template = None,
    device: Device = "auto",
    precision: Precision = "auto",
    four_bit: Annotated[bool, typer.Option("--4-bit", help="Language model in 4 bits (NF4).")] = False,
    eight_bit: Annotated[bool, typer.Option("--8-bit", help="Language model in 8 bits (LLM.int8).")] = False,
) -> None:
    """Ask about pictures; line by line, /help lists what else there is."""
    from llava.chat import Style, check_choices
    from llava.chat import chat as talk
    from llava.entry import guarded

    def work() -> None:
        check_choices(device, precision, template)
        style = Style(max_new_tokens, temperature, seed)
        talk(
            model, image or (), question, device=device, precision=precision, template=template,
            bits=4 if four_bit else 8 if eight_bit else None, style=style,
        )  # fmt: skip

    if four_bit and eight_bit:
        raise typer.Exit(_refuse("--4-bit", "--8-bit"))
    raise typer.Exit(guarded(work, on_signal="default"))


@data_app.command("check")
def data_check(
    target: Annotated[
        str | None,
        typer.Argument(
            metavar="[RECIPE]",
            help="A recipe, a run's folder, a config.yaml (-: standard input), a .tsv, or a folder of RefCOCO files.",
        ),
    ] = None,
    sets: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a value of the recipe; repeatable.")
    ] = None,
    records: Annotated[
        str | None, typer.Option(metavar="FILE", help="Instead of RECIPE: records by themselves.")
    ] = None,
    images: Annotated[str | None, typer.Option(metavar="FOLDER", help="Where their pictures are.")] = None,
    tokenizer: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="Language model to measure lengths with.")
    ] = None,
    template: Template = None,
    max_length: Annotated[int, typer.Option(help="Longest text in tokens.", min=1)] = 1472,
    processes: Annotated[int | None, typer.Option(help="How many open pictures; left out: one a core.", min=1)] = None,
    report: Annotated[str, typer.Option(metavar="FOLDER", help="Where the report goes.")] = "data-check",
) -> None:
    """Look for every file that a recipe reads, open every picture, measure every conversation."""
    from llava.entry import guarded

    def work() -> None:
        from llava.data.check.run import check
        from llava.data.check.sources import by_hand, find

        if target is None:
            sources = by_hand(records, images, tokenizer, template, max_length)
        else:
            sources = find(target, [word for one in sets or () for word in ("--set", one)], images)
        check(sources, Path(report), processes)

    if target is not None and records is not None:
        raise typer.Exit(_refuse("RECIPE", "--records"))
    raise typer.Exit(guarded(work, on_signal="default"))


def _refuse(one: str, other: str) -> int:
    from llava.errors import EXIT_BAD_REQUEST

    typer.echo(f"give {one} or {other}, not both", err=True)
    return EXIT_BAD_REQUEST
