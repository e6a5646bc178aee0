"""Amounts of CPU and memory in Kubernetes' notation: read, checked, and divided into equal shares."""

from __future__ import annotations

import re
from fractions import Fraction

# A server reads ASCII digits alone, and no more of them than anybody means.
_NUMBER = r"([0-9]{1,15}(?:\.[0-9]{1,15})?)"
_CPU = re.compile(rf"{_NUMBER}(m?)")
_SIZE = re.compile(rf"{_NUMBER}([A-Za-z]*)")
_BINARY = {"Pi": 1024**5, "Ti": 1024**4, "Gi": 1024**3, "Mi": 1024**2, "Ki": 1024}
_DECIMAL = {"P": 10**15, "T": 10**12, "G": 10**9, "M": 10**6, "k": 1000}
_BYTES = {**_BINARY, **_DECIMAL, "": 1}
_LEAST_BYTES = 2**20
"""Less was meant as something else: ``480`` is a number of bytes, and ``480m`` not even one."""
_CPU_WANTED = "a number of CPUs such as 96, 0.5 or 500m is needed"
_SIZE_WANTED = "a size such as 480Gi, 64000Mi or 480G is needed"


def parse_cpu(text: str) -> int:
    """Read an amount of CPU in thousandths.

    Raises:
        ValueError: with what is allowed.
    """
    match = _CPU.fullmatch(text.strip())
    amount = Fraction(match[1]) * (1 if match[2] else 1000) if match else Fraction(0)
    if amount < 1 or amount.denominator != 1:
        raise ValueError(_CPU_WANTED)
    return int(amount)


def cpu_share(text: str, share: int) -> str:
    """Write an amount of CPU, or one of several equal shares of it: ``96`` among 8 is ``12``."""
    thousandths = max(1, parse_cpu(text) // share)
    return str(thousandths // 1000) if thousandths % 1000 == 0 else f"{thousandths}m"


def parse_size(text: str) -> int:
    """Read a size of memory in bytes.

    Raises:
        ValueError: with what is allowed.
    """
    match = _SIZE.fullmatch(text.strip())
    if not match:
        raise ValueError(_SIZE_WANTED)
    number, unit = match[1], match[2]
    if unit not in _BYTES:
        raise ValueError(f"{_SIZE_WANTED}{_meant(number, unit)}")
    size = int(Fraction(number) * _BYTES[unit])
    if size < _LEAST_BYTES:
        raise ValueError(f"{_SIZE_WANTED}; that is {size} bytes")
    return size


def size_share(text: str, share: int) -> str:
    """Write a size of memory, or one of several equal shares of it: ``480G`` among 8 is ``60G``."""
    if share == 1:
        return text.strip()
    size = parse_size(text) // share
    units = _DECIMAL if text.strip()[-1] in _DECIMAL else _BINARY
    fitting = [(name, unit) for name, unit in units.items() if size % unit == 0 and size >= unit]
    if fitting:
        return f"{size // fitting[0][1]}{fitting[0][0]}"
    name = "M" if units is _DECIMAL else "Mi"
    return f"{size // units[name]}{name}" if size >= units[name] else str(size)


def _meant(number: str, unit: str) -> str:
    """What somebody who wrote 90GB or 90gi may have meant."""
    letter = unit[:1].upper()
    if letter not in "KMGTP" or unit[1:].lower() not in ("", "b", "i", "ib"):
        return ""
    binary, decimal = f"{letter}i", "k" if letter == "K" else letter
    return f": {number}{binary} ({number} x 1024^{1 + 'KMGTP'.index(letter)} bytes) or {number}{decimal}"
