"""Texts that mean something in another language, made from a fixed seed."""

from __future__ import annotations

import random

PIECES = (
    "a", "B7", " ", "  ", "'", '"', "\\", "\\\\", "\n", "\r", "\r\n", "\t", "\x0b", "\x1b[31m", "\x7f", "\x85",
    "\u2028", "\u00a0", "\ufeff", "é", "漢", "🙂", "$", "$(touch INJECTED)", "`touch INJECTED`", "\ntouch INJECTED\n",
    "'\ntouch INJECTED #", "$HOME", "!", "!!", "#", "#SBATCH --array=1-9\n", "\n#SBATCH --hold", "%j", "%%", "%x", ";",
    "&", "|", ">INJECTED", "<", "*", "?", "[a", "]", "{", "}", "~", "=", ":", "- ", ": ", "? ", "| ", "> ", "@", ",",
    "1e5", "0o17", "017", "0x1F", "1_000", "y", "NO", "null", "~", ".inf", ".nan", "12:30:45", "2024-01-01", "<<",
    "---\n", "...\n", "%YAML 1.1\n", "!!python/object", "&a", "*a", "EOF\n", "LLAVAJOB_SETUP\n", "$(NAME)", "$$(NAME)",
)  # fmt: skip


def odd_texts(count: int, seed: int, without: str = "\0") -> list[str]:
    """Each piece alone, then random sequences of them, none with one of the characters that are left out."""
    rng = random.Random(seed)
    texts = ["", *PIECES]
    while len(texts) < count:
        texts.append("".join(rng.choice(PIECES) for _ in range(rng.randint(1, 6))))
    return [text for text in texts if not any(character in text for character in without)]
