"""Base models and their tokenizers, and what this machine computes with."""

from __future__ import annotations

import contextlib
import difflib
import os
import re
import textwrap
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from safetensors import SafetensorError

from fedsa.errors import ModelError, UserError
from fedsa.models.class_order import names_of, turn_head
from fedsa.models.converted import converted
from fedsa.models.opening import check_files, no_pickle, own_code, own_code_refusal
from fedsa.models.quantized import HEADS, quantized, settle
from fedsa.packages.parts import PREFIX, part_folder
from fedsa.recipe import ComputeSettings, ModelSettings

if TYPE_CHECKING:
    from collections.abc import Callable

    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

__all__ = [
    "HEADS",
    "bad_config",
    "described",
    "drawn_layers",
    "fit_padding",
    "layers_outside_the_base",
    "load_base",
    "load_tokenizer",
    "location_of",
    "not_loadable",
    "padding_side",
    "position_limit",
    "positions_of",
    "quiet",
    "resolve_compute",
]


def resolve_compute(settings: ComputeSettings) -> ComputeSettings:
    """Return the settings with every ``auto`` replaced by what this machine has.

    Raises:
        ModelError: the device is not a device, or not there.
    """
    device = settings.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.empty(1, device=device).item()  # the device meta has no values
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ModelError(f"compute.device = {device!r} cannot be used here: {reason}") from None
    precision = settings.precision
    if precision == "auto":
        precision = "bf16" if _has_bf16(device) else "fp32"
    return settings.model_copy(
        update={"device": device, "threads": settings.threads or _cores(), "precision": precision}
    )


def _has_bf16(device: str) -> bool:
    """Say whether the hardware computes in bf16 itself; an emulated bf16 is slower than fp32."""
    if device.startswith("cuda"):
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device == "cpu" and hasattr(torch.cpu, "get_capabilities"):
        capabilities: Mapping[str, Any] = torch.cpu.get_capabilities()
        return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    return False


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence loading bars and reports of transformers, and the warnings that no user can act on."""
    logger = transformers.utils.logging
    verbosity, bars = logger.get_verbosity(), logger.is_progress_bar_enabled()
    logger.set_verbosity_error()
    logger.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|peft)\.")
            warnings.filterwarnings("ignore", message="fan_in_fan_out is set to")  # PEFT then sets it right
            warnings.filterwarnings("ignore", message="Using Rank-Stabilized LoRA")  # PEFT's own export is not used
            yield
    finally:
        logger.set_verbosity(verbosity)
        if bars:
            logger.enable_progress_bar()


def location_of(path: str, on_progress: Callable[[str], None] | None) -> str:
    """Return what transformers loads a model from: a hub name, or a folder (of a part, after fetching it)."""
    if path.startswith(PREFIX):
        return str(converted(part_folder(path.removeprefix(PREFIX), on_progress=on_progress), on_progress))
    return str(converted(Path(path), on_progress)) if Path(path).is_dir() else path


_OF_LOADING = (OSError, ValueError, RuntimeError, ImportError, SafetensorError)
_MOST_SPECIAL = 2000  # a tokenizer with more tokens has words among them
_WRITES = {"tokenizer": "tokenizer.save_pretrained(FOLDER)", "image processor": "processor.save_pretrained(FOLDER)"}
"""What comes with a model, and how it is written into its folder."""


def not_loadable(settings: ModelSettings, error: Exception, what: str = "model") -> ModelError:
    """Return what to tell the user when transformers cannot load a model, or what comes with it.

    Args:
        settings: where it is.
        error: what transformers said.
        what: model, tokenizer or image processor.
    """
    if "trust_remote_code" in str(error):
        return own_code_refusal(settings.path)
    first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    if first.rstrip().endswith(":"):  # a list follows
        first = str(error)
    first = textwrap.shorten(first, 300, placeholder=" ...")
    if "ignore_mismatched_sizes" in str(error):  # transformers tells what does not fit in a report that is silenced
        other = "the checkpoint's head has another number of classes than the task"
        mend = "take the model without that head, mend task.labels, or see if its config.json is that of these weights"
        return ModelError(f"model.path = {settings.path!r}: {other}; {mend}")
    if what == "model" and not isinstance(error, _OF_LOADING):  # a model's own code, to a config it was not written for
        other = f"transformers cannot make a model of its config.json ({type(error).__name__}: {first})"
        return ModelError(f"model.path = {settings.path!r}: {other}; take the model anew")
    headless = re.search(
        r"Unrecognized configuration class .*?(\w+)Config'?>? for this kind of AutoModel: (\w+)", first
    )
    if headless:
        return ModelError(
            f"model.path = {settings.path!r}: transformers has no {headless[2]} for a model of this kind "
            f"({headless[1]}), so it has no head for this task: take another model, or another task.kind"
        )
    if Path(settings.path).exists():
        write = _WRITES.get(what)
        mend = f"; write it there with {write}, or copy its files from where the model is from" if write else ""
        return ModelError(
            f"model.path = {settings.path!r}: the folder holds no {what} that transformers can load: "
            f"{textwrap.shorten(first, 200, placeholder=' ...')}{mend}"
        )
    return ModelError(
        f"model.path = {settings.path!r}: there is no such local folder, and the hub did not give a {what} of that "
        f"name ({first}); check the name, the network, or the token for a gated model"
    )


def load_base(
    settings: ModelSettings,
    *,
    auto_model: str,
    options: Mapping[str, Any],
    seed: int,
    compute: ComputeSettings | None = None,
    on_progress: Callable[[str], None] | None = None,
    notes: list[str] | None = None,
) -> tuple[PreTrainedModel, set[str]]:
    """Return the base model in fp32 on the CPU, in evaluation mode, and its layers that the checkpoint does not have.

    Such layers (a new head, a pooler) have random values, so they must be trained and go with the adapter.

    With ``settings.quantization`` and ``compute`` its linear layers are of 4 or 8 bits, and it is where it computes.

    Args:
        settings: where it is.
        auto_model: the transformers class that loads it.
        options: what its config must know of the task.
        seed: of the head's initial values, where the checkpoint has no head.
        compute: without ``auto``; needed for ``settings.quantization``. None: the base in full.
        on_progress: told what is fetched.
        notes: added to where a user should know something of the model.

    Raises:
        ModelError: there is no such model, transformers cannot load it for this task, or it must not be opened.
        MissingExtraError: what quantises is not installed.
    """
    expected = None if settings.config is None else described(settings.config, options)
    location = location_of(settings.path, on_progress)
    check_files(settings.path, location, settings.revision)
    extra: dict[str, Any] = (
        {"attn_implementation": settings.attn_implementation} if settings.attn_implementation else {}
    )
    if settings.quantization and compute is not None:
        extra |= quantized(settings.quantization, compute)
    torch.manual_seed(seed)
    try:
        with quiet(), no_pickle(settings.path):
            loaded: tuple[PreTrainedModel, dict[str, Any]] = getattr(transformers, auto_model).from_pretrained(
                location,
                revision=settings.revision or "main",
                dtype=torch.float32,
                use_safetensors=True,
                output_loading_info=True,
                **own_code(),
                **options,
                **extra,
            )
    except UserError:
        raise
    except Exception as error:  # whatever a model's own code says to files that it was not written for
        raise not_loadable(settings, error) from error
    model, report = loaded
    if expected is not None:
        _check_sizes(settings, expected, model.config)
    model.eval()
    settle(model)
    drawn = drawn_layers(settings, model, report["missing_keys"])
    _refuse_few_bits(settings, model, drawn)
    if "id2label" in options and not _lacks_head(model, report["missing_keys"]):
        known = names_of(_config(settings, location))
        told = turn_head(model, known, list(options["id2label"].values()))
        if told and notes is not None:
            notes.append(told)
    return model, drawn


def _lacks_head(model: PreTrainedModel, missing: Iterable[str]) -> bool:
    """Say whether a checkpoint lacks something outside the base: then its head has been drawn."""
    return any(not name.startswith(f"{model.base_model_prefix}.") for name in missing)


def _config(settings: ModelSettings, location: str) -> PretrainedConfig:
    """Return a checkpoint's config as it is, without what the task says."""
    with quiet():
        config: PretrainedConfig = transformers.AutoConfig.from_pretrained(
            location, revision=settings.revision or "main", **own_code()
        )
    return config


def drawn_layers(settings: ModelSettings, model: PreTrainedModel, missing: Iterable[str]) -> set[str]:
    """Return the layers that a checkpoint does not have, but for the head.

    Raises:
        ModelError: it lacks too much to be one of this model.
    """
    drawn = {name.rpartition(".")[0] for name in missing}
    layers = {name for name, module in model.named_modules() if name and not list(module.children())}
    if len(drawn) > max(4, len(layers) // 10) or drawn - layers:
        raise ModelError(
            f"model.path = {settings.path!r}: the checkpoint lacks more of {type(model).__name__} than a head or a "
            f"pooler ({', '.join(sorted(missing)[:3])}, ...): take one of this architecture"
        )
    return {name for name in drawn if not HEADS & set(name.split("."))}


def _refuse_few_bits(settings: ModelSettings, model: PreTrainedModel, drawn: Iterable[str]) -> None:
    """Refuse a model whose layers that are to be trained in full are of few bits.

    Raises:
        ModelError: with their names.
    """
    names = [name for name in sorted(drawn) if type(model.get_submodule(name)).__module__.startswith("bitsandbytes.")]
    if names:
        raise ModelError(
            f"model.quantization = {settings.quantization!r}: the checkpoint of {settings.path!r} lacks "
            f"{', '.join(names)}, which would be trained in 4 or 8 bits: use a checkpoint that has them, or remove "
            "model.quantization"
        )


def layers_outside_the_base(model: PreTrainedModel) -> set[str]:
    """Return a model's layers outside its base, which its checkpoint may lack; PEFT finds the usual heads by itself."""
    prefix = model.base_model_prefix
    if not prefix or not hasattr(model, prefix):
        return set()
    vocabulary = model.get_output_embeddings()  # a decoder's: it has been trained with the base
    return {
        name
        for name, layer in model.named_modules()
        if name != prefix
        and layer is not vocabulary
        and not name.startswith(f"{prefix}.")
        and not list(layer.children())
        and any(True for _ in layer.parameters())
        and not HEADS & set(name.split("."))
    }


def load_tokenizer(
    settings: ModelSettings, *, on_progress: Callable[[str], None] | None = None
) -> PreTrainedTokenizerBase:
    """Return the base model's tokenizer.

    Raises:
        ModelError: there is none, or it knows no words: its files are not there.
    """
    location = location_of(settings.path, on_progress)
    try:
        with quiet(), no_pickle(settings.path):
            tokenizer: PreTrainedTokenizerBase = transformers.AutoTokenizer.from_pretrained(
                location, revision=settings.revision or "main", **own_code()
            )
    except UserError:
        raise
    except Exception as error:  # a damaged file ends as its reader likes: `tokenizers` raises Exception itself
        raise not_loadable(settings, error, "tokenizer") from error
    _refuse_empty(settings, tokenizer)
    return tokenizer


def _refuse_empty(settings: ModelSettings, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a tokenizer of special tokens alone: transformers makes one where a folder has no tokenizer's files.

    Raises:
        ModelError: with what to do.
    """
    if len(tokenizer) > _MOST_SPECIAL or not type(tokenizer).vocab_files_names:  # of bytes: it needs no files
        return
    words = {*tokenizer.get_vocab()} - {*tokenizer.all_special_tokens} - {*tokenizer.added_tokens_encoder}
    if len(words) < 2:  # SentencePiece's has its blank
        files = ", ".join(sorted({*type(tokenizer).vocab_files_names.values()}))
        raise ModelError(
            f"model.path = {settings.path!r}: its tokenizer knows no words, for its files are missing ({files}): write "
            f"them there with {_WRITES['tokenizer']}, or copy them from where the model is from"
        )


def fit_padding(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Make tokenizer and model agree on the padding token: a decoder finds a row's last token by it.

    Raises:
        ModelError: the tokenizer has no token to pad with.
    """
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token is None:
            raise ModelError("the tokenizer has neither a padding nor an end token: set tokenizer.pad_token")
        tokenizer.pad_token = tokenizer.eos_token
    model.config.pad_token_id = tokenizer.pad_token_id


def padding_side(model: PreTrainedModel) -> str:
    """Return where rows are padded that are classified.

    Decoders that classify look for a row's last token from the right; XLNet alone takes the last place, whatever its
    tokenizer says.
    """
    return "left" if model.config.model_type == "xlnet" else "right"


def position_limit(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the most tokens that model and tokenizer take in one row."""
    limit, positions = int(tokenizer.model_max_length), positions_of(model)
    return limit if positions is None else min(limit, positions)


def positions_of(model: PreTrainedModel) -> int | None:
    """Return the most tokens that a model takes in one row; None: its config names no limit."""
    positions = getattr(model.config, "max_position_embeddings", None)
    if positions is None or positions < 1:  # XLNet says -1
        return None
    table = getattr(getattr(model.base_model, "embeddings", None), "position_embeddings", None)
    unused = getattr(table, "padding_idx", None)  # RoBERTa counts positions from behind its padding token's number
    return int(positions) - (0 if unused is None else int(unused) + 1)


def described(table: Mapping[str, Any], options: Mapping[str, Any]) -> PretrainedConfig:
    """Return the transformers config that a recipe's ``model.config`` describes.

    Raises:
        ModelError: transformers knows no such model, or does not take these values.
    """
    known = transformers.models.auto.configuration_auto.CONFIG_MAPPING
    name = table["model_type"]
    if name not in known:
        close = difflib.get_close_matches(name, list(known), n=1)
        hint = f"did you mean {close[0]!r}?" if close else "take it from the config.json of a model of that kind"
        raise ModelError(f"model.config: transformers has no model_type {name!r}; {hint}")
    try:
        with quiet():
            config: PretrainedConfig = transformers.AutoConfig.for_model(**{**table, **options})
    except Exception as error:  # each model's config checks its values in its own way
        raise bad_config(error) from error
    fields = {*type(config)().to_dict(), *config.attribute_map}
    for key in sorted(set(table) - fields):  # transformers takes any key; old names among them must go through
        close = difflib.get_close_matches(key, fields, n=1, cutoff=0.85)
        if close:
            raise ModelError(f"model.config.{key}: a {name} has no such setting; did you mean {close[0]!r}?")
    return config


def bad_config(error: Exception) -> ModelError:
    """Return what to tell the user when transformers cannot make a model of a recipe's table."""
    text = textwrap.shorten(f"{type(error).__name__}: {error}", 200, placeholder=" ...")
    return ModelError(f"model.config: transformers cannot make a model of it: {text}")


def _check_sizes(settings: ModelSettings, expected: PretrainedConfig, loaded: PretrainedConfig) -> None:
    """Refuse weights whose sizes (whole numbers) are not those that the recipe gives."""
    sizes = [key for key, value in (settings.config or {}).items() if type(value) is int and key != "num_labels"]
    wrong = [
        f"{key} = {getattr(expected, key)!r} (the weights have {getattr(loaded, key, None)!r})"
        for key in ("model_type", *sizes)
        if getattr(expected, key) != getattr(loaded, key, None)
    ]
    if wrong:
        raise ModelError(
            f"model.config does not fit the weights of {settings.path!r}: {', '.join(wrong)}; correct it, or leave "
            "model.config out"
        )
