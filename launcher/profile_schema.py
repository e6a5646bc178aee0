"""The keys of profiles: those that all have, and those of one backend."""

from __future__ import annotations

from typing import Any

from launcher.backends.kubernetes import settings as kubernetes
from launcher.backends.slurm import settings as slurm
from launcher.secret_values import SCHEMA as SECRETS

BACKENDS = ("local", "slurm", "kubernetes")

_PROFILE: dict[str, Any] = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "backend": {"enum": list(BACKENDS), "type": "string", "description": "Which scheduler."},
        "runs": {"type": "string", "default": "", "description": "Folder that runs are kept in."},
        "python": {"type": "string", "default": "", "description": "Python that the runtime is installed in."},
        "environment": {
            "type": "object",
            "additionalProperties": {"type": "string"},
            "default": {},
            "description": "Environment variables of every process; secrets have a key of their own.",
        },
        "not_secret": {
            "type": "array",
            "items": {"type": "string"},
            "default": [],
            "description": "Environment variables that may stand in clear although they look like secrets.",
        },
        "values": {
            "type": "object",
            "default": {},
            "description": "Recipe values that hold here, such as resources and paths.",
        },
        "code": {
            "enum": ["installed", "snapshot"],
            "type": "string",
            "default": "installed",
            "description": "What runs: the code as installed when a job starts, or a copy made at submission.",
        },
    },
    "required": ["backend"],
}
_LOCAL = {
    "gpus": {
        "anyOf": [{"type": "integer", "minimum": 0}, {"type": "null"}],
        "default": None,
        "description": "GPUs of this machine that runs may use; null: all that nvidia-smi lists.",
    },
    "secrets": SECRETS,
}
_OWN: dict[str, dict[str, Any]] = {
    "local": _LOCAL,
    "slurm": {"slurm": slurm.SCHEMA},
    "kubernetes": {"kubernetes": kubernetes.SCHEMA},
}
"""Keys that only the profiles of one backend have."""
FILE_SCHEMA = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "default": {"type": "string", "default": "local", "description": "Profile used without --on."},
        "profiles": {
            "type": "object",
            "default": {},
            "description": "Profiles by name; each is checked by itself.",
        },
    },
}


def profile_schema(backend: str, shared: bool = True) -> dict[str, Any]:
    """Keys of a backend's profiles; those of other backends are unknown to them."""
    keys = {**(_PROFILE["properties"] if shared else {}), **own_keys(backend)}
    return {**_PROFILE, "properties": keys, "required": _PROFILE["required"] if shared else []}


def own_keys(backend: str) -> dict[str, Any]:
    """Keys that only the profiles of one backend have."""
    return _OWN.get(backend, {})
