"""The section ``[model]``: the base model."""

from __future__ import annotations

from typing import Any, Literal

import tomli_w
from pydantic import Field, field_validator

from fedsa.recipe.base import Machine, Resolved, Settings

__all__ = ["ModelSettings"]


class ModelSettings(Settings):
    """The base model. It is loaded once, and never changed."""

    path: Machine[str] = Field(description="hub name, local folder, or part:NAME for a packaged part")
    revision: Machine[Resolved[str | None]] = Field(None, description="branch, tag or commit on the hub")
    attn_implementation: Machine[Resolved[Literal["eager", "sdpa", "flash_attention_2"] | None]] = Field(
        None, description="attention kernel; empty: eager or sdpa, whichever trains faster here"
    )
    quantization: Machine[Literal["nf4", "int8"] | None] = Field(
        None,
        description="frozen linear layers in 4 or 8 bits as in QLoRA (extra bnb), for lora, rslora and dora; empty: "
        "not quantised",
    )
    config: Machine[dict[str, Any] | None] = Field(
        None,
        description="architecture as a transformers config (model_type, hidden_size, ...): `fedsa plan` then needs no "
        "download; weights of other sizes are refused",
    )

    @field_validator("config")
    @classmethod
    def _names_a_model_type(cls, config: dict[str, Any] | None) -> dict[str, Any] | None:
        if config is None:
            return None
        if not isinstance(config.get("model_type"), str):
            raise ValueError("needs model_type, the architecture's name in transformers, e.g. 'roberta'")
        try:
            tomli_w.dumps(config)
        except TypeError as error:
            raise ValueError(f"must hold only values that TOML can write: {error}") from None
        return config
