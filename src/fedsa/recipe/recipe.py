"""A whole recipe, and the rules between its sections."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from fedsa.errors import Mistake
from fedsa.recipe.adapter import AdapterSettings
from fedsa.recipe.base import Agreed, Note, Resolved, Scope, Settings
from fedsa.recipe.compression import CompressionSettings, Int8Settings, NoCompressionSettings
from fedsa.recipe.compute import ComputeSettings
from fedsa.recipe.data import DataSettings
from fedsa.recipe.evaluation import AdaptationSettings, EvaluationSettings, ReconstructionSettings
from fedsa.recipe.model import ModelSettings
from fedsa.recipe.overlap import NoOverlapSettings, OverlapSettings
from fedsa.recipe.privacy import NoPrivacySettings, PrivacySettings
from fedsa.recipe.privacy_rules import contradictions_of_privacy
from fedsa.recipe.robust import NotRobustSettings, RobustSettings
from fedsa.recipe.server import MeanSettings, ServerSettings
from fedsa.recipe.steps import StepSettings, WireDtype
from fedsa.recipe.task_kinds import AnyTaskSettings, ClassificationSettings
from fedsa.recipe.training import TrainingSettings

__all__ = ["Recipe", "agreed_settings", "contradictions"]


class Recipe(Settings):
    """A whole federation."""

    description: Note[str] = Field("", description="one line for `fedsa recipes`")
    algorithm: Agreed[str] = Field("fedsa", description="a name from `fedsa algorithms`, or package.module:Class")
    algorithm_options: Agreed[dict[str, Any]] = Field({}, description="the algorithm's own options")
    share_head: Agreed[Resolved[bool | None]] = Field(
        None, description="send and average the head too; empty: as in the method's paper"
    )
    weighting: Agreed[Literal["num_examples", "uniform"]] = Field(
        "num_examples", description="clients' weights in the average: their numbers of training rows, or equal weights"
    )
    rounds: Agreed[int] = Field(gt=0, description="communication rounds")
    fraction_train: Agreed[float] = Field(1.0, gt=0, le=1, description="part of the clients that trains in a round")
    personal_state: Agreed[Literal["store", "reconstruct"]] = Field(
        "store",
        description="tensors that are trained and not received. store: a client keeps them from round to round; "
        "reconstruct: a client keeps nothing, and fits them again from its rows whenever they are needed",
    )
    holdout_clients: Agreed[float] = Field(
        0.0,
        ge=0,
        lt=1,
        description="part of the clients that is never in the federation; at the end each of them trains an adapter of "
        "its own, as [adaptation] says",
    )
    wire_dtype: Agreed[WireDtype] = Field(
        "fp32",
        description="data type of tensors that are sent, in both directions; bf16 halves the bytes; tensors that stay "
        "are fp32",
    )
    secure_aggregation: Agreed[bool] = Field(
        False,
        description="the server learns the sum of what sites send, and nothing else of it; not for methods or steps "
        "that need single updates",
    )
    seed: Agreed[int] = Field(0, ge=0, lt=2**32, description="seed of all random numbers")
    keep_rounds: Note[Literal["needed", "all"]] = Field(
        "needed",
        description="rounds whose tensors stay in the run folder: only those that are needed, or all",
    )
    callbacks: Note[list[str]] = Field([], description="listeners of your own, as package.module:Class")
    report_to: Note[list[str]] = Field(
        [], description="trackers that are handed each round's values: tensorboard, trackio, wandb, mlflow"
    )
    model: ModelSettings
    adapter: AdapterSettings = AdapterSettings()
    task: AnyTaskSettings = ClassificationSettings()
    data: DataSettings
    training: TrainingSettings = TrainingSettings()
    server: ServerSettings = MeanSettings()
    robust: RobustSettings = NotRobustSettings()
    overlap: OverlapSettings = NoOverlapSettings()
    compression: CompressionSettings = NoCompressionSettings()
    privacy: PrivacySettings = NoPrivacySettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    reconstruction: ReconstructionSettings = ReconstructionSettings()
    adaptation: AdaptationSettings = AdaptationSettings()
    compute: ComputeSettings = ComputeSettings()

    @property
    def steps(self) -> StepSettings:
        """What happens to an update between client and server."""
        return StepSettings(
            self.wire_dtype,
            self.server,
            self.robust,
            self.overlap,
            self.secure_aggregation,
            self.privacy,
            self.compression,
        )

    @model_validator(mode="after")
    def _personal_tensors(self) -> Recipe:
        problems = []
        if self.personal_state == "reconstruct":
            name = "personal_state = 'reconstruct'"
            if self.training.optimizer_state == "keep":
                problems.append(f"{name}: a client keeps nothing, so training.optimizer_state must be 'reset'")
            if self.evaluation.evaluate_after != "aggregate":
                problems.append(
                    f"{name}: after a round a client has no tensors of its own to evaluate, so "
                    "evaluation.evaluate_after must be 'aggregate'"
                )
        if isinstance(self.compression, Int8Settings):
            name = "compression.kind = 'int8'"
            if self.personal_state == "reconstruct":
                problems.append(
                    f"{name}: a client must keep what its rounding has left, so personal_state must be 'store'"
                )
            if self.adapter.own_initial_a:
                problems.append(
                    f"{name}: clients do not begin with the server's values, so the server cannot add their changes to "
                    "its own: set adapter.own_initial_a = false"
                )
        if self.evaluation.global_model != "none" and not self.adaptation.share_personal:
            problems.append(
                f"evaluation.global_model = {self.evaluation.global_model!r} averages clients' personal tensors, "
                "which then leave the clients: set adaptation.share_personal = true if the clients agree"
            )
        if self.adapter.own_initial_a and self.adaptation.share_personal:
            problems.append(
                "adaptation.share_personal averages clients' A's, but with adapter.own_initial_a these start from "
                "different values, so their mean is meaningless: leave one of the two settings out"
            )
        if problems:
            raise ValueError("; ".join(problems))
        return self


def agreed_settings(recipe: Recipe) -> dict[str, Any]:
    """The settings of a recipe that server and sites must have in common, for JSON: sections as tables, with defaults.

    The places and names of model and rows are not among them: weights and tensors have hashes of their own.
    """
    return recipe.of_scope(Scope.AGREED)


def contradictions(recipe: Recipe) -> list[Mistake]:
    """The mistakes that come from two sections together."""
    variant = recipe.adapter.variant
    mistakes = []
    if not recipe.adapter.has_sides and recipe.training.b_learning_rate_ratio != 1:
        mistakes.append(
            Mistake(
                "training.b_learning_rate_ratio",
                f"does not go with adapter.variant = {variant!r}, which has no A side and B side: remove it",
            )
        )
    if recipe.training.head_warmup_epochs and recipe.personal_state == "reconstruct":
        mistakes.append(
            Mistake(
                "training.head_warmup_epochs",
                "does not go with personal_state = 'reconstruct', which fits heads again in every round: set it to 0",
            )
        )
    if recipe.evaluation.fit_head_epochs and recipe.personal_state == "reconstruct":
        mistakes.append(
            Mistake(
                "evaluation.fit_head_epochs",
                "does not go with personal_state = 'reconstruct', where every client fits its personal tensors before "
                "it is measured, whether it has trained or not: set it to 0",
            )
        )
    if recipe.model.quantization and not recipe.adapter.can_be_quantized:
        mistakes.append(
            Mistake(
                "model.quantization",
                f"does not go with adapter.variant = {variant!r}, which needs the weights in full precision: use "
                "lora, rslora or dora, or remove it",
            )
        )
    return mistakes + contradictions_of_privacy(recipe)
