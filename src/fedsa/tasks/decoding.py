"""What tasks of decoders have in common: rows that end in answers, their losses, and what the model writes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch

from fedsa.tasks.base import IntArray, Task
from fedsa.tasks.beginnings import Beginnings
from fedsa.tasks.chat import stops_of
from fedsa.tasks.sequences import SequenceRows, answer_losses, sequence_example

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedTokenizerBase

    from fedsa.tasks.base import Encoded

__all__ = ["Decoding", "said_of"]


class Decoding(Task):
    """What tasks of decoders have in common: the loss is of the answers' tokens."""

    auto_model: ClassVar[str] = "AutoModelForCausalLM"
    peft_task_type: ClassVar[str] = "CAUSAL_LM"
    pipeline_tag: ClassVar[str] = "text-generation"
    has_head: ClassVar[bool] = False
    predicts_text: ClassVar[bool] = True

    chat: bool
    max_new_tokens: int
    stops: tuple[int, ...]
    limit: int | None
    writes: bool

    def model_options(self) -> dict[str, Any]:
        """Return nothing: the model is as it is."""
        return {}

    def losses(self, model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return the summed cross-entropy of each answer, and the number of its tokens."""
        return answer_losses(model, batch)

    def outputs(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """Return the summed cross-entropy of each answer in nats, shape (rows,)."""
        return answer_losses(model, batch)[0]

    def fitted(self, model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> Task:
        """Return the task as it is with a base model: it knows whether that writes, and at which tokens it stops."""
        stops = stops_of(model, tokenizer, chat=self.chat)
        fitted: Task = replace(cast(Any, self), stops=stops, writes=bool(getattr(model, "can_generate", bool)()))
        return fitted

    def beginnings(self, encoded: SequenceRows) -> IntArray:
        """The number of each row's tokens that the model gets as the beginning of its text, shape (rows,)."""
        raise NotImplementedError

    def sampling(self, encoded: Encoded) -> tuple[Task, Encoded] | None:
        """Return the task and the rows' beginnings; where it `generates`, itself; None where the model cannot write."""
        own = cast("SequenceRows", encoded)
        if self.generates:
            return self, own
        writing: Task = replace(cast(Any, self), limit=own.widest)
        return (writing, Beginnings(own, self.beginnings(own))) if self.writes else None

    def questions(self, encoded: Encoded, rows: IntArray) -> IntArray:
        """Return the rows, of those that have something to be predicted: all, where they have answers."""
        return rows[cast("SequenceRows", encoded).answers[rows] > 0]

    def prompts(self, encoded: Encoded, rows: IntArray) -> IntArray:
        """Return the items of the prompts alone, which stand behind the rows."""
        return rows + len(encoded.labels)

    def generate(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """The tokens that the model writes by greedy decoding, shape (rows, ``max_new_tokens``), padded.

        It writes no more than the model takes beside the longest prompt.
        """
        base = cast(Any, model).get_base_model()
        prompt = batch["input_ids"]
        pad, room = base.config.pad_token_id, self.max_new_tokens
        if self.limit is not None:
            room = min(room, self.limit - int(batch["attention_mask"].sum(dim=1).max()))
        written: Tensor = base.generate(
            input_ids=prompt,
            attention_mask=batch["attention_mask"],
            max_new_tokens=room,
            do_sample=False,
            temperature=None,
            top_p=None,
            top_k=None,
            use_cache=True,
            pad_token_id=pad,
            **({"eos_token_id": list(self.stops)} if self.stops else {}),
        )[:, prompt.shape[1] :]
        return torch.nn.functional.pad(written, (0, self.max_new_tokens - written.shape[1]), value=pad)

    def example(self, rows: int, size: int) -> dict[str, Tensor]:
        """Return a batch of a size, to count with."""
        return sequence_example(rows, size)

    def score(
        self, encoded: Encoded, rows: IntArray, outputs: Tensor, generated: Tensor | None = None
    ) -> dict[str, float]:
        """Return ``log_likelihood`` (mean over the answers' tokens, nats), ``loss`` (minus it) and ``perplexity``."""
        counts = cast("SequenceRows", encoded).terms[rows]
        loss = float(outputs.double().sum()) / float(counts.sum())
        perplexity = math.exp(loss) if loss < 700 else math.inf
        return {"log_likelihood": -loss, "loss": loss, "perplexity": perplexity}


def said_of(encoded: SequenceRows, generated: Tensor) -> list[str]:
    """Return what the model wrote, as texts.

    Args:
        encoded: the rows.
        generated: tokens, shape (rows, most tokens).
    """
    return encoded.texts(generated.tolist())
