"""The federation itself: a model, rows, clients and a method, wired."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, final

from fedsa.agreement import Agreement
from fedsa.algorithms.base import Algorithm, ServerState
from fedsa.client.class_prior import ClassPriors, class_priors
from fedsa.client.evaluation import Mixing
from fedsa.client.learner import Learner
from fedsa.client.site import ClientStates, Site
from fedsa.client.training.private import Privacy
from fedsa.data.partition import label_counts
from fedsa.data.rows import ClientTable, DealtRows, deal_rows, deal_tables
from fedsa.errors import DataError
from fedsa.federation.agreeing import agreement_of, refuse_differences
from fedsa.federation.base_models import load_named_base, load_processor, refuse_adapted
from fedsa.federation.building import build, build_by_name
from fedsa.federation.checks import check_early, refuse_simulated
from fedsa.federation.objects import fitted_base, numbered, recipe_of_objects
from fedsa.federation.pooling import pooled_site
from fedsa.federation.resolving import with_measured
from fedsa.models import AdaptedModel, read_peft_config, with_drawn_layers
from fedsa.recipe import ExamplePrivacySettings, ModelSettings, NotRobustSettings, Recipe, TaskSettings, refuse_objects
from fedsa.server import OpenSum, Server, server_of, updates_in_round
from fedsa.steps import make_chain
from fedsa.tasks import make_task
from fedsa.tasks.base import Encoded, Task

if TYPE_CHECKING:
    from peft import PeftConfig
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["Federation"]

Progress = Callable[[str], None]


@final
@dataclass(frozen=True)
class Federation:
    """Everything a run needs, in memory. Nothing in it changes, except the tensors of the model's adapter.

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
        return build_by_name(cls, recipe, deal_rows(recipe, on_progress=tell), tell)

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
            task: columns and labels, as a table or as one of its kinds (`fedsa.recipe.ClassificationSettings`, ...).
            on_progress: told what takes time.
            settings: any other top-level key of a recipe, e.g. ``algorithm="fedsa"``, ``training={"batch_size": 8}``.

        Raises:
            UserError: something does not fit; a ConfigError lists all mistakes in the settings.
        """
        tell = on_progress or (lambda text: None)
        model = {"path": model} if isinstance(model, str) else model
        by_name = model if isinstance(model, ModelSettings | Mapping) else None
        if not isinstance(model, ModelSettings | Mapping):
            refuse_adapted(model)
        named = clients if isinstance(clients, Mapping) else numbered(clients)
        recipe = recipe_of_objects(by_name, peft_config, rounds, task, partition, settings)
        rows = deal_tables(named, recipe)
        the_task = make_task(recipe.task, rows.label_names)
        notes: list[str] = []
        if isinstance(model, ModelSettings | Mapping):
            base, drawn = load_named_base(recipe.model, recipe.compute, recipe.seed, the_task, tell, notes)
            tokenizer = tokenizer or load_processor(recipe.model, the_task, recipe.task.image_side)
        elif tokenizer is None:
            raise DataError("give tokenizer=... with a loaded model, or give the model as a name")
        else:
            base, drawn = fitted_base(model, the_task, notes)
        config = copy.deepcopy(peft_config)
        config.task_type = the_task.peft_task_type
        config = with_drawn_layers(config, drawn, base)
        return build(cls, recipe, base, tokenizer, config, the_task, rows, tell, notes)

    @classmethod
    def of_site(
        cls,
        agreement: Agreement,
        own: Mapping[str, Any],
        *,
        rows: DealtRows | None = None,
        on_progress: Progress | None = None,
    ) -> Federation:
        """Return what one site of several needs: the model, the task, and the site's own rows alone.

        Its `site` answers a server that holds the same agreement. Each client's rows are cut into train, validation and
        test as they would be among all clients'.

        Args:
            agreement: what server and sites hold alike.
            own: this machine's settings, as in a recipe: ``model.path``, ``data.path`` and what else lies with it,
                ``data.partition.kind`` (``files`` or ``column``), ``compute``, ``training.trainer``.
            rows: the site's, where they are dealt out already; None: they are read from ``data.path``.
            on_progress: told what takes time.

        Raises:
            UserError: the rows or their labels do not fit, or model and adapter are not those that were agreed upon.
        """
        tell = on_progress or (lambda text: None)
        recipe = agreement.recipe_with(own)
        refuse_simulated(recipe, agreement.algorithm)
        check_early(recipe)
        rows = rows or deal_rows(recipe, label_names=agreement.labels, on_progress=tell)
        config = read_peft_config(agreement.adapter.config)
        made = build_by_name(cls, recipe, rows, tell, config=config, ranks=agreement.ranks)
        refuse_differences(agreement, made.agreement)
        return made

    def measured_as_in(self, recipe: Recipe) -> Federation:
        """Return this federation with what it chose by measuring as in a run's recipe: clocks and memory differ.

        An attention kernel that this machine does not have stays as it was chosen here.
        """
        return replace(self, recipe=with_measured(self.recipe, recipe, self.measured, self.model))

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

    @cached_property
    def class_priors(self) -> ClassPriors | None:
        """What each client's head has of its own from the start, if the method has it so."""
        rows, has_classes = self.rows, self.recipe.task.has_classes
        counts = label_counts(rows.partition, rows.labels, len(rows.label_names), "train") if has_classes else None
        return class_priors(self.algorithm, self.model.initial, counts)

    @property
    def learner(self) -> Learner:
        """What trains and measures the clients."""
        recipe = self.recipe
        batch_size, own = recipe.evaluation.batch_size, recipe.privacy
        privacy = Privacy(own) if isinstance(own, ExamplePrivacySettings) else None
        return Learner(self.model, self.task, self.encoded, recipe.training, batch_size, self.mixing, privacy)

    def site(self, states: ClientStates) -> Site:
        """The one site of a simulation, where all clients are; their states are kept in ``states``."""
        recipe = self.recipe
        site = Site(
            algorithm=self.algorithm,
            learner=self.learner,
            rows=self.rows.partition.clients,
            states=states,
            rounds=recipe.rounds,
            seed=recipe.seed,
            steps=make_chain(recipe.steps),
            ranks=self.ranks,
            own_initial_a=recipe.adapter.own_initial_a,
            reconstruction=recipe.reconstruction if recipe.personal_state == "reconstruct" else None,
            fit_head_epochs=recipe.evaluation.fit_head_epochs,
            class_priors=self.class_priors,
        )
        if not self.algorithm.pools_rows:
            return site
        return pooled_site(site, self.clients, updates_in_round(recipe, len(self.clients)))

    def server(self, state: ServerState, client_versions: Mapping[str, int], open_sum: OpenSum | None = None) -> Server:
        """The server, with its state after the last finished round and the newest version that each client holds.

        Args:
            state: the state.
            client_versions: the versions.
            open_sum: as for `fedsa.server.Server`.
        """
        bad_is_left_out = not isinstance(self.recipe.robust, NotRobustSettings)  # else it can only be a fault of fedsa
        return server_of(
            self.agreement,
            self.clients,
            state,
            client_versions=client_versions,
            only_measured=self.clients[1:] if self.algorithm.pools_rows else (),
            quorum=1 if bad_is_left_out else None,
            open_sum=open_sum,
        )

    @cached_property
    def agreement(self) -> Agreement:
        """What server and sites must hold alike."""
        return agreement_of(self.recipe, self.model, self.task, self.rows.label_names, self.ranks, self.base)

    @property
    def data_fingerprint(self) -> str:
        """A hash of every client's rows, tokens and labels."""
        digest = hashlib.sha256(self.encoded.fingerprint().encode())
        for client in self.everyone:
            digest.update(json.dumps(client).encode())
            for part in self.rows.partition.clients[client]:
                digest.update(len(part).to_bytes(8, "little") + part.astype("<i8").tobytes())
        return digest.hexdigest()

    def initial_state(self) -> ServerState:
        """Return the server's state before the first round."""
        return self.algorithm.init(self.model.initial, self.model.scaling)
