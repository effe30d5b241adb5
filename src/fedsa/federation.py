"""A federation, wired: model, data, clients, method. Made from a recipe or from Python objects."""

from __future__ import annotations

import copy
import hashlib
import json
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, final

import numpy as np
import torch
from torch import nn

from fedsa.adapters.factors import VARIANTS, key_of
from fedsa.algorithms import check_algorithm, make_algorithm
from fedsa.algorithms.base import Algorithm, Plan, ServerState
from fedsa.callbacks import check_callbacks
from fedsa.client import ClientStates, Learner, Mixing, Site, majority_accuracy
from fedsa.client.training.autotune import choose_attention, choose_training, compile_model
from fedsa.client.training.head_warmup import obstacle
from fedsa.data.partition import label_counts
from fedsa.data.rows import ClientTable, DealtRows, deal_rows, deal_tables
from fedsa.errors import ConfigError, DataError, FetchError, Mistake, ModelError, near
from fedsa.models import (
    AdaptedModel,
    check_layer_names,
    check_model_extras,
    empty_base,
    fit_padding,
    image_side,
    image_tokens,
    layers_outside_the_base,
    load_base,
    load_image_processor,
    load_tokenizer,
    names_of,
    padding_side,
    peft_config_of,
    plain_fingerprint,
    position_limit,
    resolve_compute,
    turn_head,
    unlike_products,
    variant_of,
    with_drawn_layers,
    with_image_size,
)
from fedsa.packages.parts import PREFIX
from fedsa.recipe import (
    DEFAULT_LOCAL_STEPS,
    OBJECTS,
    AdapterSettings,
    ComputeSettings,
    ModelSettings,
    Recipe,
    TaskSettings,
    parse_recipe,
    refuse_objects,
    with_absolute_paths,
)
from fedsa.seeds import derive_seed
from fedsa.server import Server, held_out, sample_size
from fedsa.steps.cast import WireDtype, on_wire
from fedsa.system.process import give_back
from fedsa.tasks import make_task
from fedsa.tasks.base import Encoded, IntArray, Task
from fedsa.texts.words import counted
from fedsa.types import Factor, Key, Side, SplitName, State, total_bytes, total_elements

if TYPE_CHECKING:
    from peft import PeftConfig
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = [
    "Federation",
    "check_early",
    "check_layers",
    "check_personal",
    "client_ranks",
    "first_round",
    "fresh_base",
    "load_processor",
    "notes_on_texts",
]

Progress = Callable[[str], None]

_KERNELS = ("eager", "sdpa", "flash_attention_2")
"""The attention kernels that a recipe can name."""

_NAMES_IN_CONFIGS = {
    "r": ("r",),
    "lora_alpha": ("lora_alpha", "alpha"),
    "dropout": ("lora_dropout", "vera_dropout"),
    "target_modules": ("target_modules",),
    "feedforward_modules": ("feedforward_modules",),
    "modules_to_save": ("modules_to_save",),
}
"""A recipe's settings of the adapter, and what PEFT's configs call them: at most one of the names is in a config."""


@final
@dataclass(frozen=True)
class Federation:
    """Everything a run needs, in memory. Engines drive it; nothing in it changes but the model's adapter tensors.

    Attributes:
        recipe: resolved: no ``auto`` left in it, paths absolute, a hub model's commit named.
        algorithm: the method.
        model: the base with its adapter, shared by all clients.
        tokenizer: the base model's; its image processor, where rows are images.
        task: the task.
        encoded: every row, as tokens or pixels.
        rows: the rows as text, and who holds which.
        measured: settings that were open, and were chosen by measuring: (section, name).
        ranks: client id to its rank, of those whose rank is less than the adapter's.
        held_out: ids of clients whose rows are there, but that are never in the federation, sorted.
        notes: whole sentences on rows and model that a user should know; the run and the report show them.
        base: fingerprint of the base model as it was loaded.
    """

    recipe: Recipe
    algorithm: Algorithm
    model: AdaptedModel
    tokenizer: PreTrainedTokenizerBase
    task: Task
    encoded: Encoded
    rows: DealtRows
    measured: tuple[tuple[str, str], ...] = ()
    ranks: Mapping[str, int] = field(default_factory=dict)
    held_out: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    base: str = ""

    @classmethod
    def from_recipe(cls, recipe: Recipe, *, on_progress: Progress | None = None) -> Federation:
        """Return the federation that a recipe describes.

        Args:
            recipe: as `parse_recipe` gives it.
            on_progress: told what takes time (fetching, loading, tokenising).

        Raises:
            UserError: the recipe's model, adapter or data cannot be used.
            FetchError: a packaged part could not be fetched.
        """
        refuse_objects(recipe, "the recipe")
        tell = on_progress or (lambda text: None)
        check_early(recipe)
        rows = deal_rows(recipe, on_progress=tell)
        task = make_task(recipe.task, rows.label_names)
        tell("loading the model")
        notes: list[str] = []
        base, drawn = _base(recipe, task, tell, notes)
        seed = derive_seed(recipe.seed, "init")
        config = peft_config_of(recipe.adapter, task_type=task.peft_task_type, seed=seed)
        config = with_drawn_layers(config, drawn, base)
        return cls._build(recipe, base, load_processor(recipe, task), config, task, rows, tell, notes)

    @classmethod
    def from_objects(
        cls,
        model: str | ModelSettings | Mapping[str, Any] | PreTrainedModel,
        peft_config: PeftConfig,
        clients: Mapping[str, ClientTable] | Sequence[ClientTable],
        *,
        rounds: int,
        tokenizer: PreTrainedTokenizerBase | None = None,
        partition: Mapping[str, Any] | None = None,
        task: TaskSettings | Mapping[str, Any] | None = None,
        on_progress: Progress | None = None,
        **settings: Any,
    ) -> Federation:
        """Return a federation made of Python objects.

        Args:
            model: hub name or local folder, a recipe's ``[model]`` (say, ``{"path": NAME, "revision": COMMIT}``), or a
                loaded model with a fitting head. A loaded model is adapted in place and cast to fp32 (with
                ``compute.precision`` bf16, its frozen weights to bf16), so it serves one federation only. It keeps its
                attention kernel. Its layers outside the base (head, pooler) are trained and exported with the adapter.
                Whether a layer *inside* the base was in a checkpoint or is random cannot be known: name such layers in
                ``modules_to_save``.
            peft_config: a PEFT ``LoraConfig``, ``VeraConfig``, ``LoHaConfig`` or ``IA3Config``; it is copied.
            clients: client id to its rows, or a list of rows (ids ``client-1``, ...). A client's rows are one
                ``datasets.Dataset`` (split by ``partition``'s fractions) or a ``DatasetDict`` with ``train`` and
                ``test``, and ``validation`` (where no client has that, it is cut from ``train``).
            rounds: communication rounds.
            tokenizer: needed with a loaded model (an image processor, where rows are images); else the model's own.
                One given beside a name is not in the recipe: ``RunResult.export`` writes it, ``fedsa export`` writes
                the model's own.
            partition: settings of a recipe's ``data.partition``: fractions, sizes, group.
            task: columns and labels; see `TaskSettings`.
            on_progress: told what takes time.
            settings: any other top-level key of a recipe, e.g. ``algorithm="fedsa"``, ``training={"batch_size": 8}``.

        Raises:
            UserError: something does not fit; a ConfigError lists all mistakes in the settings.
        """
        tell = on_progress or (lambda text: None)
        model = {"path": model} if isinstance(model, str) else model
        by_name = model if isinstance(model, ModelSettings | Mapping) else None
        if not isinstance(model, ModelSettings | Mapping):
            _refuse_adapted(model)
        named = clients if isinstance(clients, Mapping) else _numbered(clients)
        recipe = _recipe_of_objects(by_name, peft_config, rounds, task, partition, settings)
        rows = deal_tables(named, recipe)
        the_task = make_task(recipe.task, rows.label_names)
        notes: list[str] = []
        if isinstance(model, ModelSettings | Mapping):
            base, drawn = _base(recipe, the_task, tell, notes)
            tokenizer = tokenizer or load_processor(recipe, the_task)
        elif tokenizer is None:
            raise DataError("give tokenizer=... with a loaded model, or give the model as a name")
        elif the_task.has_head and model.config.num_labels != the_task.model_options()["num_labels"]:
            names = the_task.model_options().get("id2label", {}).values()
            raise DataError(
                f"the model's head has {counted(int(model.config.num_labels or 0), 'class', 'classes')}, the clients' "
                f"rows have {the_task.model_options()['num_labels']} ({', '.join(names)}): load the model with that "
                "num_labels"
            )
        else:
            base, drawn = fresh_base(model), layers_outside_the_base(model)
            known, wanted = names_of(model.config), the_task.model_options().get("id2label", {})
            told = turn_head(base, known, list(wanted.values())) if known and wanted else None
            notes += [told] if told else []
        config = copy.deepcopy(peft_config)
        config.task_type = the_task.peft_task_type
        config = with_drawn_layers(config, drawn, base)
        return cls._build(recipe, base, tokenizer, config, the_task, rows, tell, notes)

    @classmethod
    def of_newcomer(
        cls,
        recipe: Recipe,
        config: PeftConfig,
        rows: DealtRows,
        *,
        clients: int,
        model: PreTrainedModel | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        on_progress: Progress | None = None,
    ) -> Federation:
        """Return model, task and rows of a client that was not in a finished run, to train it by itself.

        Args:
            recipe: the run's.
            config: PEFT's description of the run's adapter.
            rows: the newcomer's.
            clients: how many were in the federation.
            model: the base as it was before the run; it is adapted in place. None: loaded by its name.
            tokenizer: None: the named model's.
            on_progress: told what takes time.

        Raises:
            UserError: the model cannot be loaded, or the adapter does not fit it.
        """
        tell = on_progress or (lambda text: None)
        training = recipe.training.model_copy(update={"trainer": "sequential", "cohort_size": 0, "packing": None})
        adapter = recipe.adapter.model_copy(update={"ranks": None})
        settings = {
            "training": training,
            "adapter": adapter,
            "compute": _usable(recipe.compute),
            "holdout_clients": 0.0,
        }
        recipe = recipe.model_copy(update=settings)
        task = make_task(recipe.task, rows.label_names)
        base = _base(recipe, task, tell)[0] if model is None else fresh_base(model)
        return cls._build(
            recipe, base, tokenizer or load_processor(recipe, task), config, task, rows, tell, clients=clients
        )

    @classmethod
    def _build(
        cls,
        recipe: Recipe,
        base: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        config: PeftConfig,
        task: Task,
        rows: DealtRows,
        tell: Progress,
        of_model: Sequence[str] = (),
        *,
        clients: int | None = None,
    ) -> Federation:
        loaded = plain_fingerprint(base, config)
        compute = resolve_compute(recipe.compute)
        algorithm = make_algorithm(recipe.algorithm, recipe.algorithm_options, recipe.share_head)
        everyone = sorted(rows.partition.clients)
        outside = held_out(everyone, recipe.holdout_clients, recipe.seed)
        newcomer, clients = clients is not None, clients or len(everyone) - len(outside)
        scaling = None  # a run's own config has the method's scale already
        if not newcomer:
            scaling = partial(algorithm.scaling, clients=sample_size(recipe.fraction_train, clients))
        model = AdaptedModel(
            base,
            config,
            seed=derive_seed(recipe.seed, "init"),
            device=compute.device,
            precision=compute.precision,
            adapters=algorithm.adapters,
            folds=algorithm.folds,
            gated=algorithm.gated,
            scaling=scaling,
        )
        check_personal(recipe, algorithm, model.keys, model.variant)
        check_layers(recipe, algorithm, model.model)
        _check_head_warmup(recipe, algorithm, model, task)
        if algorithm.references:
            model.require_weighable()
            if not task.has_head:
                raise ModelError(
                    f"{recipe.algorithm} weighs its adapters by what is in a row, and with task.kind = "
                    f"{recipe.task.kind!r} that is the answer too: use another method, or an option that does not weigh"
                )
        ranks = client_ranks(recipe.adapter, everyone)
        if task.takes_images:
            tokenizer = with_image_size(tokenizer, recipe.task.image_size)
            tell("reading images")
            limit = image_tokens(base, image_side(tokenizer))
        else:
            fit_padding(base, tokenizer)
            task = task.fitted(base, tokenizer)
            tell("tokenising")
            limit = position_limit(base, tokenizer)
        used = np.unique(np.concatenate([part for parts in rows.partition.clients.values() for part in parts]))
        resolved = _resolved(recipe, base, model.config, None if task.takes_images else limit).model_copy(
            update={"compute": compute, "share_head": algorithm.share_head}
        )
        own = copy.deepcopy(tokenizer)  # it keeps how it was called
        if not task.takes_images:
            own.padding_side = padding_side(base)
        encoded = task.encode(rows.table, used, own, limit=limit)
        _check_tokens(base, tokenizer, encoded)
        notes = (*rows.notes, *getattr(encoded, "notes", ()), *of_model)  # a task of one's own need not have any
        trained = [
            task.training_items(encoded, rows.partition.clients[client].train)
            for client in everyone
            if client not in outside
        ]
        _check_steady(model, task, encoded, trained[0][:2])
        chosen = _chosen(resolved, model, task, encoded, trained, tell)
        measured = _measured(resolved, chosen)
        return cls(chosen, algorithm, model, tokenizer, task, encoded, rows, measured, ranks, outside, notes, loaded)

    def measured_as_in(self, recipe: Recipe) -> Federation:
        """Return this federation with what it chose by measuring as in a run's recipe: clocks and memory differ.

        Raises:
            ModelError: the model has no such attention kernel here.
        """
        own = self.recipe
        for section, name in self.measured:
            settings = getattr(own, section).model_copy(update={name: getattr(getattr(recipe, section), name)})
            own = own.model_copy(update={section: settings})
        attention = own.model.attn_implementation
        if attention and ("model", "attn_implementation") in self.measured and not self.model.set_attention(attention):
            raise ModelError(f"the model has no attention kernel {attention!r} here, with which the run was begun")
        return replace(self, recipe=own)

    @property
    def clients(self) -> tuple[str, ...]:
        """Ids of the clients that are in the federation, sorted."""
        outside = set(self.held_out)
        return tuple(client for client in self.everyone if client not in outside)

    @property
    def everyone(self) -> tuple[str, ...]:
        """Every client's id, also of those that are held out, sorted."""
        return tuple(sorted(self.rows.partition.clients))

    @property
    def mixing(self) -> Mixing | None:
        """How clients' adapters are weighed for each row in evaluation; None: they are added as in training."""
        if not self.algorithm.references:
            return None
        return Mixing(self.algorithm, self.rows.partition.clients, self.recipe.seed)

    @property
    def learner(self) -> Learner:
        """What trains and measures the clients."""
        recipe = self.recipe
        return Learner(self.model, self.task, self.encoded, recipe.training, recipe.evaluation.batch_size, self.mixing)

    def site(self, states: ClientStates) -> Site:
        """Return the one site of a simulation, where all clients are.

        Args:
            states: where their states are kept.
        """
        recipe = self.recipe
        return Site(
            algorithm=self.algorithm,
            learner=self.learner,
            rows=self.rows.partition.clients,
            states=states,
            rounds=recipe.rounds,
            seed=recipe.seed,
            wire_dtype=recipe.wire_dtype,
            ranks=self.ranks,
            own_initial_a=recipe.adapter.own_initial_a,
            reconstruction=recipe.reconstruction if recipe.personal_state == "reconstruct" else None,
        )

    def server(self, state: ServerState, client_versions: Mapping[str, int]) -> Server:
        """Return the server.

        Args:
            state: its state after the last finished round.
            client_versions: client id to the newest version that it holds.
        """
        recipe = self.recipe
        return Server(
            self.algorithm,
            state,
            self.clients,
            seed=recipe.seed,
            fraction_train=recipe.fraction_train,
            weighting=recipe.weighting,
            wire_dtype=recipe.wire_dtype,
            client_versions=client_versions,
            ranks=self.ranks,
            stateless=recipe.personal_state == "reconstruct",
            optimizer=recipe.server,
        )

    def majority(self, client: str) -> dict[str, float]:
        """Return the test accuracy of guessing a client's most frequent class, where there are classes to guess."""
        if not self.recipe.task.has_classes:
            return {}
        splits, labels = self.rows.partition.clients[client], self.rows.labels
        return {"majority": majority_accuracy(labels[splits.train], labels[splits.test])}

    def initial_state(self) -> ServerState:
        """Return the server's state before the first round."""
        return self.algorithm.init(self.model.initial, self.model.scaling)

    def fingerprint(self) -> str:
        """Return a hash of every client's rows, tokens and labels: a resumed run must have the same."""
        digest = hashlib.sha256(self.encoded.fingerprint().encode())
        for client in self.everyone:
            digest.update(json.dumps(client).encode())
            for part in self.rows.partition.clients[client]:
                digest.update(len(part).to_bytes(8, "little") + part.astype("<i8").tobytes())
        return digest.hexdigest()

    def label_counts(self, split: SplitName) -> Mapping[str, Sequence[int]]:
        """Return, for each client, its number of rows of each class in a split."""
        return label_counts(self.rows.partition, self.rows.labels, len(self.rows.label_names), split)


def _check_tokens(model: PreTrainedModel, tokenizer: Any, encoded: Encoded) -> None:
    """Refuse rows with a token that the model has no vector for.

    Raises:
        ModelError: the tokenizer is another model's, or has tokens that the model was not made larger for.
    """
    try:
        vectors = cast(Any, model.get_input_embeddings()).num_embeddings
    except (NotImplementedError, AttributeError):  # a model without such a table, as of images
        return
    if not hasattr(tokenizer, "all_special_ids") or len(tokenizer) <= vectors:
        return
    items = np.flatnonzero(encoded.lengths)
    for start in range(0, len(items), 1000):
        largest = int(encoded.batch(items[start : start + 1000])["input_ids"].max())
        if largest >= vectors:
            raise ModelError(
                f"the tokenizer has {counted(len(tokenizer), 'token')} and the model vectors for {vectors:,}; the rows "
                f"have token {largest} ({tokenizer.convert_ids_to_tokens(largest)!r}): take the model's own tokenizer, "
                "or make the model larger with resize_token_embeddings(len(tokenizer)) and save both"
            )


def _usable(settings: ComputeSettings) -> ComputeSettings:
    """Return a run's settings if its device is here, else what this machine has."""
    try:
        return resolve_compute(settings)
    except ModelError:
        return resolve_compute(ComputeSettings(gradient_checkpointing=settings.gradient_checkpointing))


def _check_steady(model: AdaptedModel, task: Task, encoded: Encoded, items: IntArray) -> None:
    """Refuse a base model that would not stay as it is while clients train."""

    def run(adapted: nn.Module) -> None:
        batch = model.begin(encoded.batch(items), [len(items)], seeds=[0], batches=[0])
        task.losses(adapted, batch)

    model.check_steady(run)


def _check_head_warmup(recipe: Recipe, algorithm: Algorithm, model: AdaptedModel, task: Task) -> None:
    """Refuse a warm-up of heads that goes with the rest as little.

    Raises:
        ModelError: there is no head to fit alone, or the server would take the warm-up for a step of the training.
    """
    if not recipe.training.head_warmup_epochs:
        return
    why = obstacle(model, task)
    if why:
        raise ModelError(
            f"training.head_warmup_epochs = {recipe.training.head_warmup_epochs} does not go with task.kind = "
            f"{recipe.task.kind!r} and this model ({why}): set it to 0"
        )
    sent = any(key.factor.side is Side.HEAD and algorithm.plan(key, 1).sent for key in model.keys)
    if sent and recipe.server.optimizer != "none":
        raise ModelError(
            f"training.head_warmup_epochs = {recipe.training.head_warmup_epochs} does not go with server.optimizer = "
            f"{recipe.server.optimizer!r} where the head is sent, which would carry the warm-up on like a step of "
            "the training: set it to 0, or share_head = false"
        )


def client_ranks(settings: AdapterSettings, clients: Sequence[str]) -> dict[str, int]:
    """Return the ranks that a recipe's ``adapter.ranks`` gives, of the clients whose rank is less than the adapter's.

    Args:
        settings: the section.
        clients: every client's id, sorted: a list of ranks is dealt to them in turn.

    Raises:
        DataError: it names a client that there is not.
    """
    given = settings.ranks or {}
    if isinstance(given, Mapping):
        unknown = sorted(set(given) - set(clients))
        if unknown:
            raise DataError(f"adapter.ranks: there is no client {unknown[0]!r}; {near(unknown[0], clients)}")
    else:
        given = {client: given[number % len(given)] for number, client in enumerate(clients)}
    return {client: rank for client, rank in given.items() if rank < settings.rank}


def check_personal(recipe: Recipe, algorithm: Algorithm, keys: Sequence[Key], variant: str) -> None:
    """Refuse what a recipe wants of clients' personal tensors if the method has none, or nothing but them.

    Args:
        recipe: any.
        algorithm: its method.
        keys: every tensor of the adapter and the head.
        variant: the adapter's.

    Raises:
        ConfigError: with every such setting.
    """
    by_round = [[algorithm.plan(key, round) for key in keys] for round in range(1, recipe.rounds + 1)]
    has_personal = any(plan.trained and not (plan.sent or plan.received) for plans in by_round for plan in plans)
    always_shares = all(any(plan.trained and plan.received for plan in plans) for plans in by_round)
    mistakes = []
    if recipe.personal_state == "reconstruct" and not (has_personal and always_shares):
        lacks = "shares nothing in some round" if has_personal else "keeps nothing at the client"
        mistakes.append(Mistake("personal_state", f"'reconstruct' is of no use: {recipe.algorithm} {lacks}; use store"))
    if recipe.adaptation.freeze_shared and not has_personal and recipe.holdout_clients:
        mistakes.append(
            Mistake("adaptation.freeze_shared", f"{recipe.algorithm} keeps nothing at the client: use false")
        )
    if recipe.evaluation.global_model == "fit" and not VARIANTS[variant].is_product:
        mistakes.append(
            Mistake("evaluation.global_model", f"'fit' needs ΔW = s·B·A, which {variant} is not: use 'average'")
        )
    if mistakes:
        raise ConfigError(mistakes)


def check_layers(recipe: Recipe, algorithm: Algorithm, model: nn.Module) -> None:
    """Refuse layers whose update is not s·B·A of two matrices, where that is computed of every adapted layer.

    Args:
        recipe: any.
        algorithm: its method.
        model: PEFT's, with the adapter in it; its tensors may be without values.

    Raises:
        ModelError: with the layers' names.
    """
    if algorithm.needs_product or algorithm.folds:
        who, mend = f"algorithm = {recipe.algorithm!r} computes", "use a method that does not (fedsa, fedit)"
    elif recipe.evaluation.global_model == "fit":
        who, mend = "evaluation.global_model = 'fit' computes", "use 'average'"
    elif recipe.adapter.ranks or len(algorithm.adapters) > 1:
        what = "adapter.ranks cuts" if recipe.adapter.ranks else f"algorithm = {recipe.algorithm!r} adds up"
        who, mend = what, "leave ranks out" if recipe.adapter.ranks else "use a method of one adapter"
    else:
        return
    odd = unlike_products(model)
    if odd:
        first, kind = next(iter(odd.items()))
        more = f" (and {len(odd) - 1} more)" if len(odd) > 1 else ""
        raise ModelError(
            f"{who} B·A of each layer as matrices, and {first}{more} is {kind}, whose update is no such product: "
            f"take it out of the adapter's layers, or {mend}"
        )


def check_early(recipe: Recipe) -> None:
    """Refuse what can be seen before any rows are read and any weights are loaded or fetched.

    Raises:
        ConfigError: there is no such callback, or it needs an extra that is not installed.
        MissingExtraError: the model or the task needs one.
        ModelError: the adapter names layers that the model does not have.
    """
    mistakes = check_callbacks({"callbacks": recipe.callbacks})
    if mistakes:
        raise ConfigError(mistakes)
    if recipe.task.is_own:  # it may need the names of the classes, which the rows tell
        check_model_extras(recipe.model, takes_images=False)
        return
    task = make_task(recipe.task, recipe.task.labels or ["0", "1"])
    check_model_extras(recipe.model, takes_images=task.takes_images)
    check_layer_names(recipe.model, recipe.adapter, auto_model=task.auto_model, options=task.model_options())


def first_round(algorithm: Algorithm, tensors: State, wire_dtype: WireDtype, rounds: int = 1) -> dict[str, Any]:
    """Return what a client trains, sends and receives in round 1, as a run's summary tells it.

    Args:
        algorithm: the method.
        tensors: every tensor of the adapter and the head; only shapes and types are looked at.
        wire_dtype: in what they travel.
        rounds: of the run.

    Returns:
        ``trained_parameters``, ``upload_parameters``, ``upload_bytes``, ``download_bytes`` (of all that is received,
        though in round 1 nothing is newer than what the client holds), and ``sharing_plan``: for each factor
        ``factor``, ``tensors``, ``parameters``, ``trained``, ``sent``, ``received``; more than one entry for a factor
        that is not treated alike in all adapters. Where clients have ranks of their own, it is one of the highest.
        Where not every round is like the first, also ``sharing_by_round``: the same of each kind of round, and its
        ``rounds``.
    """
    kinds: dict[tuple[Plan, ...], list[int]] = {}
    for round in range(1, rounds + 1):
        kinds.setdefault(tuple(algorithm.plan(key, round) for key in tensors), []).append(round)
    each = [
        {"rounds": alike, **_sharing(dict(zip(tensors, plans, strict=True)), tensors, wire_dtype)}
        for plans, alike in kinds.items()
    ]
    first = {name: value for name, value in each[0].items() if name != "rounds"}
    return first | ({"sharing_by_round": each} if len(each) > 1 else {})


def _sharing(plans: Mapping[Key, Plan], tensors: State, wire_dtype: WireDtype) -> dict[str, Any]:
    table: dict[tuple[Factor, Plan], dict[str, Any]] = {}
    for key, plan in plans.items():
        entry = table.setdefault(
            (key.factor, plan), {"factor": key.factor.value, "tensors": 0, "parameters": 0, **plan._asdict()}
        )
        entry["tensors"] += 1
        entry["parameters"] += tensors[key].numel()
    trained, sent, received = (
        {key: tensors[key] for key, plan in plans.items() if getattr(plan, role)}
        for role in ("trained", "sent", "received")
    )
    return {
        "trained_parameters": total_elements(trained),
        "upload_parameters": total_elements(sent),
        "upload_bytes": total_bytes(on_wire(sent, wire_dtype)),
        "download_bytes": total_bytes(on_wire(received, wire_dtype)),
        "sharing_plan": [entry for factor in Factor for (of, _), entry in table.items() if of is factor],
    }


def notes_on_texts(recipe: Recipe, rows: DealtRows, *, on_progress: Progress | None = None) -> tuple[str, ...]:
    """Return sentences on a recipe's rows of texts as its model's tokenizer reads them; no weights are loaded.

    They are those that a run of the recipe tells: what is cut, and what is not known. Nothing of images, and of a task
    of one's own, whose code is not run here.

    Args:
        recipe: any.
        rows: its rows.
        on_progress: told what takes time.

    Raises:
        DataError: rows that a run refuses, too.
    """
    tell = on_progress or (lambda text: None)
    if recipe.task.is_own:
        return ()
    task = make_task(recipe.task, rows.label_names)
    if task.takes_images:
        return ()
    try:
        tell("loading the tokenizer")
        base = empty_base(recipe.model, auto_model=task.auto_model, options=task.model_options(), on_progress=tell)
        tokenizer = load_processor(recipe, task)
        fit_padding(base, tokenizer)
    except (ModelError, FetchError) as error:
        why = textwrap.shorten(str(error), 300, placeholder=" ...")
        return (f"It is not known how long the rows are, for the model's tokenizer cannot be had: {why}.",)
    tell("tokenising")
    used = np.unique(np.concatenate([part for parts in rows.partition.clients.values() for part in parts]))
    limit = position_limit(base, tokenizer)
    tokenizer.padding_side = padding_side(base)
    encoded = task.fitted(base, tokenizer).encode(rows.table, used, tokenizer, limit=limit)
    _check_tokens(base, tokenizer, encoded)
    notes: tuple[str, ...] = getattr(encoded, "notes", ())
    return notes


def load_processor(recipe: Recipe, task: Task) -> Any:
    """Return what comes with the recipe's base model: its tokenizer, or its image processor at the recipe's size.

    Raises:
        ModelError: there is none.
    """
    if task.takes_images:
        return with_image_size(load_image_processor(recipe.model), recipe.task.image_size)
    return load_tokenizer(recipe.model)


def fresh_base(model: PreTrainedModel) -> PreTrainedModel:
    """Return a loaded model, ready to be adapted: the same object, in fp32 and in evaluation mode.

    Raises:
        ModelError: it has an adapter already, or is quantised.
    """
    _refuse_adapted(model)
    try:
        model.float()
    except ValueError as error:  # transformers refuses it for a quantised model
        raise ModelError(f"the model cannot be cast to fp32: {error}; load it unquantised") from None
    model.eval()
    return model


def _refuse_adapted(model: PreTrainedModel) -> None:
    names = (name for name, _ in model.named_parameters())
    if hasattr(model, "peft_config") or any(key_of(name, trained=False) for name in names):
        raise ModelError("the model has an adapter already: load it afresh for each federation")


def _resolved(recipe: Recipe, base: PreTrainedModel, config: Any, limit: int | None) -> Recipe:
    """Return the recipe with what was chosen written out: by PEFT, by transformers, by the hub, by defaults."""
    training = recipe.training
    longest = recipe.task.max_length if limit is None else min(recipe.task.max_length, limit)
    names = {name: getattr(config, name, None) for name in ("target_modules", "feedforward_modules")}
    adapter = {"r": recipe.adapter.rank} | {
        name: value if isinstance(value, str) else sorted(value) for name, value in names.items() if value is not None
    }
    if training.local_steps is None and training.local_epochs is None:
        training = training.model_copy(update={"local_steps": DEFAULT_LOCAL_STEPS})
    model: dict[str, Any] = {}
    if recipe.model.path == OBJECTS and base.config._attn_implementation in _KERNELS:  # the user's own model keeps it
        model["attn_implementation"] = base.config._attn_implementation
    commit = getattr(base.config, "_commit_hash", None)
    if commit and _is_hub_name(recipe.model.path):
        model["revision"] = commit
    return with_absolute_paths(
        recipe.model_copy(
            update={
                "model": recipe.model.model_copy(update=model),
                "adapter": recipe.adapter.model_copy(update=adapter),
                "task": recipe.task.model_copy(update={"max_length": longest}),
                "training": training,
            }
        )
    )


def _measured(recipe: Recipe, chosen: Recipe) -> tuple[tuple[str, str], ...]:
    """Return the settings that a recipe leaves to measuring."""
    training = recipe.training
    settings = {
        ("model", "attn_implementation"): recipe.model != chosen.model,
        ("training", "trainer"): training.trainer == "auto",
        ("training", "cohort_size"): not training.cohort_size,
        ("training", "packing"): training.packing is None,
    }
    return tuple(name for name, is_open in settings.items() if is_open)


def _chosen(
    recipe: Recipe, model: AdaptedModel, task: Task, encoded: Encoded, trained: Sequence[IntArray], tell: Progress
) -> Recipe:
    """Return the recipe with what is chosen by measuring written out.

    Args:
        recipe: resolved otherwise.
        model: the base with its adapter.
        task: the task.
        encoded: every row, as tokens.
        trained: each client's training rows.
        tell: told what takes time.
    """
    tell("measuring what trains fastest")
    torch.set_num_threads(recipe.compute.threads)
    if recipe.compute.gradient_checkpointing:
        model.checkpoint_activations()
    if recipe.model.attn_implementation is None and model.attention in _KERNELS:
        name = choose_attention(recipe.training, model=model, task=task, encoded=encoded, rows=np.concatenate(trained))
        recipe = recipe.model_copy(update={"model": recipe.model.model_copy(update={"attn_implementation": name})})
    training = choose_training(
        recipe.training,
        recipe.compute,
        model=model,
        task=task,
        encoded=encoded,
        rows=trained,
        clients=sample_size(recipe.fraction_train, len(trained)),
    )
    if recipe.compute.compile:
        tell("compiling")
        tell(compile_model(model, task, encoded, np.concatenate(trained), training))
    give_back()
    return recipe.model_copy(update={"training": training})


def _is_hub_name(path: str) -> bool:
    return path != OBJECTS and not path.startswith(PREFIX) and not Path(path).expanduser().exists()


def _base(
    recipe: Recipe, task: Task, tell: Progress, notes: list[str] | None = None
) -> tuple[PreTrainedModel, set[str]]:
    return load_base(
        recipe.model,
        auto_model=task.auto_model,
        options=task.model_options(),
        seed=derive_seed(recipe.seed, "init"),
        compute=resolve_compute(recipe.compute),
        on_progress=tell,
        notes=notes,
    )


def _numbered(clients: Sequence[ClientTable]) -> dict[str, ClientTable]:
    width = len(str(len(clients)))
    return {f"client-{number:0{width}d}": table for number, table in enumerate(clients, start=1)}


def _recipe_of_objects(
    model: ModelSettings | Mapping[str, Any] | None,
    peft_config: PeftConfig,
    rounds: int,
    task: TaskSettings | Mapping[str, Any] | None,
    partition: Mapping[str, Any] | None,
    settings: Mapping[str, Any],
) -> Recipe:
    """Return the recipe that tells, as far as a recipe can, what the objects are.

    Raises:
        ConfigError: with every mistake in the settings, those that the objects rule out among them.
    """
    adapter = _adapter_of_object(peft_config)
    ruled_out = {"data": "give `partition=`", "adapter": "give it in peft_config"}
    mistakes = [
        Mistake(name, f"comes from the objects; {mend}") for name, mend in ruled_out.items() if name in settings
    ]
    if isinstance(partition, Mapping) and "kind" in partition:
        mistakes.append(Mistake("partition.kind", "the clients bring their own rows: leave it out"))
    if partition is None or isinstance(partition, Mapping):
        partition = {"kind": "files", **(partition or {})}
    data = {
        "rounds": rounds,
        **{name: value for name, value in settings.items() if name not in ("data", "adapter")},
        "model": {"path": OBJECTS} if model is None else model,
        "adapter": adapter,
        "task": {} if task is None else task,
        "data": {"path": OBJECTS, "partition": partition},
    }
    return parse_recipe(data, source="Federation.from_objects", checks=[check_algorithm, lambda _: mistakes])


def _adapter_of_object(peft_config: PeftConfig) -> dict[str, Any]:
    """Return a recipe's adapter section that tells what a PEFT config is, with what goes with its variant alone."""
    config = peft_config.to_dict()
    config["modules_to_save"] = config.get("modules_to_save") or None
    adapter: dict[str, Any] = {"variant": variant_of(peft_config)}
    for setting, names in _NAMES_IN_CONFIGS.items():
        value = next((config[name] for name in names if config.get(name) is not None), None)
        if value is not None:
            adapter[setting] = sorted(value) if isinstance(value, set | list | tuple) else value
    return adapter
