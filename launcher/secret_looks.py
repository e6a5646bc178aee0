"""What looks like a secret: by the name of a variable, by the form of known credentials, or by being random."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

MASK = "[not shown: looks like a secret]"

_STRICT = frozenset({
    "PASSWORD", "PASSWORDS", "PASSWD", "PASSPHRASE", "PASSCODE", "PWD", "SECRET", "SECRETS", "CREDENTIAL",
    "CREDENTIALS", "CREDS", "APIKEY", "APITOKEN", "COOKIE", "BEARER",
})  # fmt: skip
"""Words in a name that say secret whatever the value is, a number included."""
_LOOSE = frozenset({"TOKEN", "TOKENS", "KEY", "KEYS", "AUTH", "OAUTH", "AUTHORIZATION", "PASS", "PAT"})
"""Words in a name that say secret unless the value is a number, a switch or the like."""
_ENDINGS = ("TOKEN", "PASSWORD", "PASSWD", "SECRET", "APIKEY", "ACCESSKEY", "PRIVATEKEY", "SECRETKEY", "AUTHKEY")
"""The same without a separator before them: ``HUGGINGFACETOKEN``."""
_HARMLESS_NAMES = frozenset({"PWD", "OLDPWD", "GPG_KEY"})
_HARMLESS_LAST = frozenset({
    "FILE", "FILES", "PATH", "DIR", "DIRECTORY", "FOLDER", "SOCK", "SOCKET", "URL", "URI", "ENDPOINT", "HOST", "PORT",
    "NAME", "TYPE", "METHOD", "MODE", "SIZE", "LEN", "LENGTH", "COUNT", "LIMIT", "TIMEOUT", "ALGORITHM", "VERSION",
    "ENABLED", "DISABLED", "PLUGIN", "PARALLELISM", "USER", "USERNAME", "EMAIL", "REGION",
})  # fmt: skip
"""Last words of names that say where a secret lies, or something about it, and not the secret itself."""
_MODEL_TOKENS = frozenset({
    "PAD", "BOS", "EOS", "UNK", "CLS", "SEP", "MASK", "IMAGE", "IMG", "STOP", "SPECIAL", "START", "END", "NEW", "MAX",
    "MIN", "NUM", "VOCAB",
})  # fmt: skip
"""Beside TOKEN they make it one of a language model's."""
_SWITCHES = frozenset({
    "", "true", "false", "yes", "no", "on", "off", "none", "null", "auto", "default", "enabled", "disabled", "basic",
    "digest", "ntlm", "negotiate", "kerberos", "munge", "ldap", "never", "always", "optional", "required",
})  # fmt: skip
_LONGEST_NUMBER = 9

# The scheme of a URL, from its first letter alone: else a long text would be read once from each of its letters.
_SCHEME = r"(?<![A-Za-z0-9+.-])[A-Za-z][A-Za-z0-9+.-]*"
_KNOWN: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (what, re.compile(pattern))
    for what, pattern in (
        ("a private key", r"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----|PuTTY-User-Key-File-\d"),
        ("a token of Hugging Face", r"(?<![A-Za-z0-9])(?:hf|api_org)_[A-Za-z0-9]{16,}"),
        ("a token of GitHub", r"(?<![A-Za-z0-9])(?:gh[pousr]_[A-Za-z0-9]{16,}|github_pat_\w{16,})"),
        ("a token of GitLab", r"(?<![A-Za-z0-9])gl(?:pat|dt|rt|cbt|ptt|ft|soat)-[\w-]{16,}"),
        ("an API key", r"(?<![A-Za-z0-9])sk-(?:[A-Za-z0-9]{16,}|(?:proj|ant|or|svcacct|admin|lf|None)-[\w-]{16,})"),
        ("an API key", r"(?<![A-Za-z0-9])[srp]k_(?:live|test)_[A-Za-z0-9]{10,}"),
        ("an AWS access key", r"(?<![A-Za-z0-9])(?:AKIA|ASIA|ABIA|ACCA|AROA|AIDA)[A-Z0-9]{16}(?![A-Za-z0-9])"),
        ("a token of Slack", r"(?<![A-Za-z0-9])(?:xox[a-z]|xapp|xwfp)-[\w-]{8,}|hooks\.slack\.com/services/\S+"),
        ("a key of Google", r"(?<![A-Za-z0-9])(?:AIza[\w-]{30,}|ya29\.[\w-]{16,}|GOCSPX-[\w-]{16,})"),
        ("a token of a registry", r"(?<![A-Za-z0-9])(?:npm_[A-Za-z0-9]{30,}|pypi-[\w-]{16,}|dckr_pat_[\w-]{16,})"),
        ("an API key", r"(?<![A-Za-z0-9])(?:nvapi-|gsk_|r8_|hvs\.|dop_v1_|tskey-|SG\.|lin_api_|glsa_)[\w.-]{16,}"),
        ("a JSON web token", r"(?<![A-Za-z0-9])eyJ[\w-]{8,}\.[\w-]{8,}(?:\.[\w-]*)?"),
        ("a URL with a password", _SCHEME + r"://[^\s/:@]*:(?![$<{*])[^\s/@]+@"),
        ("a URL with a token", _SCHEME + r"://[A-Za-z0-9_.~-]{20,}@"),
        (
            "a URL or text with a token",
            r"(?i)(?:[?&;,\s]|^|--)(?:(?:access|auth|id|refresh|private|sas)?_?-?token|api_?-?key|(?:client_?-?)?secret|"
            r"password|passwd|pwd|sig|signature|x-amz-(?:signature|credential|security-token)|accountkey|"
            r"sharedaccess(?:key|signature))=(?![$<{*])[^&;,\s]{6,}",
        ),
        ("an authorization header", r"(?i)\b(?:bearer|basic)\s+[A-Za-z0-9._~+/-]{16,}=*"),
        (
            "a credential in JSON",
            r"""(?i)["'](?:\w*(?:password|passwd|secret|token|api_?key|private_?key|access_?key)|auth)["']\s*:\s*"""
            r"""["'][^"'\s]{6,}["']""",
        ),
    )
)
_URL_LOGIN = re.compile(rf"(?P<scheme>{_SCHEME}://)[^\s/@]+@")
_UUID = re.compile(r"[0-9A-Fa-f]{8}-(?:[0-9A-Fa-f]{4}-){3}[0-9A-Fa-f]{12}")
_HEX = re.compile(r"(?<![A-Za-z0-9])(?:0x)?[0-9A-Fa-f]{7,}(?![A-Za-z0-9])")
_PUBLIC_KEY = re.compile(r"AAAA[A-Za-z0-9+/]{20,}=*|ssh-[a-z0-9]+ \S+")
_LEAST_RANDOM = 20
_LEAST_RANDOM_ONE_CASE = 24
_LEAST_ENTROPY_BITS = 3.4
"""Per character; 20 random letters and digits have 4.0 and more, words repeat theirs."""
_LEAST_CHANGES, _LEAST_CHANGES_LONG, _LEAST_CHANGES_ONE_CASE = 0.38, 0.3, 0.25
"""Between capitals, small letters and digits: 6 in 10 neighbours in random text, 3 in CamelCase words."""
_LONG = 36
_MOST_IN_WORDS = 0.55
"""Share of letters in runs of small ones, as words have them: 2 in 10 in random text."""


def why_secret(name: str, value: str) -> str:
    """Say why a variable looks like a secret; empty when it does not."""
    if name and _is_secret_name(name) and not _is_harmless(name, value):
        return f"its name says so: {name}"
    return secret_in(value) or ("it is long and random" if is_random(value) else "")


def secret_in(text: str) -> str:
    """Say which known credential a text holds; empty when it holds none."""
    return next((what for what, pattern in _KNOWN if pattern.search(text)), "")


def mask(text: str) -> str:
    """Return a text with the known credentials in it taken out; a URL keeps all but its login."""
    text = _URL_LOGIN.sub(lambda match: f"{match['scheme']}***@" if secret_in(match[0]) else match[0], text)
    for _, pattern in _KNOWN:
        text = pattern.sub(MASK, text)
    return text


def shown(name: str, value: Any) -> Any:
    """Return a value as it may be shown, with what looks like a secret taken out.

    Args:
        name: its key; below ``environment`` the names of variables count as well.
        value: a plain value, nested or not.
    """
    if isinstance(value, dict):
        one = _shown_variable if name == "environment" else shown
        return {key: one(key, inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [shown(name, item) for item in value]
    return mask(value) if isinstance(value, str) else value


def _shown_variable(name: str, value: Any) -> Any:
    if isinstance(value, str) and "${" in value:
        return mask(value)
    return MASK if why_secret(name, str(value)) else value


def is_random(text: str) -> bool:
    """Tell whether a text holds a long part that reads like random letters and digits, and is no path or digest."""
    for pattern in (_UUID, _HEX, _PUBLIC_KEY):
        text = pattern.sub(" ", text)
    return any(_is_random_part(part) for part in re.split(r"[\s:;,=\"'|()\[\]{}<>@%&?]+", text) if not is_path(part))


def is_path(text: str) -> bool:
    """Tell whether a text is written like a path: from the root, from home, or from a folder named by dots."""
    return bool(re.match(r"(?:~[\w.-]*|\.{1,2}|\$\{?\w+\}?)?/", text)) and text.strip("/").count("/") >= 1


def _words(name: str) -> list[str]:
    parted = re.sub(r"([a-z0-9])([A-Z])", r"\1_\2", name)
    return [word for word in re.split(r"[^A-Za-z0-9]+", parted.upper()) if word]


def _is_secret_name(name: str) -> bool:
    words = _words(name)
    if not words or name.upper() in _HARMLESS_NAMES:
        return False
    if words[-1] in _HARMLESS_LAST:
        return False
    return any(word in _STRICT or word in _LOOSE or word.rstrip("S0123456789").endswith(_ENDINGS) for word in words)


def _is_harmless(name: str, value: str) -> bool:
    """Whether a value cannot be the secret that the variable's name speaks of."""
    text, words = value.strip(), _words(name)
    if text.lower() in _SWITCHES or is_path(text):
        return True
    if any(word in _STRICT for word in words):
        return text in ("0", "1")
    if re.fullmatch(r"[<\[].*[>\]]", text) or (set(words) & _MODEL_TOKENS and not secret_in(text)):
        return not is_random(text)
    return bool(re.fullmatch(rf"[+-]?[\d.]{{1,{_LONGEST_NUMBER}}}", text))


def _is_random_part(part: str) -> bool:
    return any(_is_random_run(run) for run in _runs(part))


def _runs(part: str) -> Iterator[str]:
    """The part without its separators where they are rare, as in base64, and what stands between them."""
    pieces = [piece for piece in re.split(r"[^A-Za-z0-9]+", part) if piece]
    yield from pieces
    if re.fullmatch(r"[A-Za-z0-9+/_-]+", part) and len(pieces) <= 1 + len(part) // 16:
        yield "".join(pieces)


def _is_random_run(run: str) -> bool:
    kinds = {_kind(letter) for letter in run}
    least = _LEAST_RANDOM if len(kinds) == 3 else _LEAST_RANDOM_ONE_CASE
    if len(run) < least or len(kinds) < 2 or _entropy_bits(run) < _LEAST_ENTROPY_BITS:
        return False
    changes = sum(_kind(a) != _kind(b) for a, b in pairwise(run)) / (len(run) - 1)
    if not {"upper", "lower"} <= kinds:
        return changes >= _LEAST_CHANGES_ONE_CASE
    in_words = sum(len(word) for word in re.findall(r"[A-Z]?[a-z]{3,}", run)) / len(run)
    least_changes = _LEAST_CHANGES if len(run) < _LONG else _LEAST_CHANGES_LONG
    return changes >= least_changes and in_words < _MOST_IN_WORDS


def _kind(letter: str) -> str:
    if letter.isdigit():
        return "digit"
    return "upper" if letter.isupper() else "lower"


def _entropy_bits(text: str) -> float:
    counts = Counter(text).values()
    return -sum(count / len(text) * math.log2(count / len(text)) for count in counts)
