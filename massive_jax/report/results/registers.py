"""Register tokens of vision models."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

from massive_jax.analysis.massive import Thresholds
from massive_jax.report.records import optional
from massive_jax.report.results.source import Named, Run


@dataclasses.dataclass(frozen=True, kw_only=True)
class RegisterActivation:
    """An activation of a register's mean; registers count from 1."""

    register: int
    dim: int
    value: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class MassiveRegister(RegisterActivation):
    """One that meets the definition; `ratio` is to the median magnitude of the layer's registers."""

    layer: int
    ratio: float = math.nan


@dataclasses.dataclass(frozen=True, kw_only=True)
class RegisterLayer:
    """A layer (from 0, the embedding; layer l is the input of block l + 1): the largest activation of each register."""

    layer: int
    median: float
    largest: tuple[RegisterActivation, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RegisterLayers(Named):
    """What the figure of registers shows.

    Attributes:
      means: "collected" from the images, or the file the means are from.
      count: how many images.
      layers: every layer.
      massive: what meets the definition.
    """

    means: str
    count: int
    layers: tuple[RegisterLayer, ...]
    massive: tuple[MassiveRegister, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageMeasures:
    """What is left of the outputs: cosine similarity of the features, and top-1 accuracy with a head and classes."""

    cosine: float
    top1: Mapping[str, float] | None = optional()


@dataclasses.dataclass(frozen=True, kw_only=True)
class VitRegisters(RegisterLayers, Run):
    """vit_registers.json; top1 is {"original": …, "fixed": …}.

    Attributes:
      tokens: texts of an image's tokens.
      classes: of the images' folders, or None.
      registers: how many the model has.
      head: the file of the linear head, or None.
      thresholds: the definition of massive.
      measures: of the model with its registers fixed.
    """

    tokens: tuple[str, ...]
    classes: int | None
    registers: int
    head: str | None
    thresholds: Thresholds
    measures: ImageMeasures


@dataclasses.dataclass(frozen=True, kw_only=True)
class Neuron:
    """A neuron of an MLP, with its mean activation on the outlier patches."""

    layer: int
    dim: int
    activation: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Norms:
    """Norms, averaged over the images: of the largest and the median patch and of the largest other token."""

    largest: float
    median: float
    other: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class NormsOfLayer:
    """A layer's norms before and after."""

    layer: int
    original: Norms
    moved: Norms


@dataclasses.dataclass(frozen=True, kw_only=True)
class RegisterNeurons(Run):
    """register_neurons.json; top1 is {"original": …, "moved": …}.

    Attributes:
      tokens: texts of an image's tokens.
      count: how many images.
      classes: of the images' folders, or None.
      layer: whose output shows the outliers.
      outlier: how many times the median norm makes one.
      neurons: which were moved, most active first.
      norms: every layer.
      measures: of the model with the neurons moved.
    """

    tokens: tuple[str, ...]
    count: int
    classes: int | None
    layer: int
    outlier: float
    neurons: tuple[Neuron, ...]
    norms: tuple[NormsOfLayer, ...]
    measures: ImageMeasures
