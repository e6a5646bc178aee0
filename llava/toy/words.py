"""What can be said about a scene: its caption, the questions about it with their options, and texts without a picture.

A question's form is LLaVA's and XTuner's for MMBench: hint, question, one option a line, and the instruction of
:data:`INSTRUCTION` at the end, so that what a model learns from is what it is asked in the benchmark.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

SHAPES = ("circle", "square", "triangle", "star", "cross", "diamond")
COLOURS = ("red", "green", "blue", "yellow", "purple", "orange")
GROUNDS = ("white", "black", "grey", "brown", "pink")
PLACES = ("left", "right", "top", "bottom")
NUMBERS = ("one", "two", "three", "four", "five")
WORDS = ("CAT", "DOG", "SUN", "BOX", "KEY", "HAT", "MAP", "JAR")
SEEN_FROM = ("left of", "right of", "above", "below")
LETTERS = "ABCD"
DESCRIBE = "Describe the picture."
INSTRUCTION = "Answer with the option's letter from the given choices directly."


@dataclass(frozen=True)
class Scene:
    """Everything that is true of a picture. One kind of object a picture: no question needs two objects told apart."""

    shape: str
    colour: str
    ground: str
    """Colour of the background."""
    place: str
    """Half of the picture in which the shapes are; the word is in the other half."""
    count: int
    """How many shapes, 1 to 4."""
    word: str
    """Word of three letters written in the picture."""


def draw_scene(rng: random.Random) -> Scene:
    """A scene whose parts are independent of each other, so that no part can be told from another one."""
    return Scene(
        shape=rng.choice(SHAPES),
        colour=rng.choice(COLOURS),
        ground=rng.choice(GROUNDS),
        place=rng.choice(PLACES),
        count=rng.randint(1, 4),
        word=rng.choice(WORDS),
    )


@dataclass(frozen=True)
class Family:
    """A kind of question, with its place in MMBench's two levels of abilities."""

    name: str
    category: str
    l2_category: str
    question: str
    pool: tuple[str, ...]
    """What options are taken from."""
    truth: Callable[[Scene], str]
    hint: str = ""


COARSE = "coarse_perception"
INSTANCE = "finegrained_perception (instance-level)"
CROSS = "finegrained_perception (cross-instance)"
LOGIC = "logic_reasoning"

FAMILIES = (
    Family("ground", "image_scene", COARSE, "What colour is the background?", GROUNDS, lambda s: s.ground),
    Family("colour", "attribute_recognition", INSTANCE, "What colour are the shapes?", COLOURS, lambda s: s.colour),
    Family("shape", "attribute_recognition", INSTANCE, "Which shape is drawn?", SHAPES, lambda s: s.shape),
    Family(
        "count",
        "object_localization",
        INSTANCE,
        "How many shapes are there?",
        NUMBERS[:4],
        lambda s: NUMBERS[s.count - 1],
    ),
    Family("place", "object_localization", INSTANCE, "Where are the shapes?", PLACES, lambda s: s.place),
    Family("word", "ocr", INSTANCE, "Which word is written?", WORDS, lambda s: s.word),
    Family(
        "side",
        "spatial_relationship",
        CROSS,
        "Where is the word, seen from the shapes?",
        SEEN_FROM,
        lambda s: SEEN_FROM[PLACES.index(s.place) ^ 1],
    ),
    Family(
        "more",
        "future_prediction",
        LOGIC,
        "How many shapes are there then?",
        NUMBERS[1:],
        lambda s: NUMBERS[s.count],
        hint="One more shape is drawn.",
    ),
)


@dataclass(frozen=True)
class Question:
    """A multiple-choice question about a scene."""

    family: Family
    options: tuple[str, ...]
    answer: int
    """Index of the right option."""

    @property
    def letter(self) -> str:
        """The right option's letter."""
        return LETTERS[self.answer]

    def prompt(self) -> str:
        """Hint, question, options and instruction, as XTuner puts MMBench's questions."""
        hint = f"{self.family.hint}\n" if self.family.hint else ""
        options = "".join(f"{LETTERS[i]}. {option}\n" for i, option in enumerate(self.options))
        return f"{hint}{self.family.question}\n{options}{INSTRUCTION}"

    def shifted(self, by: int) -> Question:
        """The circular copy of pass ``by``: every option moves ``by`` letters up, and the right letter with it."""
        count = len(self.options)
        options = tuple(self.options[(i + by) % count] for i in range(count))
        return Question(self.family, options, (self.answer - by) % count)


def ask(scene: Scene, family: Family, rng: random.Random, answer: int | None = None) -> Question:
    """A question with the true option and three others in random order.

    Args:
        answer: index at which the true option is to stand; None: drawn.
    """
    truth = family.truth(scene)
    others = rng.sample([option for option in family.pool if option != truth], len(LETTERS) - 1)
    place = rng.randrange(len(LETTERS)) if answer is None else answer
    return Question(family, (*others[:place], truth, *others[place:]), place)


def parts(scene: Scene) -> list[str]:
    """The phrases that together say everything about a scene."""
    plural = "s" if scene.count > 1 else ""
    return [
        f"{NUMBERS[scene.count - 1]} {scene.colour} {scene.shape}{plural}",
        f"{scene.ground} background",
        f"shapes {scene.place}",
        f"word {scene.word}",
    ]


def caption(scene: Scene) -> str:
    """A scene in words, always in the same order: what a model is to say of a picture."""
    return ", ".join(parts(scene)) + "."


def description(scene: Scene, rng: random.Random) -> str:
    """A scene in words, in any order: what a model reads in place of a picture, whose tokens have no fixed order."""
    return ", ".join(rng.sample(parts(scene), len(parts(scene)))) + "."


Turns = list[tuple[str, str]]
"""Questions and answers of one conversation."""


def picture_turns(scene: Scene, rng: random.Random, turns: int = 4) -> Turns:
    """Questions of different families about one scene, with their answers."""
    asked = [ask(scene, family, rng) for family in rng.sample(FAMILIES, turns)]
    return [(question.prompt(), answer_text(question)) for question in asked]


def text_turns(rng: random.Random, turns: int = 4) -> Turns:
    """Questions about a scene that is described in words, so that they need no picture."""
    scene = draw_scene(rng)
    (first, answer), *rest = picture_turns(scene, rng, turns)
    return [(f"{description(scene, rng)}\n{first}", answer), *rest]


def reading_turns(rng: random.Random) -> Turns:
    """One text for the language model to learn from before it sees any picture.

    Most are questions about a described scene; some ask for the description in good order; in some nothing is
    described, so that the model learns to name an option even where it cannot know: the first one, as good as any.
    """
    kind = rng.random()
    if kind < 0.7:
        return text_turns(rng)
    scene = draw_scene(rng)
    if kind < 0.85:
        return [(f"{description(scene, rng)}\n{DESCRIBE}", caption(scene))]
    blind = [ask(scene, family, rng) for family in rng.sample(FAMILIES, 4)]
    return [(question.prompt(), question.options[0]) for question in blind]


def answer_text(question: Question) -> str:
    """What the model learns to answer: the option's text, which scoring takes as well as its letter."""
    return question.options[question.answer]
