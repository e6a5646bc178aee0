"""Every scoring rule against cases worked out by hand."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest

from llava.evals.mmbench.letters import vlmevalkit, xtuner
from llava.evals.mmbench.rows import read
from llava.evals.mmbench.score import Scores, judge, score
from tests.llava.tiny_hf import question_rows, write_tsv

OPTIONS = {"A": "a red car", "B": "two dogs", "C": "the sea", "D": "nothing"}


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("B", "B"),
        ("B.", "B"),
        ("the answer: C", "C"),
        ("Answer: B", "A"),  # the first run of capitals is "A" of "Answer"
        ("Choice B", "C"),
        ("Both", "B"),
        ("Cannot tell", "C"),
        ("AB", "AB"),  # a run of two letters equals no answer
        ("BBC", "BBC"),
        ("E", ""),
        ("b", ""),
        ("", ""),
    ],
)
def test_xtuner_takes_the_first_run_of_capitals(answer: str, letter: str) -> None:
    assert xtuner(answer, OPTIONS) == letter


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("B", "B"),
        ("(B)", "B"),
        ("B.", "B"),
        ("**B**", "B"),
        ("{B}", "B"),
        ("Answer: B", "B"),
        ("I think the answer here is probably B", "B"),
        ("Both", ""),
        ("A or B", ""),  # two letters decide nothing, and neither text is in the answer
        ("B B", "B"),
        ("", ""),
        ("b", ""),
    ],
)
def test_vlmevalkit_takes_a_lone_letter(answer: str, letter: str) -> None:
    assert vlmevalkit(answer, OPTIONS) == letter


def test_vlmevalkit_wants_the_lone_letter_among_the_last_four_tokens() -> None:
    assert vlmevalkit("B is what I", OPTIONS) == "B"
    assert vlmevalkit("B is what I see", OPTIONS) == ""
    assert vlmevalkit("B is what I see B", OPTIONS) == ""  # its first occurrence counts


def test_vlmevalkit_counts_an_article_as_the_letter_a() -> None:
    assert vlmevalkit("This is A dog", OPTIONS) == "A"


def test_vlmevalkit_knows_refusals_and_z() -> None:
    assert vlmevalkit("Z", OPTIONS) == ""
    assert vlmevalkit("Cannot determine the answer", OPTIONS) == ""
    assert vlmevalkit("I can't process this file. B", OPTIONS) == ""
    assert vlmevalkit("Z nothing", OPTIONS) == ""  # Z stands before the text rule
    assert vlmevalkit("Failed to obtain answer via API. B", OPTIONS) == ""


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("The answer is B because A shows no dogs at all", "B"),
        ("the correct answer is **C** as A and B are wrong", "C"),
        ("The Answer Is D, not A", "D"),
        ("the answer is b, not A, as one can see", "B"),
        ("the answer is a. Not B, as one can see", "A"),
        # Upstream reads a letter out of these words.
        ("the answer is clearly out of reach for anyone who looks", ""),
        ("The answer is a thing that nobody has ever seen", ""),
        ("The answer is Dogs, and nobody has ever seen them", ""),
    ],
)
def test_vlmevalkit_reads_answer_is(answer: str, letter: str) -> None:
    assert vlmevalkit(answer, OPTIONS) == letter


def test_vlmevalkit_reads_any_option_after_answer_is() -> None:
    assert vlmevalkit("The answer is E because A and B are wrong", {**OPTIONS, "E": "rain"}) == "E"
    assert vlmevalkit("The answer is E because A and B are wrong", OPTIONS) == ""


def test_vlmevalkit_matches_one_options_text() -> None:
    assert vlmevalkit("Two Dogs!", OPTIONS) == "B"
    assert vlmevalkit("two dogs at the sea", OPTIONS) == ""
    # More than twice the options' 31 characters.
    assert vlmevalkit("two dogs" + "." * 54, OPTIONS) == "B"
    assert vlmevalkit("two dogs" + "." * 55, OPTIONS) == ""


def scores(folder: Path, predictions: dict[int, str], scorer: str = "vlmevalkit") -> Scores:
    """Questions 0 (2 options), 1 (3) and 2 (2); the right answers are 0: A B, 1: A C B, 2: B A."""
    rows = question_rows(0, ["x", "y"]) + question_rows(1, ["x", "y", "z"]) + question_rows(2, ["x", "y"], answer=1)
    table = read(write_tsv(folder / "data.tsv", rows))
    right = {row.index: row.answer for row in table.rows}
    return score(judge(table, {**right, **predictions}, scorer))


def test_all_right(tmp_path: Path) -> None:
    every = scores(tmp_path, {})
    assert (every.circular, every.vanilla, every.vanilla_0) == (1, 1, 1)
    assert every.by_category == {"colour": 1, "count": 1}
    assert every.by_l2_category == {"perception": 1, "reasoning": 1}


def test_one_wrong_copy_costs_the_question(tmp_path: Path) -> None:
    some = scores(tmp_path, {1_000_001: "A"})
    assert some.circular == 2 / 3
    assert some.vanilla == 6 / 7
    assert some.vanilla_0 == 1
    # Question 1 is "colour" and "perception"; question 2 is "count" and "perception".
    assert some.by_category == {"colour": 0, "count": 1}
    assert some.by_l2_category == {"perception": 0.5, "reasoning": 1}


def test_the_first_copy_of_question_0_is_no_main_row(tmp_path: Path) -> None:
    some = scores(tmp_path, {1_000_000: "A"})
    assert some.vanilla_0 == 1
    assert some.circular == 2 / 3


def test_the_same_letter_always_scores_nothing_in_circular(tmp_path: Path) -> None:
    some = scores(tmp_path, dict.fromkeys([0, 1_000_000, 1, 1_000_001, 2_000_001, 2, 1_000_002], "A"))
    assert some.circular == 0
    assert some.vanilla == 3 / 7
    assert some.vanilla_0 == 2 / 3


def test_the_two_scorers_differ_where_their_rules_do(tmp_path: Path) -> None:
    answers = {0: "Answer: A", 1_000_000: "Answer: B"}
    assert scores(tmp_path, answers, "vlmevalkit").circular == 1
    assert scores(tmp_path, answers, "xtuner").circular == 2 / 3


def by_hand(rows: list[dict[str, str]], texts: dict[int, str]) -> dict[str, float]:
    """XTuner's score as its facts tell it: a question counts when the first capitals of all its rows are right."""
    right = {}
    for row in rows:
        run = re.search("[A-D]+", texts[int(row["index"])])
        hit = run is not None and run.group() == row["answer"]
        right.setdefault(int(row["index"]) % 1_000_000, []).append(hit)
    kinds = {int(row["index"]): row["l2-category"] for row in rows if int(row["index"]) < 1_000_000}
    found = {"average": sum(map(all, right.values())) / len(right)}
    for kind in set(kinds.values()):
        hits = [all(right[index]) for index, of in kinds.items() if of == kind]
        found[kind] = sum(hits) / len(hits)
    return found


@pytest.mark.parametrize("seed", range(5))
def test_circular_scores_are_xtuners_whatever_is_answered(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    rows = [row for n in range(40) for row in question_rows(n, ["x", "y", "z", "None"][: 2 + n % 3], answer=n % 2)]
    rng.shuffle(rows)
    table = read(write_tsv(tmp_path / "data.tsv", rows))
    words = ["Answer: {}", "{}", "{}.", "Both", "", "{} or D", "the letter {}"]
    texts = {row.index: rng.choice([*words, *["{}"] * 30]).format(row.answer) for row in table.rows}
    found, expected = score(judge(table, texts, "xtuner")), by_hand(rows, texts)
    assert 0 < expected["average"] < 1
    assert found.circular == expected.pop("average")
    assert found.by_l2_category == expected
