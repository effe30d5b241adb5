"""One frozen base with one adapter in it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, final

import torch
from peft import PeftConfig, PeftModel
from torch import Tensor, nn

from fedsa.adapters.algebra import fits, padded
from fedsa.adapters.factors import VARIANTS
from fedsa.errors import ModelError
from fedsa.models.computing import place
from fedsa.models.configs import scaled, variant_of
from fedsa.models.deltas import Deltas
from fedsa.models.dropout import Streams
from fedsa.models.from_weights import STARTS, start_from_base
from fedsa.models.gates import fold_gates, with_gates
from fedsa.models.insertion import by_key, use_own_dropout, with_adapter, with_further_adapters
from fedsa.models.layout import Layout
from fedsa.models.packing import LayerStack
from fedsa.models.products import scales_of
from fedsa.models.stacked import AdaptedLayer, Stack, adapted_layers, obstacles
from fedsa.models.steady import check_kept, check_norms, persistent_buffers, steady_layers, versions
from fedsa.models.weighing import require_weighable
from fedsa.seeds import seed_torch
from fedsa.types import Gating, Key, State

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["AdaptedModel"]


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
        gated: how each layer weighs its adapters, if it does; there is a tensor ``Factor.GATE`` for each layer.
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
        gated: Gating | None = None,
        scaling: Callable[[float, int], float] | None = None,
    ) -> None:
        self.variant = variant_of(config)
        self.adapters = adapters
        seed_torch(seed)
        self.model: PeftModel = with_adapter(base, scaled(config, scaling), adapters[0])
        self.config: Any = self.model.peft_config[adapters[0]]
        with_further_adapters(self.model, adapters, seed)
        if self.variant in STARTS:
            start_from_base(self.model, self.variant, adapters)
        self.model.config.use_cache = False
        self.device, self.precision = device, precision
        self.streams = Streams()
        if gated:
            require_weighable(self.model)
            with_gates(self.model, gated, adapters, self.streams, seed)
        check_norms(self.model)
        self._steady = steady_layers(self.model)
        self._parameters = by_key(self.model)
        place(self.model, self._parameters.values(), device=device, precision=precision)
        self._deltas = _deltas(self.model, self.streams, self.variant) if folds else None
        self.initial: State = self.read(self.keys)
        use_own_dropout(self.model, self.streams, adapters)
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
            batch: of rows client by client, on the CPU; where a task makes several sequences of a row, they follow each
                other.
            counts: rows of each client.
            pack: lay several texts into one row.
            seeds: see `Streams.begin`, as for ``batches`` and ``weights``.
            batches: of each client.
            weights: of adapters.
        """
        each = len(batch["attention_mask"]) // sum(counts)
        own = {name: weight.repeat_interleave(each) for name, weight in (weights or {}).items()}
        counts = [count * each for count in counts]
        layout = Layout(batch["attention_mask"], counts, pack=pack, device=torch.device(self.device))
        self.streams.begin(layout, seeds, batches, own)
        return {name: value.to(self.device, non_blocking=True) for name, value in batch.items()}

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
        if self._stackable is None:  # looked for once: it takes longer than all else that a stack needs
            self._stackable = adapted_layers(self.model)
        return Stack(
            self.model,
            self.streams,
            tensors,
            clients,
            dtype=self.dtype,
            trained=tuple(trained),
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

    @property
    def scaling(self) -> dict[str, float]:
        """The s in ΔW = s·B·A of each module whose LoRA adapter is such a product: of no convolution, of no experts."""
        return scales_of(self.model, self.adapters[0])

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
        fold_gates(self.model, self.adapters)
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
        return torch.autocast(self.device.partition(":")[0], dtype=torch.bfloat16, enabled=self.precision == "bf16")


def _deltas(model: nn.Module, streams: Streams, variant: str) -> Deltas:
    """The tensors that are added to the frozen weights.

    Raises:
        ModelError: the variant has an update of another kind, or a layer is not linear.
    """
    if not VARIANTS[variant].is_product:
        raise ModelError(f"the method adds to the frozen weights, which does not go with adapter.variant = {variant!r}")
    return Deltas(model, streams)
