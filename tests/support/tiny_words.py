"""Word-level tokenizers that know the words of these tests: what a text becomes can be read off."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

_TEXT = "the film was good bad and a b c d what is plus answer question context so then now here Question: Answer:"
WORDS = [*_TEXT.split(), *map(str, range(30))]
SPECIAL = ["<pad>", "<unk>", "<s>", "</s>"]
_NAMES = {"pad_token": "<pad>", "unk_token": "<unk>"}


def decoder_words(
    special: Sequence[str] = (), template: str | None = None, extra: Sequence[str] = ()
) -> PreTrainedTokenizerFast:
    """Return a decoder's tokenizer: nothing is added to a text."""
    inner, names = _inner([*SPECIAL, *special], extra), {**_NAMES, "bos_token": "<s>", "eos_token": "</s>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, extra_special_tokens=list(special), **names)
    tokenizer.chat_template = template
    return tokenizer


def encoder_words(extra: Sequence[str] = (), *, eos: bool = False) -> PreTrainedTokenizerFast:
    """Return an encoder's tokenizer as BERT's ([CLS] text [SEP]); with ``eos`` as BART's (<s> text </s>)."""
    inner = _inner(SPECIAL, extra)
    inner.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B:1 </s>:1", special_tokens=[("<s>", 2), ("</s>", 3)]
    )
    names = {"bos_token": "<s>", "eos_token": "</s>"} if eos else {"cls_token": "<s>", "sep_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=inner, **_NAMES, **names)


def _inner(special: Sequence[str], extra: Sequence[str]) -> Tokenizer:
    vocabulary = {word: number for number, word in enumerate(dict.fromkeys([*special, *WORDS, *extra]))}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token=_NAMES["unk_token"]))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.decoder = decoders.WordPiece(prefix="##")
    inner.add_special_tokens([AddedToken(word, special=True) for word in special])
    return inner
