"""Texts that tokenizer tests share."""

import random

SPECIAL = "<|end|>"
CORPUS = [
    "Summer is warm. Winter is cold.\nIt's what they've said: don't 12345 67 890!",
    "The quick brown fox jumps over the lazy dog, again and again and again...",
    "    indented code(x, y) = {1, 2}\n\n\n\tdone; camelCase HTTPServer GetUserName",
    "Größe, café déjà vu, naïve – мир и м, 東京タワー, 한국어, ½ ² ٣٤٥ 🙂🙃 e\u0301",
    "aaaa aaaaa aaaaaa abababab ababa bababa  two   three    four     spaces",
]
CASES = [
    *CORPUS,
    "",
    " ",
    "\n",
    "  leading and  multiple   spaces ",
    "IT'S You'LL 1234567 3.14159265 a1b22c333",
    "price: 12,345.67 (555) 123-4567 ext. 89 ½6789",
    "tabs\there\r\nand\r\rmore \n \n x",
    "x<|end|>y <|end|><|end|> z",
    "\u0000\u200b\ufeff\U0010ffff",
    "e\u0301 n\u0303 \u1100\u1161",
]


def random_texts(count, alphabet, seed=0, longest=40):
    rng = random.Random(seed)
    return ["".join(rng.choices(alphabet, k=rng.randint(0, longest))) for _ in range(count)]


# The real file
