"""The report: readable text, everything as JSON, and a shell script for what links can mend."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from shlex import quote
from typing import Any

from llava.data.check.findings import Finding, Section
from llava.run_folder import write_aside

SHOWN = 10
"""Findings of one kind and cure that the text shows; the JSON has all."""


def write(folder: Path, sections: list[Section]) -> list[Path]:
    """Write ``report.txt``, ``report.json`` and, where links mend anything, ``cure.sh``.

    Returns:
        what was written.

    Raises:
        OSError: the folder cannot be written to.
    """
    document = {
        "grave": sum(section.grave for section in sections),
        "sections": [
            {**asdict(section), "findings": [asdict(finding) for finding in section.findings]} for section in sections
        ],
    }
    files = {"report.txt": as_text(sections), "report.json": json.dumps(document, indent=1, ensure_ascii=False) + "\n"}
    links = [link for section in sections for link in section.links]
    (folder / "cure.sh").unlink(missing_ok=True)  # of an earlier check
    if links:
        files["cure.sh"] = "".join(["#!/bin/sh\n", *(f"ln -s -- {quote(to)} {quote(at)}\n" for to, at in links)])
    for name, text in files.items():
        write_aside(folder / name, text)
    return [folder / name for name in files]


def as_text(sections: list[Section]) -> str:
    """What a person reads."""
    return "\n".join("\n".join(_section(section)) + "\n" for section in sections)


def _section(section: Section) -> list[str]:
    lines = [section.title]
    for name, value in section.numbers.items():
        if isinstance(value, dict):
            lines += [f"  {name}:"] * bool(value) + [f"    {key}: {_number(part)}" for key, part in value.items()]
        else:
            lines.append(f"  {name}: {_number(value)}")
    kinds = Counter((finding.grave, finding.kind, finding.cure) for finding in section.findings)
    # What stands in the way comes first.
    for (grave, kind, cure), count in sorted(kinds.items(), key=lambda item: not item[0][0]):
        lines.append(f"  {'!' if grave else '-'} {kind}: {count:,}" + (f"  ({cure})" if cure else ""))
        same = [f for f in section.findings if (f.grave, f.kind, f.cure) == (grave, kind, cure)]
        lines += [f"      {_one(finding)}" for finding in same[:SHOWN]]
        lines += [f"      ... and {count - SHOWN:,} more, all in report.json"] if count > SHOWN else []
    return lines


def _one(finding: Finding) -> str:
    what = finding.what.replace("\n", "\n        ")
    return what if finding.where in what else f"{finding.where}: {what}"


def _number(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int | float) else str(value)
