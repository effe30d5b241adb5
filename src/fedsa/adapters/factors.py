"""Which PEFT parameter plays which role. The one table; a name that is not in it is an error, never a guess."""

from __future__ import annotations

import re
from typing import NamedTuple

from fedsa.errors import ModelError
from fedsa.types import Factor, Key, Side

__all__ = ["VARIANTS", "Variant", "key_of"]


class Variant(NamedTuple):
    """An adapter variant.

    Attributes:
        factors: what is trained of it.
        is_product: its whole update is ΔW = s·B·A, with A of shape (r, in) and B of shape (out, r).
        zero_side: the side whose initial values make the initial ΔW zero. None: it is not zero, and s·B·A of the
            initial tensors has been taken from the frozen weights, so that the adapted model starts from what the base
            gives all the same.
        fixed_start: why a client cannot draw an initial A of its own; empty: it can, as A is drawn at random.
    """

    factors: tuple[Factor, ...]
    is_product: bool
    zero_side: Side | None = Side.B
    fixed_start: str = ""

    @property
    def starts_at_zero(self) -> bool:
        """The initial ΔW is zero."""
        return self.zero_side is not None


_OF_THE_BASE = "its A starts from the base weights"
_CONSTANT = "its vectors start from constants, and its random A and B are frozen and one for all clients"
_NO_A = "it trains no A"
_PAIR = (Factor.A, Factor.B, Factor.HEAD)
_HADAMARD = (Factor.HADAMARD_A1, Factor.HADAMARD_A2, Factor.HADAMARD_B1, Factor.HADAMARD_B2, Factor.HEAD)

VARIANTS: dict[str, Variant] = {
    "lora": Variant(_PAIR, is_product=True),
    "rslora": Variant(_PAIR, is_product=True),
    "vera": Variant((Factor.LAMBDA_D, Factor.LAMBDA_B, Factor.HEAD), is_product=False, fixed_start=_CONSTANT),
    "dora": Variant((Factor.A, Factor.B, Factor.MAGNITUDE, Factor.HEAD), is_product=False),
    "pissa": Variant(_PAIR, is_product=True, zero_side=None, fixed_start=_OF_THE_BASE),
    "olora": Variant(_PAIR, is_product=True, zero_side=None, fixed_start=_OF_THE_BASE),
    "loha": Variant(_HADAMARD, is_product=False, zero_side=Side.A, fixed_start="it has two A's, one of them zero"),
    "ia3": Variant((Factor.SCALE, Factor.HEAD), is_product=False, zero_side=Side.WHOLE, fixed_start=_NO_A),
    "lora_xs": Variant((Factor.MIDDLE, Factor.HEAD), is_product=False, zero_side=Side.WHOLE, fixed_start=_NO_A),
}
"""The adapter variants. VeRA's and LoRA-XS's own A and B are frozen buffers and belong to the base."""

_PREFIX = "base_model.model."
_NAMES: tuple[tuple[re.Pattern[str], Factor], ...] = tuple(
    (re.compile(pattern), factor)
    for pattern, factor in (
        (r"(?P<module>.+)\.lora_(?:embedding_)?A\.(?P<adapter>[^.]+)(?:\.weight)?", Factor.A),
        (r"(?P<module>.+)\.lora_(?:embedding_)?B\.(?P<adapter>[^.]+)(?:\.weight)?", Factor.B),
        (r"(?P<module>.+)\.lora_B\.(?P<adapter>[^.]+)\.parametrizations\.weight\.original", Factor.MIDDLE),
        (r"(?P<module>.+)\.vera_lambda_d\.(?P<adapter>[^.]+)", Factor.LAMBDA_D),
        (r"(?P<module>.+)\.vera_lambda_b\.(?P<adapter>[^.]+)", Factor.LAMBDA_B),
        (r"(?P<module>.+)\.lora_magnitude_vector\.(?P<adapter>[^.]+)(?:\.weight)?", Factor.MAGNITUDE),
        (r"(?P<module>.+)\.hada_w1_a\.(?P<adapter>[^.]+)", Factor.HADAMARD_B1),
        (r"(?P<module>.+)\.hada_w1_b\.(?P<adapter>[^.]+)", Factor.HADAMARD_A1),
        (r"(?P<module>.+)\.hada_w2_a\.(?P<adapter>[^.]+)", Factor.HADAMARD_B2),
        (r"(?P<module>.+)\.hada_w2_b\.(?P<adapter>[^.]+)", Factor.HADAMARD_A2),
        (r"(?P<module>.+)\.fedsa_gate\.(?P<adapter>[^.]+)", Factor.GATE),
        (r"(?P<module>.+)\.ia3_l\.(?P<adapter>[^.]+)", Factor.SCALE),
        (r"(?P<module>.+)\.modules_to_save\.(?P<adapter>[^.]+)\.(?P<rest>.+)", Factor.HEAD),
    )
)


def key_of(name: str, *, trained: bool) -> Key | None:
    """Return the key of a PEFT model's parameter, or None for a frozen parameter of the base model.

    Args:
        name: as in ``PeftModel.named_parameters()``.
        trained: PEFT marked it as trainable.

    Raises:
        ModelError: PEFT trains the parameter, but its role is not known here.

    >>> key_of("base_model.model.layer.0.query.lora_A.default.weight", trained=True)
    Key(module='layer.0.query', factor=<Factor.A: 'A'>, adapter='default')
    >>> key_of("base_model.model.classifier.original_module.weight", trained=False)
    """
    short = name.removeprefix(_PREFIX)
    for pattern, factor in _NAMES:
        match = pattern.fullmatch(short)
        if match:
            module = match["module"]
            if factor is Factor.HEAD:
                module = f"{module}.{match['rest']}"
            return Key(module, factor, match["adapter"])
    if trained:
        raise ModelError(
            f"the adapter trains {name!r}, whose role is not known to fedsa (A side, B side or head), so it cannot be "
            f"shared or kept by rule; known variants: {', '.join(VARIANTS)}"
        )
    return None
