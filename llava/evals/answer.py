"""What does the model answer to these rows? Batches of alike length, every picture encoded once.

Left-padded batches and any order give the same answers as one row at a time, up to rounding: in fp32 a test holds them
equal, in 16 bits a tie may flip (LLaVA issue 1928: 2 of 2374 MME rows in fp16).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llava.dialogue import Turn
from llava.evals.benchmark import Row, Table
from llava.evals.shards import units
from llava.generate import Heads, generate

if TYPE_CHECKING:
    import torch

    from llava.hf_model import HfLlava


@dataclass(frozen=True)
class Asked:
    """A row as token ids, split at the picture's place."""

    row: Row
    chunks: list[list[int]]

    def __len__(self) -> int:
        return sum(map(len, self.chunks))


def answer_rows(
    llava: HfLlava, table: Table, rows: Sequence[Row], question: Callable[[Any], str], batch: int, longest: int
) -> Iterator[dict[int, str]]:
    """Answer rows batch by batch.

    Args:
        llava: the model.
        table: where the pictures are.
        rows: what to answer; those with the same picture should all be there.
        question: the user's whole turn for a row.
        batch: most rows in one generation.
        longest: most new tokens in an answer.

    Yields:
        text by row index, one dictionary a batch.
    """
    batches = _batches([Asked(row, llava.chunks([Turn(question(row))])) for row in rows], batch)
    uses = Counter(row.picture for row in rows)
    features: dict[Hashable, torch.Tensor] = {}
    for asked, new, pixels in _prepared(llava, table, batches):
        if pixels is not None:
            features.update(zip(new, llava.encode_pixels(pixels), strict=True))
        prompts, heads = _prompts(llava, asked, features)
        tokens = generate(llava.model, prompts, llava.stop, longest, llava.decode, heads)
        for one in asked:
            uses[one.row.picture] -= 1
            if not uses[one.row.picture]:
                del features[one.row.picture]
        yield {one.row.index: llava.answer_text(ids) for one, ids in zip(asked, tokens, strict=True)}


def _prompts(
    llava: HfLlava, asked: list[Asked], features: dict[Hashable, torch.Tensor]
) -> tuple[list[torch.Tensor], Heads | None]:
    """Embeddings of a batch; what the copies of a question have in common is taken out and read once.

    One row alone, the reference, is read as a whole.
    """
    if len(asked) == 1:
        return [llava.embed(asked[0].chunks, [features[asked[0].row.picture]])], None
    groups: dict[Hashable, list[Asked]] = {}
    for one in asked:
        groups.setdefault(_same_start(one), []).append(one)
    common = {key: _common([one.chunks[1] for one in copies]) for key, copies in groups.items()}
    heads = [
        llava.embed([copies[0].chunks[0], copies[0].chunks[1][: common[key]]], [features[copies[0].row.picture]])
        for key, copies in groups.items()
    ]
    number = {key: i for i, key in enumerate(groups)}
    tails = [llava.embed([one.chunks[1][common[_same_start(one)] :]], []) for one in asked]
    return tails, Heads(heads, [number[_same_start(one)] for one in asked])


def _same_start(one: Asked) -> Hashable:
    """Equal for copies of a question that begin alike (a foreign chat template may put text before the picture)."""
    return (one.row.group, one.row.picture, *one.chunks[0])


def _common(texts: list[list[int]]) -> int:
    """How many first tokens all texts share; at least one token of each is left over."""
    shortest = min(map(len, texts)) - 1
    different = (i for i in range(shortest) if any(text[i] != texts[0][i] for text in texts))
    return next(different, shortest)


def _batches(asked: list[Asked], batch: int) -> list[list[Asked]]:
    """Rows of one picture side by side, the longest first: little padding, and too little memory shows at once."""
    by_index = {one.row.index: one for one in asked}
    groups = [[by_index[row.index] for row in unit] for unit in units(one.row for one in asked)]
    groups.sort(key=lambda group: max(map(len, group)), reverse=True)
    line = [one for group in groups for one in group]
    return [line[i : i + batch] for i in range(0, len(line), batch)]


def _prepared(
    llava: HfLlava, table: Table, batches: list[list[Asked]]
) -> Iterator[tuple[list[Asked], list[Hashable], torch.Tensor | None]]:
    """Decode the next batch's pictures in a thread while the model answers this one.

    Yields:
        rows, keys of the pictures they bring, and those pictures' pixels [pictures, 3, side, side].
    """
    seen: set[Hashable] = set()

    def prepare(asked: list[Asked]) -> tuple[list[Asked], list[Hashable], torch.Tensor | None]:
        new = [key for key in dict.fromkeys(one.row.picture for one in asked) if key not in seen]
        seen.update(new)
        return asked, new, llava.pixels([table.open_picture(key) for key in new]) if new else None

    with ThreadPoolExecutor(1) as thread:
        ahead = [thread.submit(prepare, asked) for asked in batches[:1]]
        for following in [*batches[1:], None]:
            ready = ahead.pop().result()
            if following is not None:
                ahead.append(thread.submit(prepare, following))
            yield ready
