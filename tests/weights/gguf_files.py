"""Small GGUF files and tokenizer metadata for tests."""

import os
from collections.abc import Mapping
from typing import Any

import gguf
import numpy as np
import tokenizers


def write_gguf(
    path: str | os.PathLike[str],
    metadata: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray] | None = None,
    quantisation: str | Mapping[str, str] = "F32",
) -> None:
    """Writes a GGUF file (version 3, little endian) with `gguf.GGUFWriter`.

    Args:
      path: the file.
      metadata: raw keys → str, bool, int (uint32, or int32 where negative), float (float32) or a list of one of
        these. "general.architecture" is "llama" where it is absent.
      tensors: name → array in numpy order, [out, in].
      quantisation: a GGML type ("Q8_0", "Q4_1", "F16", "BF16", …) for every tensor with two or more dimensions,
        or name → type; tensors it leaves out are F32.
    """
    writer = gguf.GGUFWriter(path, metadata.get("general.architecture", "llama"))
    for key, value in metadata.items():
        if key == "general.architecture":
            continue
        if isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            (writer.add_int32 if value < 0 else writer.add_uint32)(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        else:
            writer.add_array(key, list(value))
    for name, values in (tensors or {}).items():
        if isinstance(quantisation, str):
            kind = quantisation if values.ndim > 1 else "F32"
        else:
            kind = quantisation.get(name, "F32")
        kind = gguf.GGMLQuantizationType[kind]
        values = np.ascontiguousarray(values, np.float32)
        if kind == gguf.GGMLQuantizationType.F16:
            writer.add_tensor(name, values.astype(np.float16))
        else:
            writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def byte_level_metadata(
    tokenizer: tokenizers.Tokenizer, pre: str = "gpt-2", special: tuple[str, ...] = ()
) -> dict[str, Any]:
    """The "tokenizer.ggml.…" keys of a byte-level BPE; `special` are its control tokens, the first BOS and EOS."""
    import json

    model = json.loads(tokenizer.to_str())["model"]
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3 if token in special else 1 for token in tokens],
        "tokenizer.ggml.merges": [" ".join(merge) for merge in model["merges"]],
    }
    if special:
        metadata["tokenizer.ggml.bos_token_id"] = vocabulary[special[0]]
        metadata["tokenizer.ggml.eos_token_id"] = vocabulary[special[0]]
    return metadata


def sentencepiece_metadata(processor: Any) -> dict[str, Any]:
    """The "tokenizer.ggml.…" keys of a `sentencepiece.SentencePieceProcessor` (BPE)."""
    count = processor.get_piece_size()

    def kind(i: int) -> int:
        if processor.is_unknown(i):
            return 2
        if processor.is_control(i):
            return 3
        if processor.is_byte(i):
            return 6
        return 1

    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [processor.id_to_piece(i) for i in range(count)],
        "tokenizer.ggml.scores": [float(processor.get_score(i)) for i in range(count)],
        "tokenizer.ggml.token_type": [kind(i) for i in range(count)],
        "tokenizer.ggml.bos_token_id": processor.bos_id(),
        "tokenizer.ggml.eos_token_id": processor.eos_id(),
        "tokenizer.ggml.unknown_token_id": processor.unk_id(),
    }
