"""The peer: the same weights in Hugging Face's PyTorch implementation. Axis letters: see `massive_jax.probe.sites`."""

from __future__ import annotations

import numpy as np
import torch
import transformers

import massive_jax as mj


def torch_llama(model: mj.Model) -> transformers.LlamaForCausalLM:
    """A `LlamaForCausalLM` with the weights of `model` (of the Llama family, tied, without biases), float32."""
    cfg = mj.TextModel.of(model).config
    config = transformers.LlamaConfig(
        vocab_size=cfg.vocab_size,
        hidden_size=cfg.hidden_size,
        intermediate_size=cfg.intermediate_size,
        num_hidden_layers=cfg.num_layers,
        num_attention_heads=cfg.num_heads,
        num_key_value_heads=cfg.num_kv_heads,
        head_dim=cfg.head_dim,
        max_position_embeddings=cfg.max_position,
        rms_norm_eps=cfg.norm.eps,
        rope_parameters={"rope_type": "default", "rope_theta": cfg.rope.theta},
        tie_word_embeddings=True,
    )
    peer = transformers.LlamaForCausalLM(config).eval()
    params = {name: np.asarray(p, np.float32) for name, p in _flat(model.params)}
    D = cfg.hidden_size
    state = {
        "model.embed_tokens.weight": params["embedding"],
        "lm_head.weight": params["embedding"],
        "model.norm.weight": params["norm/scale"],
    }
    for layer in range(cfg.num_layers):
        here = f"model.layers.{layer}."
        for ours, theirs in (("query", "q"), ("key", "k"), ("value", "v")):
            kernel = params[f"layers/attn/{ours}/kernel"][layer]  # [D, H, N]
            state[f"{here}self_attn.{theirs}_proj.weight"] = kernel.reshape(D, -1).T
        state[f"{here}self_attn.o_proj.weight"] = params["layers/attn/out/kernel"][layer].reshape(-1, D).T
        for name in ("gate", "up", "down"):
            state[f"{here}mlp.{name}_proj.weight"] = params[f"layers/mlp/{name}/kernel"][layer].T
        state[f"{here}input_layernorm.weight"] = params["layers/attn_norm/scale"][layer]
        state[f"{here}post_attention_layernorm.weight"] = params["layers/mlp_norm/scale"][layer]
    peer.load_state_dict({name: torch.from_numpy(np.array(w, order="C")) for name, w in state.items()})
    return peer


def _flat(tree, prefix=""):
    for name, leaf in tree.items():
        if isinstance(leaf, dict):
            yield from _flat(leaf, f"{prefix}{name}/")
        else:
            yield prefix + name, leaf
