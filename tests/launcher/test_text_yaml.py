"""Plans, configurations and objects are YAML: what stands in them comes back as it was, and kubectl reads the same."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from launcher.backends.kubernetes.text import parse_objects, write_objects
from launcher.plan import Plan, Step
from launcher.plan_text import load_plan, render
from launcher.run_folder import write_aside
from launcher.yaml_text import dump
from tests.odd_texts import odd_texts

LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
LETTERS = [chr(number) for number in (*range(1, 0x250), *range(0x2000, 0x2070), 0xFEFF, 0xFFFE, 0x1F600, 0x10FFFF)]
TEXTS = [
    *odd_texts(800, seed=7),
    *LETTERS,
    *(f"a{letter}b\n" for letter in LETTERS),
    "\t- a: 'b\n\n\n",
    " \n",
    "x " * 900,
]


def test_values_come_back_from_a_file_as_they_were(tmp_path: Path) -> None:
    values: dict[str, Any] = {f"k{number}": [text, {text: number}] for number, text in enumerate(TEXTS)}
    write_aside(tmp_path / "values.yaml", dump(values))
    assert yaml.load((tmp_path / "values.yaml").read_text(encoding="utf-8"), Loader=LOADER) == values


def test_a_plan_comes_back_as_it_was(tmp_path: Path) -> None:
    environment = {f"V{number}": text for number, text in enumerate(TEXTS)}
    settings = {"comment": TEXTS[40], "setup": TEXTS[:200], "extra": dict.fromkeys(TEXTS[200:300], 1.5)}
    step = Step(
        name="train", stage="", kind="gang", nodes=2, processes_per_node=1, gpus_per_node=0, per_node=1, parallel=2,
        threads_per_process=None, command=tuple(TEXTS[:300]), environment=environment, retries=2, grace_s=60,
    )  # fmt: skip
    configs = {f"/runs/{text}": {"seed": number, "text": text} for number, text in enumerate(TEXTS[:300])}
    for folder in ("/runs/a b", "/runs/it's [a] *", "/runs/\u2028\x85\u00a0", "/runs/1e5", "/runs/漢 🙂: #"):
        plan = Plan("y", "0123456789012345", Path(folder), "slurm", settings, (step,), configs, ("null",), Path("/~"))
        path = tmp_path / "plan.yaml"
        write_aside(path, render(plan))
        assert load_plan(path) == plan
        assert render(load_plan(path)) == render(plan), "the same bytes"


def test_objects_come_back_as_they_were_and_mean_the_same_to_kubectl() -> None:
    objects: list[dict[str, Any]] = [{"env": [{"name": "A", "value": text}], text: "key"} for text in TEXTS]
    written = write_objects(objects)
    assert parse_objects(written) == objects
    plain = [
        event.value
        for event in yaml.parse(written, Loader=LOADER)
        if isinstance(event, yaml.ScalarEvent) and event.implicit[0] and not event.style
    ]
    assert plain.count("name") == len(TEXTS) and [text for text in plain if is_no_text_in_go(text)] == []


def is_no_text_in_go(text: str) -> bool:
    """Whether the YAML reader of kubectl takes a text without quotes for something else (go-yaml, resolve.go)."""
    words = (
        "true",
        "false",
        "yes",
        "no",
        "on",
        "off",
        "y",
        "n",
        "null",
        "~",
        "",
        "<<",
        ".inf",
        "-.inf",
        "+.inf",
        ".nan",
    )
    if text.lower() in words:
        return True
    bare = text.replace("_", "")
    number = r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?0([bB][01]+|[oO]?[0-7]+|[xX][0-9a-fA-F]+)"
    return re.fullmatch(number, bare) is not None
