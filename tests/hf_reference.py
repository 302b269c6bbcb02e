"""Tiny random Hugging Face models, and every tensor of theirs that has a site here.

Another family is another `Reference`: where in the torch module tree each site is.
"""

import dataclasses
import json
import math
from collections.abc import Callable, Mapping

import numpy as np
import torch
import transformers


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a site is among torch's modules.

    Attributes:
      module: path from the root; "{l}" stands for the 0-based layer.
      side: "input" or "output" of that module.
      item: which one, where the module returns a tuple.
      part: takes the site's part, where the module computes several in one.
    """

    module: str
    side: str = "output"
    item: int = 0
    part: Callable[[torch.Tensor], torch.Tensor] | None = None


@dataclasses.dataclass(frozen=True)
class Reference:
    """One family in torch: its model class, site -> `Place`, and what else its forward takes, given the input."""

    model_class: type
    places: Mapping[str, Place]
    options: Callable[[np.ndarray], Mapping] = lambda inputs: {}


_LAYER = "model.layers.{l}."

_DECODER = {
    "embed": Place("model.embed_tokens"),
    "attn_norm": Place(_LAYER + "input_layernorm"),
    "query": Place(_LAYER + "self_attn.q_proj"),
    "key": Place(_LAYER + "self_attn.k_proj"),
    "value": Place(_LAYER + "self_attn.v_proj"),
    "attn_probs": Place(_LAYER + "self_attn", item=1),
    "head_out": Place(_LAYER + "self_attn.o_proj", "input"),
    "attn_out": Place(_LAYER + "self_attn"),
    "mid": Place(_LAYER + "post_attention_layernorm", "input"),
    "mlp_norm": Place(_LAYER + "post_attention_layernorm"),
    "mlp_hidden": Place(_LAYER + "mlp.down_proj", "input"),
    "mlp_out": Place(_LAYER + "mlp"),
    "block_out": Place("model.layers.{l}"),
    "final_norm": Place("model.norm"),
    "logits": Place("lm_head"),
}

LLAMA = Reference(transformers.LlamaForCausalLM, _DECODER)
MISTRAL = Reference(transformers.MistralForCausalLM, _DECODER)


def random_model(reference: Reference, config, seed: int = 0, dtype: torch.dtype = torch.float32):
    """A model whose every parameter is away from its default, so that none can be left out unseen."""
    generator = torch.Generator().manual_seed(seed)

    def normal(param, scale):
        return scale * torch.randn(param.shape, generator=generator)

    config._attn_implementation = "eager"
    model = reference.model_class(config).eval()
    with torch.no_grad():
        for name, param in model.named_parameters():
            if ("norm" in name or ".ln_" in name) and name.endswith("weight"):
                param.copy_(1 + normal(param, 0.3))
            elif param.ndim <= 1:
                param.copy_(normal(param, 0.3))
            elif any(word in name for word in ("embed", "wte", "wpe")):
                param.copy_(normal(param, 0.7))
            else:
                param.copy_(normal(param, 1.2 / math.sqrt(param.shape[-1])))
        for param in model.parameters():  # not the buffers: the rotary frequencies stay float32
            param.data = param.data.to(dtype)
    return model


def save(model, directory, max_shard_size: str = "5GB", config: Mapping | None = None) -> str:
    """Writes a Hugging Face directory; `config` replaces what was written to config.json, None removing a field."""
    model.save_pretrained(directory, max_shard_size=max_shard_size)
    if config is not None:
        change_config(directory, config)
    return str(directory)


def change_config(directory, changes: Mapping) -> None:
    """Changes fields of the config.json in `directory`; None removes a field."""
    path = directory / "config.json"
    fields = json.loads(path.read_text()) | dict(changes)
    path.write_text(json.dumps({name: value for name, value in fields.items() if value is not None}))


def run(reference: Reference, model, inputs: np.ndarray) -> dict[str, np.ndarray]:
    """Site -> float32 array, the sites of a block stacked over layers; shapes as torch has them, heads unsplit.

    Of images [B, height, width, 3] also "last_hidden", "pooled" and "logits", those that the model returns.
    """
    num_layers = model.config.num_hidden_layers
    found: dict[tuple[str, int], torch.Tensor] = {}
    handles = []

    def watch(site: str, place: Place, layer: int) -> None:
        def hook(module, args, kwargs, output):
            if place.side == "input":
                value = args[place.item] if args else kwargs["hidden_states"]
            else:
                value = output[place.item] if isinstance(output, tuple) else output
            value = value if place.part is None else place.part(value)
            found[site, layer] = value.detach().float().clone()

        module = model.get_submodule(place.module.format(l=layer))
        handles.append(module.register_forward_hook(hook, with_kwargs=True))

    for site, place in reference.places.items():
        for layer in range(num_layers if "{l}" in place.module else 1):
            watch(site, place, layer)
    try:
        with torch.no_grad():
            if inputs.ndim == 4:
                pixels = torch.from_numpy(np.moveaxis(inputs, -1, 1).copy()).to(model.dtype)
                out = model(pixels, **reference.options(inputs))
            else:
                out = model(torch.from_numpy(inputs.astype(np.int64)))
    finally:
        for handle in handles:
            handle.remove()
    returned = {"last_hidden": "last_hidden_state", "pooled": "pooler_output", "logits": "logits"}
    values = {name: getattr(out, field, None) for name, field in returned.items() if inputs.ndim == 4}
    return {name: value.float().numpy() for name, value in values.items() if value is not None} | {
        site: torch.stack([found[site, layer] for layer in range(num_layers)]).numpy()
        if "{l}" in place.module
        else found[site, 0].numpy()
        for site, place in reference.places.items()
    }


def relative_error(ours, theirs) -> float:
    """‖ours − theirs‖ / ‖theirs‖; nan (which no tolerance accepts) where either is not finite."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))


def errors_by_site(ours: Mapping, theirs: Mapping) -> dict[str, list[float]]:
    """Relative error of every site, one number a layer. A site's heads may be split on our side."""
    errors = {}
    for site, expected in theirs.items():
        got = np.asarray(ours[site]).reshape(expected.shape)
        per_layer = site not in ("patch_embed", "embed", "final_norm", "logits")
        errors[site] = (
            [relative_error(a, b) for a, b in zip(got, expected, strict=True)]
            if per_layer
            else [relative_error(got, expected)]
        )
    return errors
