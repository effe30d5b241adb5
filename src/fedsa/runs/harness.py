"""A client's adapter in the field's own tests: tasks of EleutherAI's language model evaluation harness (lm-eval).

The model is the one that `fedsa.predict` asks, and all else is the harness's own: prompts, rows and metrics. So the
figures are those of the same adapter's export in lm-eval's command.
"""

from __future__ import annotations

import contextlib
import io
import logging
import math
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from importlib.util import find_spec
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import numpy as np
import torch
from jinja2 import TemplateError

from fedsa.errors import MissingExtraError, TrainingError, UserError
from fedsa.models import fit_padding, quiet
from fedsa.runs.predict.predictor import Predictor
from fedsa.runs.predict.sources import Loaded, open_source
from fedsa.seeds import seed_torch
from fedsa.system.permissions import HOW_TO_ALLOW, code_allowed
from fedsa.texts.words import counted, cut

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from fedsa.models import AdaptedModel

__all__ = ["HarnessFigure", "evaluate", "harness_version"]

_BATCH = 8  # rows of a forward pass: texts here may be long
_RESAMPLES = 100_000  # for standard errors without a formula, as the harness's command has it
_FILES = (".yaml", ".yml")
_SAYS_NOTHING = ("Both target_delimiter",)
"""How the harness's warnings begin that no user of this function can act on."""
_OF_TASKS = (OSError, ValueError, LookupError, TypeError, AttributeError, ImportError, AssertionError, RuntimeError)
"""What comes of a task whose rows or templates do not go; its own readers and metrics raise what they like of these."""


@final
@dataclass(frozen=True)
class HarnessFigure:
    """One figure of one client's adapter in one task.

    Attributes:
        client: its id.
        task: the harness's name of the task, or of a group of tasks.
        metric: the harness's name of the metric.
        filter: of what the model says, the part that is compared; ``none``: all of it.
        value: the figure; None where it is no finite number.
        stderr: its standard error; None where the harness has none.
        higher_is_better: None where the harness does not say.
        num_fewshot: examples with their answers that stand before each question.
        rows: that were asked; of a group, of all its tasks.
        rows_of_task: that there are; None for a group.
        version: the harness's version of the task.
    """

    client: str
    task: str
    metric: str
    filter: str
    value: float | None
    stderr: float | None
    higher_is_better: bool | None
    num_fewshot: int
    rows: int
    rows_of_task: int | None
    version: str

    def as_dict(self) -> dict[str, Any]:
        """Return it as one table of values that JSON can hold."""
        return asdict(self)


def evaluate(
    path: str | Path,
    tasks: str | Sequence[str],
    *,
    client: str | Sequence[str] | None = None,
    round: str = "chosen",
    base: str | PreTrainedModel | AdaptedModel | Callable[[], PreTrainedModel] | None = None,
    tokenizer: Any = None,
    num_fewshot: int | None = None,
    apply_chat_template: bool = False,
    limit: int | None = None,
    batch_size: int = _BATCH,
    on_progress: Callable[[str], None] | None = None,
    on_note: Callable[[str], None] | None = None,
) -> list[HarnessFigure]:
    """Return what clients' adapters come to in tasks of the language model evaluation harness (extra ``eval``).

    Args:
        path: as for `fedsa.Predictor.open`, like ``round``, ``base`` and ``tokenizer``.
        tasks: names of the harness's tasks or groups, or paths of task files (.yaml). Files may run code, so they need
            the user's permission.
        client: an id, several, or ``all``; None: the only client that there is.
        round: whose tensors.
        base: the base model.
        tokenizer: its tokenizer.
        num_fewshot: examples with their answers before each question; None: as the task says.
        apply_chat_template: questions are turns in the tokenizer's chat template.
        limit: rows of each task, the first ones; None: all.
        batch_size: rows of a forward pass.
        on_progress: told what takes time.
        on_note: told in whole sentences what is to be known of the adapters and the tasks.

    Returns:
        Client by client, the figures of each task.

    Raises:
        MissingExtraError: the harness is not installed.
        UserError: the folder, the client or a task cannot be used, or the model is none that writes.
        TrainingError: memory ran out.
    """
    tell, note = on_progress or (lambda text: None), on_note or (lambda text: None)
    if find_spec("lm_eval") is None:
        raise MissingExtraError("evaluation by the language model evaluation harness", "eval")
    names = [tasks] if isinstance(tasks, str) else [*dict.fromkeys(tasks)]
    _check_files(names)
    source = open_source(Path(path).expanduser(), round=round, base=base, tokenizer=tokenizer, tell=tell)
    clients = Predictor(source).chosen(client)
    for text in source.notes:
        note(text)
    loaded = source.load()
    if loaded.task.auto_model != "AutoModelForCausalLM":
        raise UserError(
            f"{source.path}: the harness asks models that write or score texts, and this one is for "
            f"{source.settings.kind} ({loaded.task.auto_model}): give a run or an adapter of a decoder "
            "(chat, dpo, generation, language_modeling or multiple_choice)"
        )
    tell("loading the harness's tasks")
    with _of_harness(names, note):
        found = _load_tasks(names)
        model = _as_harness_model(loaded, batch_size, tell)
    figures: list[HarnessFigure] = []
    for each in clients:
        tell(f"asking the adapter of {each}")
        loaded.model.write(loaded.state(each))
        with _of_harness(names, note):
            results = _asked(model, found, num_fewshot, limit, apply_chat_template)
        figures += _figures(each, results)
    return figures


def harness_version() -> str:
    """The version of the harness that is installed."""
    return version("lm-eval")


def _check_files(names: Sequence[str]) -> None:
    """Refuse task files that are not there, or that may not run.

    Raises:
        UserError: with what to do.
    """
    if not names:
        raise UserError("no task is named: give --tasks NAME (in Python `tasks`)")
    for name in names:
        if not _is_file(name):
            continue
        if not Path(name).is_file():
            raise UserError(f"task file {name} does not exist: mend the path, or give a task's name without .yaml")
        if not code_allowed():
            raise UserError(
                f"{name}: a task file of the harness can run code (its templates, and the functions that it names): "
                f"{HOW_TO_ALLOW}"
            )


def _is_file(name: str) -> bool:
    return name.endswith(_FILES)


def _load_tasks(names: Sequence[str]) -> dict[str, Any]:
    """Return the harness's ``tasks`` and ``groups`` by their names, with their rows.

    Raises:
        UserError: there is no task of that name.
    """
    from lm_eval.tasks import TaskManager

    files = [Path(name).read_text(encoding="utf-8") for name in names if _is_file(name)]
    has_group = any(re.search(r"^group\s*:", text, re.MULTILINE) for text in files)
    # looking through all of the harness's files takes seconds
    manager = TaskManager(include_defaults=len(files) < len(names) or has_group)
    for name in names:
        if not _is_file(name) and name not in manager.all_tasks:
            raise UserError(f"the harness has no task {cut(name, 80)!r}; {_alike(name, manager.all_tasks)}")
    return dict(manager.load([*names]))


def _alike(name: str, known: Sequence[str]) -> str:
    """A hint for a task that is not known: there are thousands of others."""
    import difflib

    close = difflib.get_close_matches(name, known, n=3) if len(name) < 100 else []
    return f"did you mean {' or '.join(map(repr, close))}?" if close else "`lm-eval ls tasks` lists them"


def _as_harness_model(loaded: Loaded, batch_size: int, tell: Callable[[str], None]) -> Any:
    """Return the adapted model as the harness asks it; clients' tensors are written into it afterwards."""
    from lm_eval.models.huggingface import HFLM

    class Told(HFLM):  # type: ignore[misc]  # the harness has no types
        """The harness's model, which tells how far it is."""

        count, total, told = 0, 0, 0

        def _begin(self, requests: Sequence[Any]) -> None:
            self.count, self.total, self.told = 0, len(requests), 0

        def _tell(self, batch: Any) -> None:
            self.count += len(batch)
            tenth = 10 * self.count // max(1, self.total)
            if tenth > self.told:
                tell(f"asked {self.count:,} of {counted(self.total, 'text')} at most")
            self.told = tenth

        def loglikelihood(self, requests: Any, disable_tqdm: bool = False) -> Any:
            self._begin(requests)
            return super().loglikelihood(requests, disable_tqdm=disable_tqdm)

        def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> Any:
            self._begin(requests)
            return super().loglikelihood_rolling(requests, disable_tqdm=disable_tqdm)

        def generate_until(self, requests: Any, disable_tqdm: bool = False) -> Any:
            self._begin(requests)
            return super().generate_until(requests, disable_tqdm=disable_tqdm)

        def _model_call(self, inps: Any, *arguments: Any, **named: Any) -> Any:
            self._tell(inps)
            return super()._model_call(inps, *arguments, **named)

        def _model_generate(self, context: Any, *arguments: Any, **named: Any) -> Any:
            self._tell(context)
            return super()._model_generate(context, *arguments, **named)

    adapted: AdaptedModel = loaded.model
    plain: Any = adapted.model.get_base_model()
    fit_padding(plain, loaded.processor)
    with _level(logging.getLogger("lm_eval.models.huggingface"), logging.ERROR):  # it warns that the model is loaded
        return Told(
            pretrained=adapted.model,
            backend="causal",
            tokenizer=loaded.processor,
            batch_size=batch_size,
            mixed_precision_dtype="bfloat16" if adapted.precision == "bf16" else None,
            softmax_dtype="float32",
        )


def _asked(
    model: Any, found: Mapping[str, Any], num_fewshot: int | None, limit: int | None, apply_chat_template: bool
) -> Mapping[str, Any]:
    """Return the harness's results for the adapter that is in the model, with the seeds of its own command.

    The harness's ``simple_evaluate`` would do it, but takes ten seconds each time to describe the machine.

    Raises:
        TrainingError: memory ran out.
    """
    from lm_eval import evaluate as ask
    from lm_eval.defaults import DEFAULT_OTHER_SEED, DEFAULT_RANDOM_SEED

    random.seed(DEFAULT_RANDOM_SEED)
    np.random.seed(DEFAULT_OTHER_SEED)
    seed_torch(DEFAULT_OTHER_SEED)
    for task in found["tasks"].values():
        own = task.get_config("num_fewshot")  # a task that says 0 wants none
        if own is None or (own and num_fewshot is not None):
            task.set_config("num_fewshot", num_fewshot or 0)
        task.set_fewshot_seed(DEFAULT_OTHER_SEED)
    try:
        results: Any = ask(
            model,
            found,
            limit=limit,
            bootstrap_iters=_RESAMPLES,
            log_samples=False,
            apply_chat_template=apply_chat_template,
            fewshot_as_multiturn=True,
            confirm_run_unsafe_code=code_allowed(),
        )
    except torch.OutOfMemoryError as error:
        raise TrainingError(
            f"out of memory on {model.device}: lower --batch-size (in Python `batch_size`), now {model.batch_size}"
        ) from error
    return dict(results)


def _figures(client: str, results: Mapping[str, Any]) -> Iterator[HarnessFigure]:
    """Yield the figures of a client's results, task by task as the harness has them."""
    for task, values in results["results"].items():
        counts = results["n-samples"].get(task, {})
        for key, value in values.items():
            metric, comma, part = key.partition(",")
            if not comma or metric.endswith("_stderr") or not isinstance(value, Real):
                continue
            yield HarnessFigure(
                client,
                task,
                metric,
                part,
                _finite(value),
                _finite(values.get(f"{metric}_stderr,{part}")),
                results["higher_is_better"].get(task, {}).get(metric),
                int(results["n-shot"].get(task) or 0),
                int(counts.get("effective") or values.get("sample_len") or 0),
                counts.get("original"),
                str(results["versions"].get(task, "")),
            )


def _finite(value: Any) -> float | None:
    return float(value) if isinstance(value, Real) and math.isfinite(float(value)) else None


@contextlib.contextmanager
def _of_harness(names: Sequence[str], note: Callable[[str], None]) -> Iterator[None]:
    """A context in which the harness works: quietly, its warnings as notes, and what it raises as an error to mend.

    Raises:
        UserError: a task does not go.
    """
    from yaml import YAMLError

    listener = _Listener()
    logger = logging.getLogger("lm_eval")
    logger.addHandler(listener)
    propagates, logger.propagate = logger.propagate, False
    try:
        with quiet(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):  # its bars
            yield
    except UserError:
        raise
    except (*_OF_TASKS, TemplateError, YAMLError) as error:
        first = next((line for line in str(error).splitlines() if line.strip()), "")
        raise UserError(
            f"the harness cannot use {', '.join(map(repr, names))} here ({type(error).__name__}: {cut(first, 300)}): "
            "see whether its rows can be read on this machine (they come from the model hub, or from where a task's "
            "file says) and whether the task goes with this model"
        ) from error
    finally:
        logger.removeHandler(listener)
        logger.propagate = propagates
    for text in listener.told:
        note(text)


class _Listener(logging.Handler):
    """Keeps each of the harness's warnings once."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.told: dict[str, None] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a warning, in one line."""
        text = " ".join(record.getMessage().split())
        if not any(begin in text for begin in _SAYS_NOTHING):
            self.told[f"lm-eval: {cut(text, 400)}"] = None


@contextlib.contextmanager
def _level(logger: logging.Logger, level: int) -> Iterator[None]:
    before = logger.level
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.setLevel(before)
