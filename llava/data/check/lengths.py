"""How long are the conversations in tokens, and what does the cut at the recipe's length take away?"""

from __future__ import annotations

from typing import TYPE_CHECKING

from llava.data.check.findings import Section
from llava.data.check.sources import Training
from llava.errors import LlavaError

if TYPE_CHECKING:
    from llava.data.check.training import MakeBar
    from llava.data.records import Record

_SHARES = (50, 90, 99, 100)


def check_lengths(source: Training, records: list[Record], bar: MakeBar) -> Section:
    """Encode every record as training does."""
    longest = " or ".join(f"{length:,}" for length in sorted(set(source.max_length)))
    section = Section(f"{source.title}: tokens by template {source.template}, cut after {longest}")
    try:
        _measure(source, records, section, bar)
    except LlavaError as error:
        section.add("tokens", source.tokenizer, str(error), "get the language model's folder, its tokenizer will do")
    return section


def _measure(source: Training, records: list[Record], section: Section, bar: MakeBar) -> None:
    import numpy as np

    from llava.data.index import CHUNK, encode_records
    from llava.data.left_out import Judge
    from llava.model.language import load_tokenizer
    from llava.templates import get

    tokenizer, template = load_tokenizer(str(source.tokenizer)), get(str(source.template))
    judge = Judge()
    lengths, learned = np.zeros(len(records), np.int64), 0
    with bar("conversations", len(records)) as progress:
        for number, (record, encoded) in enumerate(encode_records(records, tokenizer, template, source.max_length)):
            lengths[number] = encoded.whole
            learned += encoded.learned
            left_out = judge.look(record, encoded)
            if left_out is not None:
                where = f"{source.records}: {left_out.record}"
                what = f"{left_out.why}; {left_out.tokens:,} tokens, {left_out.learned_lost:,} to learn are lost"
                what += "; the picture is cut away" * left_out.picture_lost
                section.add(left_out.fate, where, what, _CURES[left_out.fate], grave=False)
            if (number + 1) % CHUNK == 0 or number + 1 == len(records):
                progress.advance((number % CHUNK) + 1)
    counts = judge.counts
    section.numbers |= {
        "samples": counts.samples,
        "dropped": counts.empty + counts.unlearned,
        "truncated": counts.truncated,
        "truncated before the picture": counts.pictures_lost,
        "tokens to learn": learned,
        "tokens of a conversation": {
            "mean": round(float(lengths.mean()), 1),
            **{f"{share} % have at most": int(np.percentile(lengths, share, method="higher")) for share in _SHARES},
        },
    }
    if not counts.samples:
        section.add("records", source.records, "no record is left to learn from")


_CURES = {
    "dropped": "nothing is learned from it: shorten the question, or raise data.max_length",
    "truncated": "what stands behind the cut is not learned: data.max_length",
}
