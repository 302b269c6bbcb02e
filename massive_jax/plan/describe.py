"""The config of a model that is to be planned: of a name or of files that are here, without the network or weights."""

from __future__ import annotations

from massive_jax import files, zoo
from massive_jax.arguments import shown
from massive_jax.files import read_json_object
from massive_jax.loading import open_source
from massive_jax.plan.place import Config
from massive_jax.random_models import described
from massive_jax.weights import checkpoint


def config_of(model: str) -> Config:
    """Gives the config of a zoo name, a directory with a `config.json`, a `.gguf` file, or what `convert` wrote.

    Raises:
      ValueError: it is none of these, or not all of it is there; a preset whose sizes are in its checkpoint only, which
        is not fetched for this.
    """
    if model in zoo.PRESETS:
        return described(model)[1]
    path = files.user_path(model)
    if model and path.is_dir():
        if checkpoint.is_or_was_checkpoint(path):
            return checkpoint.read_metadata(path).config
        return zoo.map_config(read_json_object(path / "config.json"), str(path))[0]
    if path.is_file():
        with open_source(model) as source:
            return zoo.describe(source)[0]
    raise ValueError(
        f"model {shown(model)} is no zoo name and nothing here, and a plan fetches nothing: give a directory with its "
        f"config.json, or a zoo name: {', '.join(zoo.near(model))}, …"
    )
