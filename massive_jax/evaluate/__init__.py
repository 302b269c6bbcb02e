"""Measurements on a model: layers, perplexity, interventions."""

from massive_jax.evaluate.agreement import (
    Images,
    LogitsAgreement,
    compare_logits,
    cosine_similarity,
    features,
    measure_of,
)
from massive_jax.evaluate.batches import input_length
from massive_jax.evaluate.census import Counted, take_census
from massive_jax.evaluate.images import ImageOutputs, attach_head, check_classes, run_images
from massive_jax.evaluate.intervention import (
    KNOWN,
    Operation,
    Place,
    PlaceInStream,
    check_places,
    check_sites,
    find_places,
    hidden_state,
    intervene,
    nowhere,
    parse_places,
    parse_sites,
    place_means,
    site_means,
)
from massive_jax.evaluate.layers import LayerSummary, LayerTable, measure_each, measure_layers
from massive_jax.evaluate.perplexity import perplexity, token_nll
from massive_jax.evaluate.profile import Profile, measure_image_profile, measure_profile, names_of, registers_of
from massive_jax.evaluate.quantize import quantized_inputs
from massive_jax.evaluate.register_neurons import (
    OUTLIER,
    PatchNorms,
    RegisterNeuron,
    add_register,
    find_register_neurons,
    move_neurons,
    patch_maps,
    patch_norms,
)
from massive_jax.evaluate.registers import mean_registers, register_shape

__all__ = [
    "KNOWN",
    "OUTLIER",
    "Counted",
    "ImageOutputs",
    "Images",
    "LayerSummary",
    "LayerTable",
    "LogitsAgreement",
    "Operation",
    "PatchNorms",
    "Place",
    "PlaceInStream",
    "Profile",
    "RegisterNeuron",
    "add_register",
    "attach_head",
    "check_classes",
    "check_places",
    "check_sites",
    "compare_logits",
    "cosine_similarity",
    "features",
    "find_places",
    "find_register_neurons",
    "hidden_state",
    "input_length",
    "intervene",
    "mean_registers",
    "measure_each",
    "measure_image_profile",
    "measure_layers",
    "measure_of",
    "measure_profile",
    "move_neurons",
    "names_of",
    "nowhere",
    "parse_places",
    "parse_sites",
    "patch_maps",
    "patch_norms",
    "perplexity",
    "place_means",
    "quantized_inputs",
    "register_shape",
    "registers_of",
    "run_images",
    "site_means",
    "take_census",
    "token_nll",
]
