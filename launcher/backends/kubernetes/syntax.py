"""Which names, labels and paths Kubernetes takes (k8s.io/apimachinery, pkg/util/validation)."""

from __future__ import annotations

import posixpath
import re

from launcher.one_line import breaking_character

LABEL_LENGTH = 63
_SUBDOMAIN_LENGTH = 253
_DNS_1123 = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_DNS_1035 = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_QUALIFIED = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?")
_VARIABLE = re.compile(r"[A-Za-z_.-][A-Za-z0-9_.-]*")
_KEY_IN_SECRET = re.compile(r"[-._a-zA-Z0-9]+")

DNS_1123_RULE = f"lower-case letters, digits and hyphens, at most {LABEL_LENGTH} characters"
SUBDOMAIN_RULE = f"lower-case letters, digits, hyphens and dots, at most {_SUBDOMAIN_LENGTH} characters"
VALUE_RULE = f"letters, digits, '-', '_' and '.', a letter or digit first and last, at most {LABEL_LENGTH} characters"
KEY_RULE = f"{VALUE_RULE}, before it perhaps a domain and '/'"


def is_dns_1123(text: str) -> bool:
    """Whether a text is a legal name of a namespace or a volume."""
    return len(text) <= LABEL_LENGTH and _DNS_1123.fullmatch(text) is not None


def is_dns_1035(text: str) -> bool:
    """Whether a text is a legal name of a service, and so of a pod of a PyTorchJob."""
    return len(text) <= LABEL_LENGTH and _DNS_1035.fullmatch(text) is not None


def is_subdomain(text: str) -> bool:
    """Whether a text is a legal name of most objects: claims, secrets, service accounts."""
    return len(text) <= _SUBDOMAIN_LENGTH and _SUBDOMAIN.fullmatch(text) is not None


def is_label_key(text: str) -> bool:
    """Whether a text is a legal key of a label or an annotation, or a legal name of a resource."""
    domain, slash, name = text.rpartition("/")
    return (not slash or is_subdomain(domain)) and bool(name) and is_label_value(name)


def is_label_value(text: str) -> bool:
    """Whether a text is a legal value of a label."""
    return not text or (len(text) <= LABEL_LENGTH and _QUALIFIED.fullmatch(text) is not None)


def is_variable(text: str) -> bool:
    """Whether a text is a legal name of an environment variable."""
    return _VARIABLE.fullmatch(text) is not None


def is_secret_key(text: str) -> bool:
    """Whether a text is ``name/key`` of a secret."""
    name, slash, key = text.partition("/")
    return bool(slash) and is_subdomain(name) and _KEY_IN_SECRET.fullmatch(key) is not None


def is_absolute(text: str) -> bool:
    """Whether a text is a full path, written the shortest way, and not the whole file system."""
    shortest = text.startswith("/") and text != "/" and posixpath.normpath(text) == text
    return shortest and ":" not in text and not breaking_character(text)


def is_image(text: str) -> bool:
    """Whether a text can be the name of an image: which names a registry has, only the node finds out."""
    return not any(map(str.isspace, text)) and not breaking_character(text)
