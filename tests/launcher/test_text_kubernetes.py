"""What goes into pods and objects is what was written: nothing is put in the place of $(NAME), digits are ASCII."""

from __future__ import annotations

from typing import Any

import pytest

from launcher.backends.kubernetes.quantities import parse_cpu, parse_size
from launcher.backends.kubernetes.settings import find_problems
from launcher.backends.kubernetes.syntax import is_absolute, is_image, is_label_key, is_label_value, is_subdomain
from launcher.backends.kubernetes.template import literal
from launcher.tree import Tree
from tests.odd_texts import odd_texts


def expand(text: str, variables: dict[str, str]) -> str:
    """What a container gets of a value or an argument (k8s.io/kubernetes, third_party/forked/golang/expansion)."""
    result, at = "", 0
    while at < len(text):
        if text[at] != "$" or at + 1 == len(text):
            result, at = result + text[at], at + 1
        elif text[at + 1] == "$":
            result, at = result + "$", at + 2
        elif text[at + 1] == "(" and ")" in text[at:]:
            end = text.index(")", at)
            name = text[at + 2 : end]
            result, at = result + variables.get(name, f"$({name})"), end + 1
        else:
            result, at = result + text[at : at + 2], at + 2
    return result


def test_nothing_is_put_in_the_place_of_a_variable() -> None:
    assert expand("$(NAME) $$(NAME) $NAME $", {"NAME": "x"}) == "x $(NAME) $NAME $"
    for text in odd_texts(1500, seed=11):
        assert expand(literal(text), {"NAME": "x", "touch INJECTED": "y"}) == text


@pytest.mark.parametrize("odd", ["\n", "\r", "\0", "\u2028", "\x85", "é", "９", " ", "\x1b"])
def test_names_and_labels_are_whole_texts_of_their_letters(odd: str) -> None:
    """A check that looks at a first line alone, or at letters and digits of every script, lets these through."""
    for fits in (is_subdomain, is_label_value, is_label_key):
        assert fits("a1") and not fits(f"a{odd}1") and not fits(f"a1{odd}") and not fits(f"{odd}a1")
    if odd not in ("é", "９"):
        assert not is_image(f"registry.io/a{odd}b") and (odd == " " or not is_absolute(f"/a{odd}b"))


@pytest.mark.parametrize("text", ["９", "٤٨٠", "1e3", "9" * 40, "1_000", "0x10", "inf", "nan", "-1", "+1"])
def test_amounts_are_numbers_as_the_server_reads_them(text: str) -> None:
    for parse, unit in ((parse_cpu, ""), (parse_cpu, "m"), (parse_size, "Gi"), (parse_size, "G")):
        with pytest.raises(ValueError, match="is needed"):
            parse(text + unit)


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ({"tolerations": [{"key": "a b", "operator": "Exists"}]}, "tolerations.0.key is 'a b'; needed: "),
        ({"tolerations": [{"key": "a", "value": "b\nc"}]}, "tolerations.0.value is 'b\\nc'; needed: "),
        ({"image": "a\0b"}, "kubernetes.image is 'a\\x00b'; needed: "),
        ({"runs": "/a\nb"}, "kubernetes.runs is '/a\\nb'; needed: "),
        ({"labels": {"a\n": "b"}}, "'a\\n' is no key"),
        ({"node_selector": {"a": "b\n"}}, "kubernetes.node_selector.a is 'b\\n'; needed: "),
        ({"secrets": {"A=B": "name/key"}}, "'A=B' is no name of an environment variable"),
        ({"memory": "４Gi"}, "kubernetes.memory is '４Gi'; "),
    ],
)
def test_a_text_that_the_server_would_refuse_is_refused_here(place: dict[str, Any], words: str) -> None:
    tree = Tree()
    for key, value in place.items():
        tree.set((key,), value, "here")
    problems = [problem.message for problem in find_problems(tree)]
    assert len(problems) == 1 and words in problems[0]
