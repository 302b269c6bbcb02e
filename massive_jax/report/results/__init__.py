"""What each experiment finds: the schema of its JSON file, and what its figure is drawn from.

Values are signed. Layers count from 1: layer l is the output of block l. A `position` is that of a token in its
sequence, from 0, or "first_delimiter" where it differs between windows but follows that token. A `token` is its text;
null where it differs between the windows. JSON has no infinity: a number that is not finite is null, and the key
non_finite says what it was (see `massive_jax.files.write_json`).
"""

from massive_jax.report.results.activations import (
    Activation,
    AttentionMap,
    ControlPlace,
    EditedAt,
    EditedPlace,
    FeatureMap,
    Findings,
    FoundActivation,
    Intervention,
    Layer,
    Layerwise,
    MassiveActivation,
    TopActivation,
)
from massive_jax.report.results.bias import (
    ComparedModel,
    Comparison,
    ExplicitBias,
    LogitsApart,
    Prefix,
    ProfileCurves,
    ProfileLayer,
    Profiles,
)
from massive_jax.report.results.registers import (
    ImageMeasures,
    MassiveRegister,
    Neuron,
    Norms,
    NormsOfLayer,
    RegisterActivation,
    RegisterLayer,
    RegisterLayers,
    RegisterNeurons,
    VitRegisters,
)
from massive_jax.report.results.source import ImageSource, Named, Numbers, On, Run, TextSource
from massive_jax.report.results.training import Census, CensusActivation, CensusLayer, TrainGPT2, Training, TrainViT

__all__ = [
    "Activation",
    "AttentionMap",
    "Census",
    "CensusActivation",
    "CensusLayer",
    "ComparedModel",
    "Comparison",
    "ControlPlace",
    "EditedAt",
    "EditedPlace",
    "ExplicitBias",
    "FeatureMap",
    "Findings",
    "FoundActivation",
    "ImageMeasures",
    "ImageSource",
    "Intervention",
    "Layer",
    "Layerwise",
    "LogitsApart",
    "MassiveActivation",
    "MassiveRegister",
    "Named",
    "Neuron",
    "Norms",
    "NormsOfLayer",
    "Numbers",
    "On",
    "Prefix",
    "ProfileCurves",
    "ProfileLayer",
    "Profiles",
    "RegisterActivation",
    "RegisterLayer",
    "RegisterLayers",
    "RegisterNeurons",
    "Run",
    "TextSource",
    "TopActivation",
    "TrainGPT2",
    "TrainViT",
    "Training",
    "VitRegisters",
]
