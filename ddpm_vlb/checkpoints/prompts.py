r"""Prompts, through a checkpoint's own text encoder: what a network is given in place of words.

A network with `encoder_hidden_states` says :math:`p(x | c)`, c a prompt's embeddings; which they are is a matter of the text
encoder that it was trained with, in the same folder. The encoder is read when there is a prompt, and then let go.

=====================  ============================================================  =======================================
encoder                how words become tokens                                       its pipelines
=====================  ============================================================  =======================================
`T5EncoderModel`       in small letters, without blanks at the ends, 77 of them,     DeepFloyd IF
                       with a mask of those that stand for words
`CLIPTextModel`        as they are, as many as the encoder has positions; a mask     Stable Diffusion's kin
                       where its configuration says so
=====================  ============================================================  =======================================

A prompt with more tokens than that is refused, of which the pipelines would drop the end.
"""

import inspect
import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers import DDPMPipeline

from ..checks import shown
from ..model.conditions import Conditions
from .loading import reading
from .parts import BESIDE, TEXT_PARTS, CheckpointError, parts_of

T5_LENGTH = 77
ENCODERS = ("T5EncoderModel", "CLIPTextModel")
TOKENIZERS = ("T5Tokenizer", "T5TokenizerFast", "CLIPTokenizer", "CLIPTokenizerFast")


class TextParts(NamedTuple):
    r"""A text encoder and its tokenizer.

    Args:
        folder: with `text_encoder/` and `tokenizer/`.
        classes: of the two, in transformers.
        index: what the index of a pipeline says of them, and of itself besides.
    """

    folder: Path
    classes: tuple[str, str]
    index: dict[str, Any]


def text_parts(folder: Path | None) -> TextParts | None:
    r"""The text encoder of a checkpoint's folder, `None` where there is none, or not its weights."""
    if folder is None or not all((folder / part).is_dir() for part in TEXT_PARTS):
        return None
    if not any(path.suffix in (".safetensors", ".bin") for path in (folder / "text_encoder").iterdir()):
        return None
    path = folder / DDPMPipeline.config_name
    index = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    named = parts_of(index)
    classes = (_class_of(named, folder, 0), _class_of(named, folder, 1))
    kept = {key: value for key, value in index.items() if isinstance(value, (str, bool)) and key != "_diffusers_version"}
    kept |= {part: ["transformers", cls] for part, cls in zip(TEXT_PARTS, classes)}
    # What looked at finished images is not kept, and a pipeline of diffusers can do without.
    kept |= {part: [None, None] for part in BESIDE if part in index}
    kept |= {"requires_safety_checker": False} if "requires_safety_checker" in index else {}
    return TextParts(folder, classes, kept)


def _class_of(named: dict[str, Any], folder: Path, place: int) -> str:
    r"""The class of a part by the index or, without one, by its own configuration."""
    part = TEXT_PARTS[place]
    if part in named:
        return str(named[part][1])
    file = folder / part / ("config.json", "tokenizer_config.json")[place]
    told = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    return str(told.get("tokenizer_class") if place else next(iter(told.get("architectures") or ()), None))


def check_prompt(prompt: Any, network_kwargs: Any = None) -> list[str] | None:
    r"""The prompts, as a list; `ValueError` for what is none, or beside `network_kwargs`."""
    if prompt is None:
        return None
    prompts = [prompt] if isinstance(prompt, str) else prompt
    if not isinstance(prompts, (list, tuple)) or not prompts or not all(isinstance(one, str) for one in prompts):
        raise ValueError(f"`prompt` must be a text, or a list of one for each class, got {shown(prompt)}.")
    if network_kwargs is not None:
        raise ValueError(f"Only one of `prompt` and `network_kwargs` may be given, got {shown(prompt)} and tensors.")
    return list(prompts)


@torch.no_grad()
def encode_prompts(prompts: Sequence[str], text: TextParts | None, network: torch.nn.Module, name: str) -> Conditions:
    r"""What a network is given for prompts: `encoder_hidden_states`, `(P, length, width)`, float32.

    Args:
        prompts: P of them.
        text: of the network's checkpoint.
        network: that is to be given them.
        name: of the checkpoint, for refusals.

    Raises:
        ValueError: a network that takes no prompt, a checkpoint without a text encoder or with one of another kind, a prompt
            that is too long.
        CheckpointError: a text encoder that cannot be read, or not all of it.
    """
    if "encoder_hidden_states" not in inspect.signature(network.forward).parameters:
        raise ValueError(f"`prompt` must be left out for a {type(network).__name__}, which takes none, got {shown(prompts)}.")
    if text is None:
        raise ValueError(
            f"`prompt` must go with a checkpoint that has a text_encoder and a tokenizer, got {shown(prompts)} for {name!r},"
            " which has none. `network_kwargs` takes embeddings."
        )
    encoder, tokenizer = _load(text, name)
    is_t5 = text.classes[0] == "T5EncoderModel"
    words = [prompt.lower().strip() for prompt in prompts] if is_t5 else list(prompts)
    length = T5_LENGTH if is_t5 else min(tokenizer.model_max_length, encoder.config.max_position_embeddings)
    for prompt, tokens in zip(prompts, tokenizer(words).input_ids):
        if len(tokens) > length:
            raise ValueError(f"`prompt` must have at most {length} tokens, got {len(tokens)} for {shown(prompt)}.")
    tokens = tokenizer(words, padding="max_length", max_length=length, return_tensors="pt")
    masked = is_t5 or getattr(encoder.config, "use_attention_mask", False)
    said = encoder(tokens.input_ids, attention_mask=tokens.attention_mask if masked else None)
    return Conditions({"encoder_hidden_states": said[0].float()}, prompts)


def _load(text: TextParts, name: str) -> tuple[Any, Any]:
    r"""Text encoder and tokenizer."""
    import transformers  # seconds, which only prompts are worth

    for part, cls, known in zip(TEXT_PARTS, text.classes, (ENCODERS, TOKENIZERS)):
        if cls not in known:
            raise ValueError(f"`prompt` must go with a {part} that is a {' or a '.join(known)}, got {name!r} with a {cls}.")
    encoder_class, tokenizer_class = (getattr(transformers, cls) for cls in text.classes)
    with reading(name), _without_bar(transformers.logging):
        encoder, told = encoder_class.from_pretrained(
            text.folder / TEXT_PARTS[0], local_files_only=True, output_loading_info=True, dtype=torch.float32
        )
        tokenizer = tokenizer_class.from_pretrained(text.folder / TEXT_PARTS[1], local_files_only=True)
    # Those that are missing transformers makes up, with no more than a warning.
    if missing := sorted(told["missing_keys"]):
        raise CheckpointError(
            "`pretrained_model_name_or_path` must hold all weights of its text encoder, got"
            f" {name!r} without {', '.join(missing[:3])} ({len(missing)} missing)."
        )
    return encoder.eval(), tokenizer


@contextmanager
def _without_bar(logging: Any) -> Iterator[None]:
    r"""No bar of transformers' while it loads."""
    shown_before = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown_before:
            logging.enable_progress_bar()


def keep_text(text: TextParts | None, folder: Path) -> None:
    r"""Copy a text encoder and its tokenizer, as they are, into a folder that a pipeline is saved to."""
    if text is None:
        return
    for part in TEXT_PARTS:
        place = folder / part
        place.mkdir()
        for path in sorted((text.folder / part).iterdir()):
            if path.is_file():
                shutil.copyfile(path, place / path.name)
