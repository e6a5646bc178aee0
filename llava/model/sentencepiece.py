"""A folder's ``tokenizer.model`` as a fast tokenizer, so that no tokenizer class of the folder's own has to run.

Llama, vicuna, InternLM and InternLM2 ship byte-pair models of SentencePiece (Kudo and Richardson, arXiv 1808.06226).
The rules here are those of the slow tokenizers: text is first split at added tokens, and each piece between them is
encoded by the model as a text of its own, with its own word-start mark.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from llava.errors import ConfigError

FILE = "tokenizer.model"
SPACE = "▁"
_NORMAL, _UNKNOWN, _USER, _UNUSED = 1, 2, 4, 5
_BPE = 2
_FLAGS = ("single_word", "lstrip", "rstrip")


def load_sentencepiece(folder: Path) -> Any:
    """A ``PreTrainedTokenizerFast`` that gives the ids of the folder's SentencePiece model.

    Raises:
        ConfigError: the model is damaged or of another kind, or its added tokens do not fit.
    """
    from transformers import PreTrainedTokenizerFast

    model = _read_model(folder / FILE)
    settings = _read_json(folder / "tokenizer_config.json")
    names = _special_names(folder, settings, model)
    backend = _backend(model, _added_tokens(folder, settings), names, folder)
    backend.post_processor = _post_processor(backend, settings, names)
    kept = ("model_max_length", "padding_side", "chat_template")
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
        **{key: settings[key] for key in kept if settings.get(key) is not None},
        **names,
    )


def _read_model(path: Path) -> Any:
    from google.protobuf.message import DecodeError
    from sentencepiece import sentencepiece_model_pb2

    model = sentencepiece_model_pb2.ModelProto()
    try:
        model.ParseFromString(path.read_bytes())
    except (OSError, DecodeError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from None
    if not model.pieces or model.trainer_spec.model_type != _BPE:
        raise ConfigError(f"{path} is no byte-pair model of SentencePiece", "Give the folder a tokenizer.json.")
    if model.trainer_spec.treat_whitespace_as_suffix or any(piece.type == _UNUSED for piece in model.pieces):
        raise ConfigError(f"{path} marks words at their end, or has pieces out of use", "Give it a tokenizer.json.")
    return model


def _backend(model: Any, added: dict[int, Any], names: dict[str, str], folder: Path) -> Any:
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

    pieces = [added[i].content if i in added else piece.piece for i, piece in enumerate(model.pieces)]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    normal = [i for i, piece in enumerate(model.pieces) if piece.type == _NORMAL and i not in added]
    wholes = [pieces[i] for i, piece in enumerate(model.pieces) if piece.type == _USER and i not in added]
    unknown = next(pieces[i] for i, piece in enumerate(model.pieces) if piece.type == _UNKNOWN)
    backend = Tokenizer(
        models.BPE(
            vocabulary,
            _merges(vocabulary, [(pieces[i], model.pieces[i].score) for i in normal]),
            unk_token=unknown,
            fuse_unk=True,
            byte_fallback=model.trainer_spec.byte_fallback,
            ignore_merges=bool(wholes),
        )
    )
    backend.normalizer = _normalizer(model.normalizer_spec)
    if wholes:  # Symbols that are never cut stand in the text like words: no word-start mark comes after them.
        longest_first = "|".join(re.escape(piece) for piece in sorted(wholes, key=len, reverse=True))
        backend.pre_tokenizer = pre_tokenizers.Split(Regex(longest_first), "isolated")
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence(steps + _without_mark(model.normalizer_spec))
    special = [AddedToken(name, normalized=False, special=True) for name in names.values()]
    for token in [*(added[i] for i in sorted(added)), *special]:
        (backend.add_special_tokens if token.special else backend.add_tokens)([token])
    if wrong := [token.content for i, token in added.items() if backend.token_to_id(token.content) != i]:
        raise ConfigError(f"the added tokens of {folder} leave gaps or clash: {', '.join(wrong[:3])}")
    return backend


def _merges(vocabulary: dict[str, int], pieces: list[tuple[str, float]]) -> list[tuple[str, str]]:
    """Every pair that makes a piece, best score first: what SentencePiece joins, in its order."""
    found = []
    for piece, score in pieces:
        pairs = [(piece[:cut], piece[cut:]) for cut in range(1, len(piece))]
        known = [pair for pair in pairs if pair[0] in vocabulary and pair[1] in vocabulary]
        found += [(-score, vocabulary[left], vocabulary[right], left, right) for left, right in known]
    return [(left, right) for *_, left, right in sorted(found)]


def _normalizer(spec: Any) -> Any:
    from tokenizers import Regex, normalizers

    steps: list[Any] = []
    if spec.precompiled_charsmap:
        steps.append(normalizers.Precompiled(spec.precompiled_charsmap))
    if spec.remove_extra_whitespaces:
        steps += [normalizers.Replace(Regex("^ +| +$"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    if spec.add_dummy_prefix:
        steps.append(normalizers.Prepend(SPACE))
    return normalizers.Sequence([*steps, normalizers.Replace(" ", SPACE)])


def _without_mark(spec: Any) -> list[Any]:
    from tokenizers import decoders

    return [decoders.Strip(" ", 1, 0)] if spec.add_dummy_prefix else []


def _post_processor(backend: Any, settings: dict[str, Any], names: dict[str, str]) -> Any:
    from tokenizers import processors

    first = [names["bos_token"]] if settings.get("add_bos_token", True) and "bos_token" in names else []
    last = [names["eos_token"]] if settings.get("add_eos_token", False) and "eos_token" in names else []
    return processors.TemplateProcessing(
        single=[*first, "$A", *last],
        pair=[*first, "$A", *last, *(f"{name}:1" for name in first), "$B:1", *(f"{name}:1" for name in last)],
        special_tokens=[(name, backend.token_to_id(name)) for name in dict.fromkeys([*first, *last])],
    )


def _special_names(folder: Path, settings: dict[str, Any], model: Any) -> dict[str, str]:
    """bos, eos, unk and pad, as the folder names them or else as the model does."""
    spec = model.trainer_spec
    names = {"bos_token": spec.bos_piece, "eos_token": spec.eos_piece, "unk_token": spec.unk_piece}
    known = {piece.piece for piece in model.pieces}
    names = {key: name for key, name in names.items() if name in known}
    for values in (_read_json(folder / "special_tokens_map.json"), settings):
        for key in ("bos_token", "eos_token", "unk_token", "pad_token"):
            if values.get(key):
                names[key] = _content(values[key])
    return names


def _added_tokens(folder: Path, settings: dict[str, Any]) -> dict[int, Any]:
    """Tokens beside the model, or in place of its pieces, by id."""
    from tokenizers import AddedToken

    added: dict[int, Any] = {}
    for name, number in _read_json(folder / "added_tokens.json").items():
        added[int(number)] = AddedToken(name, normalized=False, special=True)
    for number, token in (settings.get("added_tokens_decoder") or {}).items():
        flags = {key: bool(token.get(key, False)) for key in _FLAGS}
        special = bool(token.get("special", True))
        # Slow tokenizers look for them in the text as it is, whatever the folder says of normalising.
        added[int(number)] = AddedToken(token["content"], normalized=False, special=special, **flags)
    return added


def _content(token: Any) -> str:
    return str(token["content"] if isinstance(token, dict) else token)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from None
    return values if isinstance(values, dict) else {}
