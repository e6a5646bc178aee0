"""Where the recipes and manifests that come with the package lie: beside the code, or inside the wheel."""

from __future__ import annotations

from pathlib import Path

_HOUSE = Path(__file__).resolve().parent


def recipes_folder() -> Path:
    """Folder of the shipped recipes."""
    return _shipped("jobs")


def manifests_folder() -> Path:
    """Folder of the shipped Kubernetes manifests."""
    return _shipped("manifests")


def _shipped(name: str) -> Path:
    inside_wheel = _HOUSE / f"_{name}"
    return inside_wheel if inside_wheel.is_dir() else _HOUSE.parent / name


def recipe_names() -> list[str]:
    """Names of the shipped recipes, by which they can be submitted."""
    folder = recipes_folder()
    return sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml"))
