"""Makes a token file for training: a text through a tokenizer, or a token file of nanoGPT's kind with its sidecar.

  python -m experiments.prepare_data --text=book.txt --tokenizer=smollm2_135m --out=data/book.bin
  python -m experiments.prepare_data --text=python --out=data/python.bin
  python -m experiments.prepare_data --adopt=openwebtext/train.bin --vocab_size=50257

--text is a UTF-8 file, 'python' (English prose that CPython ships), 'backcopy' or 'multicopy' (made-up languages, see
train_gpt2), or a dataset: wikitext2, c4, pg19, or NAME:DIRECTORY for a local copy. The tokens are raw little-endian
uint16 (uint32 for a vocabulary above 65,536); FILE.json beside them has their number, vocabulary, checksum and
tokenizer. Tokenises on all processors; killed half-way, run it again.
"""

from __future__ import annotations

from absl import flags

from experiments import common
from experiments.flags import paths, text
from experiments.token_files import BYTES, prepare
from massive_jax.files import user_path
from massive_jax.train import adopt
from massive_jax.train.data import DTYPES

_TOKENIZER = flags.DEFINE_string(
    "tokenizer", BYTES, "'bytes' (256 tokens, no download), or the model whose tokenizer to use, as for --model."
)
paths.look_at(_TOKENIZER)
_OUT = paths.define("out", None, "The token file to make.")
_ADOPT = paths.define("adopt", None, "A token file without a sidecar, to write one for, instead of a text.")
_VOCAB_SIZE = flags.DEFINE_integer("vocab_size", None, "Of the tokens in --adopt.", lower_bound=1)
_TOKEN_DTYPE = flags.DEFINE_enum("token_dtype", "uint16", list(DTYPES), "Of the tokens in --adopt.")

if __name__ == "__main__":
    flags.adopt_module_key_flags(common)
    flags.declare_key_flag("text")


def main() -> None:
    """Runs the binary."""
    if _ADOPT.value is not None:
        common.without_effect(("text", "tokenizer"), "beside --adopt")
    else:
        common.without_effect(("vocab_size", "token_dtype"), "without --adopt")
    for name, value in (("out", _OUT.value), ("adopt", _ADOPT.value), ("tokenizer", _TOKENIZER.value)):
        if value == "":
            raise ValueError(f"--{name} is empty; leave it out, or give a value.")
    if _OUT.value is not None and _ADOPT.value is None:
        file = prepare(text.name(), _TOKENIZER.value, user_path(_OUT.value))
    elif _ADOPT.value is not None and _OUT.value is None:
        if _VOCAB_SIZE.value is None:
            raise ValueError("--adopt needs --vocab_size: 50257 for GPT-2's tokens.")
        file = adopt(_ADOPT.value, vocab_size=_VOCAB_SIZE.value, dtype=_TOKEN_DTYPE.value)
    else:
        raise ValueError("give --text and --out to tokenise a text, or --adopt for a token file that is there.")
    print(f"{file.path}: {file.count:,} tokens of a vocabulary of {file.vocab_size:,}, sha256 {file.sha256[:12]}…")


if __name__ == "__main__":
    common.run_experiment(main)
