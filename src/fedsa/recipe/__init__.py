"""The recipe: a federation as pure data. One file a section, `recipe` for the whole, `reading` and `parsing` for TOML.

Every field has a type, a range and a default; a recipe with mistakes is refused with all of them at once.
``auto`` values are chosen once, when a run starts, and written to the run's resolved recipe.
"""

from fedsa.recipe.adapter import AdapterSettings
from fedsa.recipe.base import Scope, is_resolved, scope_of
from fedsa.recipe.compression import CompressionSettings, Int8Settings, NoCompressionSettings, compression_settings
from fedsa.recipe.compute import ComputeSettings
from fedsa.recipe.data import DataSettings
from fedsa.recipe.evaluation import (
    AdaptationSettings,
    EvaluationSettings,
    ReconstructionSettings,
    Start,
)
from fedsa.recipe.mistakes import mistakes_of
from fedsa.recipe.model import ModelSettings
from fedsa.recipe.overlap import BufferedSettings, NoOverlapSettings, OverlapSettings, overlap_settings
from fedsa.recipe.parsing import Check, dump_recipe, parse_recipe
from fedsa.recipe.partition import PartitionSettings
from fedsa.recipe.paths import OBJECTS, refuse_objects, with_absolute_paths
from fedsa.recipe.privacy import (
    ClientPrivacySettings,
    ExamplePrivacySettings,
    NoPrivacySettings,
    PrivacySettings,
    privacy_settings,
)
from fedsa.recipe.reading import apply_overrides, find_toml, parse_toml, read_recipe, read_toml, recipe_names
from fedsa.recipe.recipe import Recipe, agreed_settings
from fedsa.recipe.robust import (
    MedianSettings,
    NormBoundSettings,
    NotRobustSettings,
    PoisonScoreSettings,
    RobustSettings,
    TrimmedMeanSettings,
    robust_settings,
)
from fedsa.recipe.server import FedAdamSettings, FedAvgMSettings, MeanSettings, ServerSettings, server_settings
from fedsa.recipe.steps import StepSettings, WireDtype
from fedsa.recipe.task import TaskSettings, fields_of
from fedsa.recipe.task_kinds import (
    ChatSettings,
    ClassificationSettings,
    DpoSettings,
    GenerationSettings,
    ImageClassificationSettings,
    LanguageModelingSettings,
    MultipleChoiceSettings,
    OwnTaskSettings,
    QuestionAnsweringSettings,
    RegressionSettings,
    TokenClassificationSettings,
    task_settings,
)
from fedsa.recipe.training import DEFAULT_LOCAL_STEPS, TrainingSettings

__all__ = [
    "DEFAULT_LOCAL_STEPS",
    "OBJECTS",
    "AdaptationSettings",
    "AdapterSettings",
    "BufferedSettings",
    "ChatSettings",
    "Check",
    "ClassificationSettings",
    "ClientPrivacySettings",
    "CompressionSettings",
    "ComputeSettings",
    "DataSettings",
    "DpoSettings",
    "EvaluationSettings",
    "ExamplePrivacySettings",
    "FedAdamSettings",
    "FedAvgMSettings",
    "GenerationSettings",
    "ImageClassificationSettings",
    "Int8Settings",
    "LanguageModelingSettings",
    "MeanSettings",
    "MedianSettings",
    "ModelSettings",
    "MultipleChoiceSettings",
    "NoCompressionSettings",
    "NoOverlapSettings",
    "NoPrivacySettings",
    "NormBoundSettings",
    "NotRobustSettings",
    "OverlapSettings",
    "OwnTaskSettings",
    "PartitionSettings",
    "PoisonScoreSettings",
    "PrivacySettings",
    "QuestionAnsweringSettings",
    "Recipe",
    "ReconstructionSettings",
    "RegressionSettings",
    "RobustSettings",
    "Scope",
    "ServerSettings",
    "Start",
    "StepSettings",
    "TaskSettings",
    "TokenClassificationSettings",
    "TrainingSettings",
    "TrimmedMeanSettings",
    "WireDtype",
    "agreed_settings",
    "apply_overrides",
    "compression_settings",
    "dump_recipe",
    "fields_of",
    "find_toml",
    "is_resolved",
    "mistakes_of",
    "overlap_settings",
    "parse_recipe",
    "parse_toml",
    "privacy_settings",
    "read_recipe",
    "read_toml",
    "recipe_names",
    "refuse_objects",
    "robust_settings",
    "scope_of",
    "server_settings",
    "task_settings",
    "with_absolute_paths",
]
