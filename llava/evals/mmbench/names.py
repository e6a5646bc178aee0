"""Under which names do published tables list categories? The files' own names, and the tables' abbreviations."""

from __future__ import annotations

ABBREVIATIONS = {
    "coarse_perception": "CP",
    "finegrained_perception (instance-level)": "FP-S",
    "finegrained_perception (cross-instance)": "FP-C",
    "logic_reasoning": "LR",
    "relation_reasoning": "RR",
    "attribute_reasoning": "AR",
    "sketch_reasoning": "Sketch Reasoning",
    "scenery_building": "Scenery & Building",
    "food_clothes": "Food & Clothes",
    "historical_figure": "Historical Figure",
    "traditional_show": "Traditional Show",
    "calligraphy_painting": "Calligraphy Painting",
    "cultural_relic": "Cultural Relic",
}
"""MMBench's six level-2 abilities and CCBench's seven categories (xtuner/tools/mmbench.py, v0.1.23)."""


def with_abbreviation(category: str) -> str:
    """A category as the file names it and, where tables name it otherwise, that name."""
    short = ABBREVIATIONS.get(category)
    return f"{category} [{short}]" if short else category
