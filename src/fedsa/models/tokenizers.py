"""A base model's tokenizer: loading it, and what model and tokenizer must agree on."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import transformers

from fedsa.errors import ModelError, UserError
from fedsa.models.loading import WRITES, location_of, not_loadable, quiet
from fedsa.models.opening import no_pickle, own_code
from fedsa.recipe import ModelSettings

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["fit_padding", "load_tokenizer", "padding_side", "position_limit", "positions_of"]

_MOST_SPECIAL = 2000  # a tokenizer with more tokens has words among them


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
            f"them there with {WRITES['tokenizer']}, or copy them from where the model is from"
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
