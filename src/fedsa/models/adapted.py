"""One frozen base with one adapter in it."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, final

import psutil
import torch
from peft import IA3Config, LoHaConfig, LoraConfig, PeftConfig, PeftModel, VeraConfig, get_peft_model
from peft.tuners.lora.layer import Linear as LoraLinear
from peft.tuners.lora.layer import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer, check_target_module_exists
from peft.utils import ModulesToSaveWrapper
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from fedsa.adapters.algebra import fits, padded
from fedsa.adapters.factors import VARIANTS, key_of
from fedsa.errors import ModelError, near
from fedsa.models.base import HEADS, quiet
from fedsa.models.deltas import Deltas
from fedsa.models.dropout import AdapterDropout, FastDropout, Streams
from fedsa.models.from_weights import STARTS, start_from_base
from fedsa.models.gates import with_gates
from fedsa.models.layout import Layout
from fedsa.models.loha import without_coins
from fedsa.models.lora_xs import with_middles
from fedsa.models.packing import LayerStack
from fedsa.models.products import is_product
from fedsa.models.stacked import AdaptedLayer, Stack, adapted_layers, obstacles
from fedsa.models.steady import check_kept, check_norms, persistent_buffers, steady_layers, versions
from fedsa.models.tied import untie
from fedsa.recipe import AdapterSettings
from fedsa.seeds import derive_seed
from fedsa.types import Key, State

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_VERA_PROJECTION = re.compile(r"\.vera_[AB]\.")

__all__ = [
    "AdaptedModel",
    "by_key",
    "check_names",
    "peft_config_of",
    "variant_of",
    "with_adapter",
    "with_drawn_layers",
    "with_further_adapters",
    "with_sorted_names",
]


def with_drawn_layers(config: PeftConfig, drawn: set[str], base: nn.Module) -> PeftConfig:
    """Return a copy of the config that also trains the layers which the checkpoint did not have.

    PEFT finds a head by the kind of task. Where the config names none, the base's head is named here.
    """
    copied: Any = copy.deepcopy(config)
    if copied.task_type is None:
        drawn = drawn | HEADS & {name for name, _ in base.named_children()}
    if drawn:
        copied.modules_to_save = sorted({*(copied.modules_to_save or ()), *drawn})
    result: PeftConfig = copied
    return result


def with_sorted_names(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return PEFT's JSON with its lists of names sorted: it writes sets, in an order that differs from run to run."""
    lists = ("target_modules", "exclude_modules", "feedforward_modules", "modules_to_save")
    return {
        name: sorted(value) if name in lists and isinstance(value, list) else value for name, value in config.items()
    }


def peft_config_of(settings: AdapterSettings, *, task_type: str | None, seed: int) -> PeftConfig:
    """Return the PEFT config that a recipe's adapter section describes.

    Args:
        settings: the section.
        task_type: PEFT's, e.g. ``SEQ_CLS``; None: it has none for the task.
        seed: VeRA's frozen projections are drawn from it.
    """
    common: dict[str, Any] = {"target_modules": settings.target_modules, "task_type": task_type}
    if settings.modules_to_save is not None:
        common["modules_to_save"] = list(settings.modules_to_save)
    if settings.variant == "ia3":
        inner = settings.feedforward_modules
        if inner is None and settings.target_modules is not None:
            inner = []
        return IA3Config(**common, feedforward_modules=inner)
    common["r"] = settings.rank
    if settings.variant == "vera":
        return VeraConfig(
            **common, vera_dropout=settings.dropout, projection_prng_key=seed % 2**31, save_projection=True
        )
    if settings.variant == "loha":
        return LoHaConfig(**common, alpha=settings.lora_alpha)
    if settings.variant in STARTS:
        common["init_lora_weights"] = settings.variant
    return LoraConfig(
        **common,
        lora_alpha=settings.lora_alpha,
        lora_dropout=settings.dropout,
        use_rslora=settings.variant == "rslora",
        use_dora=settings.variant == "dora",
    )


def variant_of(config: PeftConfig) -> str:
    """Return the adapter variant of a PEFT config.

    Raises:
        ModelError: fedsa cannot federate it; the reason is given.
    """
    if isinstance(config, VeraConfig):
        variant = "vera"
    elif isinstance(config, LoraConfig):
        variant = _lora_variant_of(config)
    elif isinstance(config, LoHaConfig):
        variant = "loha"
        for name in ("rank_dropout", "module_dropout"):
            if getattr(config, name):
                raise ModelError(
                    f"{name} = {getattr(config, name)!r} is not supported: PEFT draws it from one stream for all "
                    "clients; use 0"
                )
    elif isinstance(config, IA3Config):
        variant = "ia3"
        if (config.target_modules is None) is not (config.feedforward_modules is None):
            raise ModelError(
                "target_modules and feedforward_modules go together: give both (the second: those of the first whose "
                "input is scaled, not their output; [] for none), or neither for PEFT's choice"
            )
    else:
        raise ModelError(
            f"adapter type {getattr(config.peft_type, 'value', config.peft_type)!r} is not supported; "
            "supported: LORA (also with use_rslora, use_dora or init_lora_weights 'pissa', 'olora' or 'lora_xs'), "
            "VERA, LOHA and IA3"
        )
    _refuse_unknown(config)
    bias = getattr(config, "bias", "none")
    if bias != "none":
        raise ModelError(f"bias = {bias!r} is not supported: it trains biases of the shared base model; use 'none'")
    return variant


_KNOWN = {
    *("task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision"),
    *("inference_mode", "r", "alpha", "lora_alpha", "lora_dropout", "vera_dropout", "fan_in_fan_out", "bias"),
    *("target_modules", "exclude_modules", "feedforward_modules", "modules_to_save", "target_parameters"),
    *("layers_to_transform", "layers_pattern", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora"),
    *("init_lora_weights", "init_weights", "init_ia3_weights", "projection_prng_key", "save_projection", "d_initial"),
    *("rank_dropout", "module_dropout", "use_effective_conv2d"),
}
"""The settings of PEFT's configs that are federated as they are. Others change what an update is, or name code."""


def _refuse_unknown(config: PeftConfig) -> None:
    """Refuse a setting of PEFT's config that is not known here, and not at its default.

    Raises:
        ModelError: with its name.
    """
    usual = type(config)()
    for each in dataclasses.fields(config):
        value = getattr(config, each.name)
        if each.name not in _KNOWN and value and value != getattr(usual, each.name):
            raise ModelError(f"{each.name} is not supported in the adapter's PEFT config: leave it out")


def _check_size(base: nn.Module, config: Any) -> None:
    """Refuse a rank whose tensors would not fit into memory, before they are made.

    Raises:
        ModelError: with what they would take.
    """
    rank = max([getattr(config, "r", 0), *(getattr(config, "rank_pattern", None) or {}).values()])
    named = config.target_modules not in (None, "all-linear")
    layers = [
        layer.weight
        for path, layer in base.named_modules()
        if (check_target_module_exists(config, path) if named else isinstance(layer, nn.Linear))
        and isinstance(getattr(layer, "weight", None), Tensor)
    ]
    numbers = rank * sum(sum(weight.shape[:2]) for weight in layers)
    if isinstance(config, VeraConfig) and layers:  # one pair of projections for all layers
        numbers = rank * max(sum(weight.shape[:2]) for weight in layers)
    free = psutil.virtual_memory().available
    if not any(weight.is_meta for weight in layers) and _COPIES * 4 * numbers > free:
        raise ModelError(
            f"adapter.r = {rank}: the adapter's tensors would take {4 * numbers / 2**30:,.0f} GiB, {_COPIES} copies of "
            f"them are needed, and {free / 2**30:,.1f} GiB of memory are free: take a smaller r"
        )


_COPIES = 3
"""Of an adapter's tensors in memory at least: the model's, the initial ones, the server's."""


def _lora_variant_of(config: LoraConfig) -> str:
    """Return the variant of a LoRA config. What scales it, ``use_rslora`` too, goes with each of them."""
    start = config.init_lora_weights
    if start not in (True, "gaussian", *STARTS):
        known = ", ".join(map(repr, ("gaussian", *STARTS)))
        raise ModelError(f"init_lora_weights = {start!r} is not supported; use True or one of {known}")
    if start in STARTS and config.use_dora:
        raise ModelError(f"init_lora_weights = {start!r} does not go with use_dora = True: leave one of them out")
    if start in STARTS:
        return str(start)
    return "dora" if config.use_dora else "rslora" if config.use_rslora else "lora"


@final
class AdaptedModel:
    """One frozen base with one adapter in it. Clients take turns: their tensors are written into it and read out of it.

    Args:
        base: the base model; the adapter's layers are put into it.
        config: PEFT's description of the adapter.
        seed: of the adapter's initial values.
        device: where it computes.
        precision: ``fp32`` or ``bf16``: of forward and backward. With bf16 the frozen weights are stored in bf16 too;
            adapters and head stay fp32.
        adapters: their names; the updates of several are added.
        folds: there is a tensor ``Factor.DELTA`` for each adapted layer, which is added to its frozen weight.
        gated: each layer weighs its adapters for each token; there is a tensor ``Factor.GATE`` for each.
        scaling: given the variant's own s in ΔW = s·B·A and the rank, returns the s to use.

    Attributes:
        model: the PEFT model.
        config: PEFT's description of the adapter, with what PEFT chose filled in.
        variant: as `variant_of` says.
        adapters: their names; the head is the first one's.
        initial: the tensors that every client starts from.
        streams: what the adapters' dropout is drawn from; told of every pass.
        layers: the row of alike layers, which packed batches go through.

    Raises:
        ModelError: the adapter does not fit the model, or fedsa cannot federate it.
    """

    def __init__(
        self,
        base: PreTrainedModel,
        config: PeftConfig,
        *,
        seed: int,
        device: str = "cpu",
        precision: str = "fp32",
        adapters: tuple[str, ...] = ("default",),
        folds: bool = False,
        gated: bool = False,
        scaling: Callable[[float, int], float] | None = None,
    ) -> None:
        self.variant = variant_of(config)
        self.adapters = adapters
        torch.manual_seed(seed)
        self.model: PeftModel = with_adapter(base, _scaled(config, scaling), adapters[0])
        self.config: Any = self.model.peft_config[adapters[0]]
        with_further_adapters(self.model, adapters, seed)
        if self.variant in STARTS:  # what is taken out of the base goes to the first adapter
            for adapter in adapters if self.variant == "lora_xs" else adapters[:1]:
                start_from_base(self.model, self.variant, adapter)
        self.model.config.use_cache = False
        self.device, self.precision = device, precision
        self.streams = Streams()
        if gated:
            self.require_weighable()
            with_gates(self.model, adapters, self.streams, seed)
        check_norms(self.model)
        self._steady = steady_layers(self.model)
        self._parameters = by_key(self.model)
        self._store(device)
        self._deltas = _deltas(self.model, self.streams, self.variant) if folds else None
        self.initial: State = self.read(self.keys)
        _own_dropout(self.model, self.streams, adapters)
        self.model.eval()
        self._stackable: list[AdaptedLayer] | None = None
        self.layers = LayerStack(self.model.get_base_model(), self.streams)

    @contextlib.contextmanager
    def training(self) -> Iterator[None]:
        """A context in which the model is in training mode and takes batches that its streams are told of.

        Layers with running statistics are in evaluation mode all the same: see `fedsa.models.steady`.

        Raises:
            ModelError: the base keeps other state, which the training has changed.
        """
        self.model.train()
        for layer in self._steady:
            layer.eval()
        before = versions(self.model)
        try:
            yield
        finally:
            self.model.eval()
            self.streams.end()
        check_kept(self.model, before)

    def check_steady(self, run: Callable[[nn.Module], Any]) -> None:
        """Refuse a model that keeps state of its own which training changes; whoever has none is not tried.

        Args:
            run: makes one pass through the model, of a batch that it has begun with.

        Raises:
            ModelError: with the layer's name, or why the model cannot make a pass.
        """
        if not any(True for _ in persistent_buffers(self.model)):
            return
        with torch.random.fork_rng(devices=[]), torch.no_grad(), self.training(), self.autocast():
            run(self.model)

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """A context in which the model is in evaluation mode, without gradients, and takes batches as in training."""
        self.model.eval()
        try:
            with torch.inference_mode(), self.autocast():
                yield
        finally:
            self.streams.end()

    def begin(
        self,
        batch: Mapping[str, Tensor],
        counts: Sequence[int],
        *,
        pack: bool = False,
        seeds: Sequence[int] = (),
        batches: Sequence[int] = (),
        weights: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Return a batch where the model computes, and tell the model what it is.

        Args:
            batch: of rows client by client, on the CPU.
            counts: rows of each client.
            pack: lay several texts into one row.
            seeds: see `Streams.begin`, as for ``batches`` and ``weights``.
            batches: of each client.
            weights: of adapters.
        """
        layout = Layout(batch["attention_mask"], counts, pack=pack, device=torch.device(self.device))
        self.streams.begin(layout, seeds, batches, weights)
        return {name: value.to(self.device, non_blocking=True) for name, value in batch.items()}

    def representations(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Return the last hidden state of rows, the mean over each row's tokens; shape (rows, width), float32.

        It is of the model as it is now, without its head.

        Raises:
            ModelError: the model has no hidden state to tell.
        """
        unused = {"labels", *(("attention_mask",) if "pixel_values" in batch else ())}
        inputs = {name: value for name, value in batch.items() if name not in unused}
        base: Any = self.model.get_base_model()
        hidden = getattr(base.base_model(**inputs), "last_hidden_state", None)
        mask = batch["attention_mask"][:, :, None]
        if hidden is None or hidden.shape[:2] != mask.shape[:2]:
            raise ModelError(f"{type(base).__name__} tells no last hidden state of each token")
        mean: Tensor = (hidden.float() * mask).sum(dim=1) / mask.sum(dim=1)
        return mean

    def checkpoint_activations(self) -> None:
        """Compute a layer's activations again in the backward pass instead of keeping them.

        Raises:
            ModelError: the model cannot.
        """
        try:
            base: Any = self.model.get_base_model()
            base.gradient_checkpointing_enable({"use_reentrant": False, "context_fn": FastDropout.again})
        except ValueError as error:
            raise ModelError(f"compute.gradient_checkpointing = true cannot be used with this model: {error}") from None

    def compile_blocks(self) -> None:
        """Compile the parts of the layers that have no adapter in them : the first pass is slow."""
        for layer in self.layers.layers:
            for child in layer.children():
                if not any(isinstance(part, BaseTunerLayer | ModulesToSaveWrapper) for part in child.modules()):
                    compiled: Any = torch.compile(child.forward, dynamic=True)
                    child.forward = compiled

    def _store(self, device: str) -> None:
        """Put the model where it computes, frozen weights in the precision that it computes in."""
        own = {id(parameter) for parameter in self._parameters.values()}
        for parameter in self.model.parameters():
            if id(parameter) in own:
                parameter.data = parameter.data.float()
            elif self.precision == "bf16" and parameter.is_floating_point():
                parameter.data = parameter.data.bfloat16()
        for name, buffer in self.model.named_buffers():  # other buffers (rotary frequencies) need their precision
            if self.precision == "bf16" and _VERA_PROJECTION.search(name):
                buffer.data = buffer.data.bfloat16()
        self.model.to(device)

    @property
    def dtype(self) -> torch.dtype:
        """What the layers compute in."""
        return torch.bfloat16 if self.precision == "bf16" else next(iter(self._parameters.values())).dtype

    def stack(self, clients: int, trained: Iterable[Key] = ()) -> Stack:
        """Return the layers of many clients at once; as a context it puts them in the place of this model's own.

        Args:
            clients: how many.
            trained: keys whose gradients are wanted.
        """
        tensors = {key: parameter.detach() for key, parameter in self._parameters.items()}
        deltas = None
        if self._deltas is not None:
            deltas = self._deltas.stacked(clients, device=next(self.model.parameters()).device, dtype=self.dtype)
        wanted = tuple(trained)
        if self._stackable is None:  # looked for once: it takes longer than all else that a stack needs
            self._stackable = adapted_layers(self.model)
        return Stack(
            self.model,
            self.streams,
            tensors,
            clients,
            dtype=self.dtype,
            trained=wanted,
            deltas=deltas,
            layers=self._stackable,
        )

    @property
    def attention(self) -> str:
        """The attention kernel in use, by transformers' name."""
        return str(self.model.config._attn_implementation)

    def set_attention(self, name: str) -> bool:
        """Switch the attention kernel, and say whether the model has one of that name."""
        base = self.model.get_base_model()
        try:
            base.set_attn_implementation(name)  # type: ignore[operator]
        except (ValueError, ImportError):
            return False
        return self.attention == name

    def obstacles(self) -> list[str]:
        """Return why many clients cannot go through this model at once; nothing if they can."""
        return obstacles(self.model)

    def require_weighable(self) -> None:
        """Refuse adapters whose updates cannot be weighed row by row.

        Raises:
            ModelError: they are not of linear layers (but of embeddings, say).
        """
        for path, module in self.model.named_modules():
            if isinstance(module, LoraLayer) and not isinstance(module, LoraLinear):
                raise ModelError(
                    f"the method weighs adapters row by row, which goes with linear layers only, and "
                    f"{path.removeprefix('base_model.model.')} is {type(module).__name__}: leave it out of "
                    "the adapter's layers"
                )

    @property
    def scaling(self) -> dict[str, float]:
        """The s in ΔW = s·B·A of each module whose LoRA adapter is such a product: of no convolution, of no experts."""
        prefix = "base_model.model."
        return {
            name.removeprefix(prefix): float(module.scaling[self.adapters[0]])
            for name, module in self.model.named_modules()
            if isinstance(module, LoraLayer) and is_product(module)
        }

    @property
    def keys(self) -> tuple[Key, ...]:
        """Every tensor of the adapters, the head and what is added to the frozen weights, in the model's order."""
        return (*self._parameters, *(self._deltas.keys if self._deltas is not None else ()))

    def read(self, keys: Iterable[Key]) -> dict[Key, Tensor]:
        """Return copies of the named tensors, on the CPU."""
        deltas = self._deltas
        return {
            key: deltas.read(key)
            if deltas is not None and key in deltas
            else self._parameters[key].detach().to("cpu", copy=True)
            for key in keys
        }

    @torch.no_grad()
    def write(self, tensors: State) -> None:
        """Put values into the named tensors; the others keep theirs.

        Those of a lower rank than the model's are followed by zeros, which training leaves at zero: the gradient of a
        row of A is zero where B's column is zero, and the other way round.

        Raises:
            ModelError: a tensor is not in this model, or of a shape that does not fit.
        """
        for key, value in tensors.items():
            if self._deltas is not None and key in self._deltas:
                self._deltas.write(key, value, device=self.device, dtype=self.dtype)
                continue
            parameter = self._parameters.get(key)
            if parameter is None or not fits(key, value.shape, parameter.shape):
                there = "absent" if parameter is None else f"of shape {tuple(parameter.shape)}"
                raise ModelError(
                    f"tensor {key} of shape {tuple(value.shape)} does not fit the model, where it is {there}"
                )
            parameter.copy_(padded(value, parameter.shape))

    def merge(self) -> Any:
        """Return the base model with everything added to its weights. This model is of no use any more."""
        if self._deltas is not None:
            self._deltas.merge()
        return self.model.merge_and_unload(safe_merge=True)

    def train_only(self, keys: Iterable[Key]) -> dict[Key, nn.Parameter]:
        """Mark exactly the named tensors as trained, and return them in the model's order.

        What is added to the frozen weights is the server's: it is never trained.
        """
        wanted = set(keys)
        for key, parameter in self._parameters.items():
            parameter.requires_grad_(key in wanted)
            parameter.grad = None
        return {key: parameter for key, parameter in self._parameters.items() if key in wanted}

    def autocast(self) -> torch.autocast:
        """Return the context that forward passes run in."""
        kind = self.device.partition(":")[0]
        return torch.autocast(kind, dtype=torch.bfloat16, enabled=self.precision == "bf16")


def _own_dropout(model: nn.Module, streams: Streams, adapters: Sequence[str]) -> None:
    """Put dropout with a stream for each client in the place of PEFT's, and gates in front of what they weigh."""
    for module in model.modules():
        for name in ("lora_dropout", "vera_dropout"):
            table = getattr(module, name, None) if isinstance(module, BaseTunerLayer) else None
            if isinstance(table, nn.ModuleDict):
                for adapter, dropout in table.items():
                    table[adapter] = own = AdapterDropout(float(getattr(dropout, "p", 0.0)), streams, adapter)
                    gate = getattr(module, "fedsa_gate", None)
                    own.gate = (gate, adapters.index(adapter)) if gate is not None else None


def with_adapter(base: PreTrainedModel, config: PeftConfig, name: str = "default") -> PeftModel:
    """Put an adapter into a base model. One that starts from the base weights does not do so here.

    Raises:
        ModelError: the adapter does not fit the model.
    """
    check_names(base, config)
    plain: Any = config
    if str(plain.target_modules).lower() == "all-linear":
        plain = copy.copy(plain)
        plain.target_modules = _linear_layers(base, plain)
    start = getattr(config, "init_lora_weights", True)
    if start in STARTS:
        plain = copy.copy(plain)
        plain.init_lora_weights = True
    try:
        _check_size(base, plain)
        untie(base, plain)
        with quiet():
            model: PeftModel = get_peft_model(base, plain, adapter_name=name)
    except (ValueError, TypeError, RuntimeError, OverflowError, re.error) as error:
        targets = f"adapter.target_modules = {getattr(config, 'target_modules', None)!r}"
        raise ModelError(f"the adapter does not fit the model: {targets}: {error}") from error
    if start in STARTS:
        plain.init_lora_weights = start
    if start == "lora_xs":
        with_middles(model, name)
    without_coins(model)
    return model


def _linear_layers(base: PreTrainedModel, config: PeftConfig) -> set[str]:
    """Return the linear layers that ``all-linear`` stands for: all but the output layer, and what is trained in full.

    PEFT leaves out the head of a sequence classifier alone; a head that it also trains in full, it then refuses.
    """
    full = {*HEADS, *(getattr(config, "modules_to_save", None) or ())}
    vocabulary = base.get_output_embeddings()
    return {
        name
        for name, layer in base.named_modules()
        if isinstance(layer, nn.Linear | Conv1D)
        and layer is not vocabulary
        and not any(name == each or f".{each}." in f".{name}." for each in full)
    }


def with_further_adapters(model: PeftModel, names: Sequence[str], seed: int) -> None:
    """Put more adapters like the first into a model; the updates of all are added. The head stays the first one's.

    Args:
        model: with an adapter of the first name.
        names: of all adapters.
        seed: the initial values of each are drawn from it.
    """
    for name in names[1:]:
        config: Any = copy.deepcopy(model.peft_config[names[0]])
        config.modules_to_save = None
        start = getattr(config, "init_lora_weights", True)
        if start in STARTS:  # the base is taken apart once
            config.init_lora_weights = True
        torch.manual_seed(derive_seed(seed, "adapter", name))
        with quiet():
            PeftModel.add_adapter(model, name, config)  # the class's own: that of a classifier gives each a head
        if start == "lora_xs":
            with_middles(model, name)
    if len(names) > 1:
        model.base_model.set_adapter(list(names))  # type: ignore[operator]


def _scaled(config: PeftConfig, scaling: Callable[[float, int], float] | None) -> PeftConfig:
    """Return the config with the alpha that makes s what ``scaling`` says, so that PEFT computes it by itself.

    Raises:
        ModelError: layers have ranks or alphas of their own.
    """
    if scaling is None or not isinstance(config, LoraConfig):
        return config
    divisor = math.sqrt(config.r) if config.use_rslora else config.r
    own = config.lora_alpha / divisor
    wanted = scaling(own, config.r)
    if wanted == own:
        return config
    if config.rank_pattern or config.alpha_pattern:
        raise ModelError("the method sets the adapter's scale itself: rank_pattern and alpha_pattern do not go with it")
    copied: Any = copy.deepcopy(config)
    copied.lora_alpha = wanted * divisor
    result: PeftConfig = copied
    return result


def _deltas(model: nn.Module, streams: Streams, variant: str) -> Deltas:
    """Return what is added to the frozen weights.

    Raises:
        ModelError: the variant has an update of another kind, or a layer is not linear.
    """
    if not VARIANTS[variant].is_product:
        raise ModelError(f"the method adds to the frozen weights, which does not go with adapter.variant = {variant!r}")
    return Deltas(model, streams)


def by_key(model: PeftModel) -> dict[Key, nn.Parameter]:
    """Return the parameters of the adapter and the head, in the model's order."""
    parameters = {}
    for name, parameter in model.named_parameters():
        key = key_of(name, trained=parameter.requires_grad)
        if key is not None:
            parameters[key] = parameter
    return parameters


def check_names(base: nn.Module, config: PeftConfig) -> None:
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
