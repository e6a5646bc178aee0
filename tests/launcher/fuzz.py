"""Recipes, profiles and options made at random from a seed, and what preparing a run comes to with each.

As a program it is the nightly mode: ``python -m tests.launcher.fuzz 20000 [SEED]`` prints what went wrong.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import string
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

LONGEST_S = 5.0
STUB_PYTHON = "it's a $PYTHON/python"
"""Where scripts find their Python, below the folder of all cases."""
PLANTED = ("$(touch hacked)", "`touch hacked`", "'; touch hacked #", '"; touch hacked #', "x\ntouch hacked #", "$HOME")
_ODD_TEXT = (
    "", " ", "~", "~nosuch/x", "/", ".", "..", "a\tb", "a\nb", "a\rb", "-x",
    "--flag", "%j", "%A_%a", "{shard}", "ü模型",
    "\u2028", "\x1b[31m", "\x7f", "null", "yes", "0x10", "1_000", "12:30:00", "2024-12-24", "1e999", ".inf",
    ".nan", "\0",
    "${run.dir}", "${seed}", "${nope}", "${env:HOME}", "${env:NOPE:-x}", "${data.records}", "${latest:x}", "$${x}",
    "${",
    "a" * 300, "*x", "&x", "!!int", "{}", "[]", "#", "'", '"', "\\", "it's", *PLANTED,
)  # fmt: skip
_ODD_NUMBERS = (0, 1, -1, 2, 7, 64, 10**6, 10**9, 10**12, 2**63, 10**30, 0.5, 1e300, float("inf"), float("nan"))
_ODD_YAML = (
    "2024-13-45", "!!int abc", "!!bool maybe", "!!timestamp x", "!!binary x", "!!set {a}", "!!python/name:os.system",
    "0b_",
    "9" * 5000, "0x" + "f" * 5000, "*undefined", "&a [*a]", "{a: b", "[[[[", "? [a]\n: b", "<<: {a: b}", "@", "`", "\t",
    "&a [&b [x, x], *b, *b]", "!foo bar", "2024-12-24T12:00:00Z", "- a", "|", ">\n a",
)  # fmt: skip


@dataclass
class Case:
    """One request: files, and what is asked."""

    number: int
    recipe: str
    profiles: str = ""
    on: str | None = None
    nodes: int | None = None
    gpus: int | None = None
    name: str | None = None
    sets: list[str] = field(default_factory=list)


@dataclass
class Result:
    """What became of a case."""

    code: int
    """Exit code; -1: an exception that is not the launcher's own, -2: no end within the limit."""
    message: str = ""
    backend: str = ""
    rendered: str = ""
    took_s: float = 0.0


def make_case(seed: int, number: int) -> Case:
    """Draw a case: always the same for the same seed and number."""
    return _Maker(random.Random(f"{seed}/{number}")).case(number)


class _Maker:
    def __init__(self, random_: random.Random) -> None:
        self.random = random_
        self.tame = random_.random() < 0.6
        """Only values of the right type, so that most such cases get as far as the rendered text."""

    def case(self, number: int) -> Case:
        draw = self.random
        kind = draw.choice(["train", "train", "eval", "convert", "toy", "pipeline"])
        case = Case(number, self.text_of(self.recipe(kind)))
        if draw.random() < 0.6:
            backend = draw.choice(["local", "slurm", "slurm", "kubernetes"])
            case.profiles, case.on = self.text_of(self.profiles(backend)), "night"
        else:
            case.on = draw.choice([None, "slurm", "slurm", "kubernetes", "local"])
        if draw.random() < 0.2:
            odd = [] if self.tame else [0, -1, 10**9, 10**25]
            case.nodes = draw.choice([1, 2, 8, 64, *odd])
        if draw.random() < 0.2:
            odd = [] if self.tame else [-1, 72, 10**6, 10**25]
            case.gpus = draw.choice([0, 1, 8, *odd])
        if self.tame:
            return case
        if draw.random() < 0.1:
            case.name = draw.choice(["a", "run-1", *_ODD_TEXT]).replace("\0", "")
        for _ in range(draw.choice([0, 0, 0, 1, 2])):
            case.sets.append(self.option(kind, case.on))
        return case

    def recipe(self, kind: str) -> dict[str, Any]:
        values = self.good_recipe(kind)
        from launcher.recipe_schema import recipe_schema

        for _ in range(self.random.choice([0, 1, 1, 2, 4])):
            self.change(values, recipe_schema(kind))
        return values

    def good_recipe(self, kind: str) -> dict[str, Any]:
        parts = {"language": {"path": "."}, "vision": {"path": "."}}
        train = {"kind": "train", "model": parts, "data": {"records": "records.json", "images": "."}}
        evaluation = {"kind": "eval", "eval": {"model": ".", "data": "records.json", "shards": 2}}
        convert = {"kind": "convert", "convert": {"source": ".", "output": "out"}}
        toy = {"kind": "toy", "toy": {"data": "d", "bases": "b", "cache": "c"}}
        pipeline = {"kind": "pipeline", "stages": {"learn": train, "merge": convert, "score": evaluation}}
        recipes: dict[str, Any] = {
            "train": train, "eval": evaluation, "convert": convert, "toy": toy, "pipeline": pipeline,
        }  # fmt: skip
        values: dict[str, Any] = json.loads(json.dumps(recipes[kind]))
        if self.random.random() < 0.5:
            values["environment"] = {"A": self.odd_text(), "B": self.random.choice(PLANTED)}
        return values

    def profiles(self, backend: str) -> dict[str, Any]:
        from launcher.profile_schema import profile_schema

        profile: dict[str, Any] = {"backend": backend}
        if self.random.random() < 0.3:
            profile["environment"] = {"C": self.odd_text()}
        for _ in range(self.random.choice([0, 1, 2, 3])):
            self.change(profile, profile_schema(backend))
        values: dict[str, Any] = {"profiles": {"night": profile}}
        if not self.tame and self.random.random() < 0.1:
            values[self.random.choice(["default", "profiles", "x"])] = self.odd_value()
        return values

    def change(self, values: Any, schema: Any) -> None:
        """Put something odd at a key that there is, or seldom at one that there is not."""
        keys = self.keys(schema)
        key = self.random.choice(keys)
        if not self.tame and self.random.random() < 0.1:
            key = (*key[: self.random.randrange(len(key) + 1)], self.random.choice(["x", "", "a.b", "A=B", "é", "0"]))
        node = values
        for part in key[:-1]:
            node = node.setdefault(part, {}) if isinstance(node, dict) else None
            if not isinstance(node, dict):
                return
        node[key[-1]] = self.fitting_value(schema, key) if self.tame or self.random.random() < 0.5 else self.odd_value()

    def keys(self, schema: Any, key: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
        """Every key of a schema, groups among them."""
        found = [key] if key else []
        for option in schema.get("anyOf", [schema]):
            for name, child in option.get("properties", {}).items():
                found += self.keys(child, (*key, name))
            if isinstance(option.get("additionalProperties"), dict) and "properties" not in option:
                found.append((*key, self.random.choice(["a", "A", "b-c", "x y", "a$(touch hacked)"])))
        return found

    def fitting_value(self, schema: Any, key: tuple[str, ...]) -> Any:
        """A value of the right type, most often."""
        from launcher.schema import find

        found = find(schema, key) or {}
        option = self.random.choice(found.get("anyOf", [found]))
        if "enum" in option:
            return self.random.choice(option["enum"])
        kinds = {
            "integer": self.random.choice([1, 2, 8, 1000]), "number": self.random.choice([0.5, 1, 2]),
            "string": self.odd_text(), "boolean": True, "null": None, "array": [self.odd_text()],
            "object": {"a": self.odd_text()},
        }  # fmt: skip
        return kinds.get(option.get("type"), self.odd_text())

    def odd_text(self) -> str:
        draw = self.random
        if self.tame and draw.random() < 0.5:
            return draw.choice(PLANTED)
        if draw.random() < 0.2:
            return "".join(draw.choice(string.printable) for _ in range(draw.randrange(12)))
        return draw.choice(_ODD_TEXT)

    def odd_value(self) -> Any:
        draw = self.random
        choice = draw.randrange(8)
        if choice < 3:
            return self.odd_text()
        if choice == 3:
            return draw.choice(_ODD_NUMBERS)
        if choice == 4:
            return [self.odd_value() for _ in range(draw.randrange(3))]
        if choice == 5:
            return {self.odd_text(): self.odd_value() for _ in range(draw.randrange(3))}
        return draw.choice([None, True, False])

    def text_of(self, values: dict[str, Any]) -> str:
        """YAML of the values; sometimes with a line, a character or an end that is wrong."""
        text: str = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
        draw = self.random
        choice = draw.randrange(12)
        lines = text.splitlines(keepends=True)
        if self.tame:
            return text
        if choice == 0:
            lines.insert(draw.randrange(len(lines) + 1), f"odd: {draw.choice(_ODD_YAML)}\n")
        elif choice == 1:
            place = draw.randrange(len(lines))
            lines[place] = lines[place].partition(":")[0] + f": {draw.choice(_ODD_YAML)}\n"
        elif choice == 2:
            at = draw.randrange(len(text) + 1)
            return text[:at] + draw.choice(string.printable + "\0\ufeff\x85") + text[at:]
        elif choice == 3:
            return text[: draw.randrange(len(text) + 1)]
        return "".join(lines)

    def option(self, kind: str, on: str | None) -> str:
        from launcher.profile_schema import profile_schema
        from launcher.recipe_schema import recipe_schema

        draw = self.random
        key = ".".join(draw.choice(self.keys(recipe_schema(kind))))
        if draw.random() < 0.3 and on in ("slurm", "kubernetes"):
            key = ".".join(draw.choice(self.keys(profile_schema(str(on), shared=False))))
        if draw.random() < 0.1:
            key = draw.choice(["", ".", "a..b", "stages.learn.seed", "stages", "x" * 3000, "environment.A=B"])
        value = draw.choice([self.odd_text(), str(draw.choice(_ODD_NUMBERS)), draw.choice(_ODD_YAML), "\udcff"])
        return f"{key}={value}".replace("\0", "")


def run_case(case: Case, folder: Path) -> Result:
    """Prepare and render a case in this process, within the limit."""
    from launcher.cli import _overrides
    from launcher.errors import LauncherError
    from launcher.explain import plan_text
    from launcher.runs import prepare

    (folder / "fuzz.yaml").write_text(case.recipe, encoding="utf-8", errors="surrogateescape")
    (folder / "llavajob.yaml").write_text(case.profiles, encoding="utf-8", errors="surrogateescape")
    start = time.process_time()
    signal.setitimer(signal.ITIMER_PROF, LONGEST_S)
    try:
        prepared = prepare("fuzz.yaml", case.on, case.name, _overrides(case.nodes, case.gpus, case.sets))
        plan_text(prepared)
        prepared.rendered.encode()
        result = Result(0, backend=prepared.profile.backend, rendered=prepared.rendered)
    except LauncherError as error:
        code = error.exit_code if error.message and "Traceback" not in error.message else -1
        result = Result(code, error.message)
    except _TooLong:
        result = Result(-2, traceback.format_exc())
    except Exception:
        result = Result(-1, traceback.format_exc())
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    result.took_s = time.process_time() - start
    return result


class _TooLong(BaseException):
    """The limit is over."""


def _stop(number: int, frame: Any) -> None:
    raise _TooLong


def _work(given: tuple[int, list[int], str]) -> list[dict[str, Any]]:
    """Run cases in a folder of their own; return those that did not end as a request may, and what was rendered."""
    seed, numbers, place = given
    folder = Path(tempfile.mkdtemp(dir=place))
    home = folder / "home"
    home.mkdir()
    (folder / "records.json").write_text("[]")
    (folder / "out").mkdir()
    os.chdir(folder)
    os.environ.update(HOME=str(home), LLAVAJOB_RUNS=str(folder / "runs"))
    signal.signal(signal.SIGPROF, _stop)
    # Scripts that are executed start this in place of Python; its path is one more text to quote.
    sys.executable = str(Path(place) / STUB_PYTHON)
    sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    found = []
    for number in numbers:
        case = make_case(seed, number)
        result = run_case(case, folder)
        found.append({"number": number, "case": asdict(case), "result": asdict(result)})
    return found


def run_all(count: int, seed: int, place: Path, workers: int = 2) -> Iterator[tuple[Case, Result]]:
    """Run cases 0 to count in a few processes, and yield each with its result."""
    parts = [list(range(start, count, workers * 4)) for start in range(workers * 4)]
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        for found in pool.imap_unordered(_work, [(seed, part, str(place)) for part in parts if part]):
            for one in found:
                yield Case(**one["case"]), Result(**one["result"])


def main() -> int:
    """Run the cases that were asked for and print the faults."""
    count = int(sys.argv[1])
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else 1
    codes: dict[int, int] = {}
    with tempfile.TemporaryDirectory() as place:
        for case, result in run_all(count, seed, Path(place)):
            codes[result.code] = codes.get(result.code, 0) + 1
            if result.code not in (0, 2):
                print(f"--- case {case.number}, exit {result.code}, {result.took_s:.1f} s\n{case}\n{result.message}")
    print(f"{count} cases of seed {seed}: exit codes {dict(sorted(codes.items()))}")
    return int(bool(set(codes) - {0, 2}))


if __name__ == "__main__":
    sys.exit(main())
