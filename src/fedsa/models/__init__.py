"""Base models and their adapted layers. Beside export.py the only room that knows transformers and peft."""

from fedsa.models.adapted import AdaptedModel
from fedsa.models.base import HEADS, layers_outside_the_base, load_base
from fedsa.models.class_order import names_of, turn_head
from fedsa.models.computing import checkpoint_activations, compile_blocks
from fedsa.models.configs import peft_config_of, read_peft_config, variant_of, with_drawn_layers, with_sorted_names
from fedsa.models.early import check_layer_names, check_model_extras
from fedsa.models.fingerprints import adapted_fingerprint, plain_fingerprint
from fedsa.models.images import image_side, image_tokens, load_image_processor, with_image_size
from fedsa.models.loading import location_of, quiet
from fedsa.models.lora_xs import plain_state
from fedsa.models.machine import resolve_compute
from fedsa.models.products import unlike_products
from fedsa.models.quantized import bits_of_a_weight, quantized_layers
from fedsa.models.shapes import EmptyModel, empty_base, empty_model
from fedsa.models.tokenizers import fit_padding, load_tokenizer, padding_side, position_limit
from fedsa.models.weighing import representations, require_weighable

__all__ = [
    "HEADS",
    "AdaptedModel",
    "EmptyModel",
    "adapted_fingerprint",
    "bits_of_a_weight",
    "check_layer_names",
    "check_model_extras",
    "checkpoint_activations",
    "compile_blocks",
    "empty_base",
    "empty_model",
    "fit_padding",
    "image_side",
    "image_tokens",
    "layers_outside_the_base",
    "load_base",
    "load_image_processor",
    "load_tokenizer",
    "location_of",
    "names_of",
    "padding_side",
    "peft_config_of",
    "plain_fingerprint",
    "plain_state",
    "position_limit",
    "quantized_layers",
    "quiet",
    "read_peft_config",
    "representations",
    "require_weighable",
    "resolve_compute",
    "turn_head",
    "unlike_products",
    "variant_of",
    "with_drawn_layers",
    "with_image_size",
    "with_sorted_names",
]
