"""Base models and their adapted layers. Beside export.py the only room that knows transformers and peft."""

from __future__ import annotations

import contextlib
import copy
import difflib
import json
import os
import re
import textwrap
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import torch
import transformers
from peft import LoraConfig, PeftConfig, PeftModel, VeraConfig, get_peft_model
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from fedsa.adapters.factors import key_of
from fedsa.errors import ModelError, near
from fedsa.parts import PREFIX, part_folder
from fedsa.recipe import AdapterSettings, ComputeSettings, ModelSettings
from fedsa.types import Key, State

if TYPE_CHECKING:
    from collections.abc import Callable

    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

__all__ = [
    "HEADS",
    "AdaptedModel",
    "EmptyModel",
    "empty_model",
    "fit_padding",
    "layers_outside_the_base",
    "load_base",
    "load_tokenizer",
    "peft_config_of",
    "position_limit",
    "quiet",
    "resolve_compute",
    "variant_of",
    "with_drawn_layers",
    "with_sorted_names",
]

HEADS = {"classifier", "score"}
"""The names under which PEFT finds a classification head by itself."""


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
            yield
    finally:
        logger.set_verbosity(verbosity)
        if bars:
            logger.enable_progress_bar()


def _location(path: str, on_progress: Callable[[str], None] | None) -> str:
    if path.startswith(PREFIX):
        return str(part_folder(path.removeprefix(PREFIX), on_progress=on_progress))
    return path


def _not_loadable(settings: ModelSettings, error: Exception) -> ModelError:
    first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    if "ignore_mismatched_sizes" in str(error):  # transformers tells what does not fit in a report that is silenced
        what = "the checkpoint's head has another number of classes than the task"
        mend = "take the model without that head, or mend task.labels"
        return ModelError(f"model.path = {settings.path!r}: {what}; {mend}")
    if Path(settings.path).exists():
        return ModelError(
            f"model.path = {settings.path!r}: the folder holds no model that transformers can load: {first}"
        )
    return ModelError(
        f"model.path = {settings.path!r}: there is no such local folder, and the hub did not give a model of that name "
        f"({first}); check the name, the network, or the token for a gated model"
    )


def load_base(
    settings: ModelSettings,
    *,
    auto_model: str,
    options: Mapping[str, Any],
    seed: int,
    on_progress: Callable[[str], None] | None = None,
) -> tuple[PreTrainedModel, set[str]]:
    """Return the base model in fp32 on the CPU, in evaluation mode, and its layers that the checkpoint does not have.

    Such layers (a new head, a pooler) have random values, so they must be trained and go with the adapter.

    Args:
        settings: where it is.
        auto_model: the transformers class that loads it.
        options: what its config must know of the task.
        seed: of the head's initial values, where the checkpoint has no head.
        on_progress: told what is fetched.

    Raises:
        ModelError: there is no such model, or transformers cannot load it for this task.
    """
    described = None if settings.config is None else _described(settings.config, options)
    location = _location(settings.path, on_progress)
    extra = {"attn_implementation": settings.attn_implementation} if settings.attn_implementation else {}
    torch.manual_seed(seed)
    try:
        with quiet():
            loaded: tuple[PreTrainedModel, dict[str, Any]] = getattr(transformers, auto_model).from_pretrained(
                location,
                revision=settings.revision or "main",
                dtype=torch.float32,
                use_safetensors=True,
                output_loading_info=True,
                **options,
                **extra,
            )
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        raise _not_loadable(settings, error) from error
    model, report = loaded
    if described is not None:
        _check_sizes(settings, described, model.config)
    model.eval()
    return model, _drawn(settings, model, report["missing_keys"])


def _drawn(settings: ModelSettings, model: PreTrainedModel, missing: Iterable[str]) -> set[str]:
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


def layers_outside_the_base(model: PreTrainedModel) -> set[str]:
    """Return a model's layers outside its base, which its checkpoint may lack; PEFT finds the usual heads by itself."""
    prefix = model.base_model_prefix
    if not prefix or not hasattr(model, prefix):
        return set()
    return {
        name
        for name, layer in model.named_modules()
        if name != prefix
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
        ModelError: there is none.
    """
    location = _location(settings.path, on_progress)
    try:
        with quiet():
            return transformers.AutoTokenizer.from_pretrained(location, revision=settings.revision or "main")
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise _not_loadable(settings, error) from error


def with_drawn_layers(config: PeftConfig, drawn: set[str]) -> PeftConfig:
    """Return a copy of the config that also trains the layers which the checkpoint did not have."""
    copied: Any = copy.deepcopy(config)
    if drawn:
        copied.modules_to_save = sorted({*(copied.modules_to_save or ()), *drawn})
    result: PeftConfig = copied
    return result


def with_sorted_names(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return PEFT's JSON with its lists of names sorted: it writes sets, in an order that differs from run to run."""
    lists = ("target_modules", "exclude_modules", "modules_to_save")
    return {
        name: sorted(value) if name in lists and isinstance(value, list) else value for name, value in config.items()
    }


def peft_config_of(settings: AdapterSettings, *, task_type: str, seed: int) -> PeftConfig:
    """Return the PEFT config that a recipe's adapter section describes.

    Args:
        settings: the section.
        task_type: PEFT's, e.g. ``SEQ_CLS``.
        seed: VeRA's frozen projections are drawn from it.
    """
    common: dict[str, Any] = {"r": settings.rank, "target_modules": settings.target_modules, "task_type": task_type}
    if settings.modules_to_save is not None:
        common["modules_to_save"] = list(settings.modules_to_save)
    if settings.variant == "vera":
        return VeraConfig(
            **common, vera_dropout=settings.dropout, projection_prng_key=seed % 2**31, save_projection=True
        )
    return LoraConfig(
        **common,
        lora_alpha=settings.lora_alpha,
        lora_dropout=settings.dropout,
        use_rslora=settings.variant == "rslora",
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


def position_limit(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the most tokens that model and tokenizer take in one row."""
    limit, positions = int(tokenizer.model_max_length), _positions(model)
    return limit if positions is None else min(limit, positions)


def _positions(model: PreTrainedModel) -> int | None:
    """Return the most tokens that a model takes in one row; None: its config names no limit."""
    positions = getattr(model.config, "max_position_embeddings", None)
    if positions is None:
        return None
    table = getattr(getattr(model.base_model, "embeddings", None), "position_embeddings", None)
    unused = getattr(table, "padding_idx", None)  # RoBERTa counts positions from behind its padding token's number
    return int(positions) - (0 if unused is None else int(unused) + 1)


def variant_of(config: PeftConfig) -> str:
    """Return the adapter variant of a PEFT config.

    Raises:
        ModelError: fedsa cannot federate it; the reason is given.
    """
    if isinstance(config, VeraConfig):
        variant = "vera"
    elif isinstance(config, LoraConfig):
        if config.use_dora:
            raise ModelError("use_dora = True is not supported: the role of DoRA's magnitude is not defined here yet")
        if config.init_lora_weights not in (True, "gaussian"):
            raise ModelError(
                f"init_lora_weights = {config.init_lora_weights!r} is not supported: it changes the base weights, "
                "which all clients share; use True or 'gaussian'"
            )
        variant = "rslora" if config.use_rslora else "lora"
    else:
        raise ModelError(
            f"adapter type {getattr(config.peft_type, 'value', config.peft_type)!r} is not supported; "
            "supported: LORA (also with use_rslora) and VERA"
        )
    if getattr(config, "bias", "none") != "none":
        raise ModelError(
            f"bias = {config.bias!r} is not supported: it trains biases of the shared base model; use 'none'"
        )
    return variant


@final
class AdaptedModel:
    """One frozen base with one adapter in it. Clients take turns: their tensors are written into it and read out of it.

    Args:
        base: the base model; the adapter's layers are put into it.
        config: PEFT's description of the adapter.
        seed: of the adapter's initial values.
        device: where it computes.
        precision: ``fp32`` or ``bf16``: of forward and backward, by autocast; weights and adapters stay fp32.

    Attributes:
        model: the PEFT model.
        config: PEFT's description of the adapter, with what PEFT chose filled in.
        variant: as `variant_of` says.
        initial: the tensors that every client starts from.

    Raises:
        ModelError: the adapter does not fit the model, or fedsa cannot federate it.
    """

    def __init__(
        self, base: PreTrainedModel, config: PeftConfig, *, seed: int, device: str = "cpu", precision: str = "fp32"
    ) -> None:
        self.variant = variant_of(config)
        torch.manual_seed(seed)
        self.model: PeftModel = _with_adapter(base, config)
        self.config: Any = self.model.peft_config["default"]
        self.model.to(device).eval()
        self.device, self.precision = device, precision
        self._parameters = _by_key(self.model)
        self.initial: State = self.read(self._parameters)

    @property
    def keys(self) -> tuple[Key, ...]:
        """Every tensor of the adapter and the head, in the model's order."""
        return tuple(self._parameters)

    def read(self, keys: Iterable[Key]) -> dict[Key, Tensor]:
        """Return copies of the named tensors, on the CPU."""
        return {key: self._parameters[key].detach().to("cpu", copy=True) for key in keys}

    @torch.no_grad()
    def write(self, tensors: State) -> None:
        """Put values into the named tensors; the others keep theirs.

        Raises:
            ModelError: a tensor is not in this model, or of another shape.
        """
        for key, value in tensors.items():
            parameter = self._parameters.get(key)
            if parameter is None or parameter.shape != value.shape:
                there = "absent" if parameter is None else f"of shape {tuple(parameter.shape)}"
                raise ModelError(
                    f"tensor {key} of shape {tuple(value.shape)} does not fit the model, where it is {there}"
                )
            parameter.copy_(value)

    def train_only(self, keys: Iterable[Key]) -> dict[Key, nn.Parameter]:
        """Mark exactly the named tensors as trained, and return them in the model's order."""
        wanted = set(keys)
        for key, parameter in self._parameters.items():
            parameter.requires_grad_(key in wanted)
            parameter.grad = None
        return {key: parameter for key, parameter in self._parameters.items() if key in wanted}

    def autocast(self) -> torch.autocast:
        """Return the context that forward passes run in."""
        kind = self.device.partition(":")[0]
        return torch.autocast(kind, dtype=torch.bfloat16, enabled=self.precision == "bf16")


def _with_adapter(base: PreTrainedModel, config: PeftConfig) -> PeftModel:
    """Put an adapter into a base model.

    Raises:
        ModelError: the adapter does not fit the model.
    """
    _check_names(base, config)
    try:
        with quiet():
            return get_peft_model(base, config)
    except (ValueError, TypeError, re.error) as error:
        targets = f"adapter.target_modules = {getattr(config, 'target_modules', None)!r}"
        raise ModelError(f"the adapter does not fit the model: {targets}: {error}") from error


def _by_key(model: PeftModel) -> dict[Key, nn.Parameter]:
    """Return the parameters of the adapter and the head, in the model's order."""
    parameters = {}
    for name, parameter in model.named_parameters():
        key = key_of(name, trained=parameter.requires_grad)
        if key is not None:
            parameters[key] = parameter
    return parameters


def _check_names(base: nn.Module, config: PeftConfig) -> None:
    """Refuse a name that matches no layer: PEFT itself only complains when none of the targets matches."""
    known = [name for name, _ in base.named_modules() if name]
    leaves = [name for name, module in base.named_modules() if not list(module.children())]
    linears = [name for name, layer in base.named_modules() if isinstance(layer, nn.Linear | nn.Conv1d)]
    linear = {name.rpartition(".")[2] for name in linears}
    tops = {name.partition(".")[0] for name in known} | linear
    problems = []
    for field, places, suggested in (("target_modules", leaves, linear), ("modules_to_save", known, tops)):
        names = getattr(config, field, None)
        for wanted in [] if names is None or isinstance(names, str) else sorted(names):
            by_itself = field == "modules_to_save" and wanted in HEADS  # PEFT adds these, there or not
            if not by_itself and not any(f".{name}".endswith(f".{wanted}") for name in places):
                problems.append(f"adapter.{field}: the model has no layer {wanted!r}; {near(wanted, suggested)}")
    if problems:
        raise ModelError("\n".join(problems))


# -- models without values ---------------------------------------------------------------------------------------------


@final
@dataclass(frozen=True)
class EmptyModel:
    """An adapted model without values, on the device ``meta``: its tensors have shapes and types only.

    Attributes:
        model: the PEFT model.
        parameters: those of the adapter and the head, in the model's order.
        longest: the most tokens that the model takes in one row; None: its config names no limit.
    """

    model: PeftModel
    parameters: Mapping[Key, nn.Parameter]
    longest: int | None


def empty_model(
    settings: ModelSettings,
    adapter: AdapterSettings,
    *,
    auto_model: str,
    options: Mapping[str, Any],
    task_type: str,
    on_progress: Callable[[str], None] | None = None,
) -> EmptyModel:
    """Return an adapted model without its weights, for counting.

    It is made of ``settings.config``, else of the config at ``settings.path``: of a model on the hub that alone is
    fetched. Of a local checkpoint the header tells which layers it lacks, so that they are trained; elsewhere they are
    taken to be those outside the base.

    Args:
        settings: the base model.
        adapter: as the recipe describes it.
        auto_model: the transformers class that would load the base.
        options: what its config must know of the task.
        task_type: PEFT's, e.g. ``SEQ_CLS``.
        on_progress: told what is fetched.

    Raises:
        ModelError: there is no such model, transformers cannot make one of its config, or the adapter does not fit.
    """
    base, drawn = _empty_base(settings, auto_model, options, on_progress)
    config = with_drawn_layers(peft_config_of(adapter, task_type=task_type, seed=0), drawn)
    with torch.device("meta"):
        model = _with_adapter(base, config)
    return EmptyModel(model, _by_key(model), _positions(base))


def _empty_base(
    settings: ModelSettings, auto_model: str, options: Mapping[str, Any], on_progress: Callable[[str], None] | None
) -> tuple[PreTrainedModel, set[str]]:
    # The flash kernel may be missing on the machine that plans; sdpa computes the same.
    attention = "sdpa" if settings.attn_implementation == "flash_attention_2" else settings.attn_implementation
    extra = {"dtype": torch.float32} | ({"attn_implementation": attention} if attention else {})
    make = getattr(transformers, auto_model).from_config
    if settings.config is not None:
        config = _described(settings.config, options)
        try:
            with quiet(), torch.device("meta"):
                base = make(config, **extra)
        except Exception as error:  # whatever a model's own code says to sizes that it was not written for
            raise _bad_config(error) from error
        missing = layers_outside_the_base(base)
    else:
        location = _location(settings.path, on_progress)
        try:
            with quiet():
                config = transformers.AutoConfig.from_pretrained(
                    location, revision=settings.revision or "main", **options
                )
                with torch.device("meta"):
                    base = make(config, **extra)
                missing = layers_outside_the_base(base)
                header = _header(Path(location))
                if header:  # transformers knows a checkpoint's names by many rules: it is asked, with empty tensors
                    base, report = type(base).from_pretrained(
                        None, config=config, state_dict=header, device_map="meta", output_loading_info=True, **extra
                    )
                    missing = _drawn(settings, base, report["missing_keys"])
        except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
            raise _not_loadable(settings, error) from error
    if base.config.pad_token_id is None:  # fit_padding would take it from the tokenizer; any number does for counting
        base.config.pad_token_id = 0
    return base, missing


def _header(folder: Path) -> dict[str, Tensor]:
    """Return a local checkpoint's tensors without their values; nothing where there is no checkpoint."""
    index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
    files = [single] if single.is_file() else []
    if not files and index.is_file():
        names = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        files = [folder / name for name in sorted(set(names))]
    tensors = {}
    for path in files:
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 (it is no mapping)
                tensors[name] = torch.empty(file.get_slice(name).get_shape(), device="meta")
    return tensors


def _described(table: Mapping[str, Any], options: Mapping[str, Any]) -> PretrainedConfig:
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
        raise _bad_config(error) from error
    fields = {*type(config)().to_dict(), *config.attribute_map}
    for key in sorted(set(table) - fields):  # transformers takes any key; old names among them must go through
        close = difflib.get_close_matches(key, fields, n=1, cutoff=0.85)
        if close:
            raise ModelError(f"model.config.{key}: a {name} has no such setting; did you mean {close[0]!r}?")
    return config


def _bad_config(error: Exception) -> ModelError:
    text = textwrap.shorten(f"{type(error).__name__}: {error}", 200, placeholder=" ...")
    return ModelError(f"model.config: transformers cannot make a model of it: {text}")


def _check_sizes(settings: ModelSettings, described: PretrainedConfig, loaded: PretrainedConfig) -> None:
    """Refuse weights whose sizes (whole numbers) are not those that the recipe gives."""
    sizes = [key for key, value in (settings.config or {}).items() if type(value) is int and key != "num_labels"]
    wrong = [
        f"{key} = {getattr(described, key)!r} (the weights have {getattr(loaded, key, None)!r})"
        for key in ("model_type", *sizes)
        if getattr(described, key) != getattr(loaded, key, None)
    ]
    if wrong:
        raise ModelError(
            f"model.config does not fit the weights of {settings.path!r}: {', '.join(wrong)}; correct it, or leave "
            "model.config out"
        )
