"""English prose that every CPython ships: paragraphs of its language reference, as the interactive help has them.

The help's topics are half grammar rules, code, tables, signatures and repeats, and they change a little with every
release. Kept is each paragraph once that is English (`is_prose`) and stands, word for word, in every release from
3.9.18 to 3.13.0 that was at hand; `prose.txt` lists those by checksum, in order, and no text of theirs. So the text
does not depend on which Python 3.11 or newer reads it, as long as that release still has these paragraphs; one that
lacks some gives the others, and its `checksum` is not `PINNED`.
"""

from __future__ import annotations

import functools
import hashlib
import pathlib
import re
from collections.abc import Iterable, Iterator, Mapping

# The `checksum` of the whole text where every listed paragraph is there.
PINNED = "6dcf3476"
_LIST = pathlib.Path(__file__).with_name("prose.txt")

_FUNCTION_WORDS = re.compile(
    "a|an|and|are|as|be|by|for|from|if|in|is|it|not|of|on|or|that|the|this|to|which|with", re.IGNORECASE
)
_WORD = re.compile(r"[A-Za-z][a-z]*(?:[’'-][A-Za-z]?[a-z]+)*")
_NAME = re.compile(r"\"[\w.]+(?: [a-z]+)?(?:\(\))?\"")  # "name", "module.name", "method()", "async for"
_CODE = re.compile(r"::=|[\"=<>{}\\|@\[\]#$%^~_`*]")
_EDITION = re.compile(r"(Added|Changed|Deprecated|New|Removed) (in|since)|PEP ")
_EMPHASIS = re.compile(r"(?<![\w*])(\*{1,2})(?=\S)([^*]+?)(?<=\S)\1(?![\w*])")


@functools.cache
def prose() -> str:
    """Reads the text: its paragraphs, an empty line between them.

    Raises:
      ValueError: this Python was installed without its help topics, or has none of the paragraphs.
    """
    try:
        from pydoc_data import topics
    except ImportError:
        raise ValueError(
            "this Python has no pydoc_data, whose help topics are the built-in text; give the path of a text."
        ) from None
    found = {checksum(paragraph): paragraph for paragraph in paragraphs(topics.topics)}
    return "\n\n".join(found[listed] for listed in _LIST.read_text(encoding="ascii").split() if listed in found)


def checksum(text: str) -> str:
    """Gives the first 8 hexadecimal digits of a text's sha256: a paragraph's name in the list."""
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def paragraphs(topics: Mapping[str, str]) -> Iterator[str]:
    """Gives the paragraphs of help topics, in order of the topics' names, each on one line, without markup.

    Words that were hyphenated at a line's end, bullets and emphasis are undone, so that where a release wraps its lines
    does not matter.
    """
    for name in sorted(topics):
        for block in re.split(r"\n\s*\n", topics[name]):
            line = " ".join(re.sub(r"(?<=\w-)\n\s*(?=\w)", "", block).split())
            yield _EMPHASIS.sub(r"\2", line.removeprefix("* ").removeprefix("• "))


def is_prose(paragraph: str) -> bool:
    """Says whether a paragraph is English sentences: no rule, code, table, signature, list of names, nor a lead to one.

    It begins with a capital and ends with a full stop; four of five words are plain ones and one of five an article,
    preposition or the like; names in quotes stay, any other sign of code rules it out.
    """
    if len(paragraph) < 60 or not re.match("[A-Z]", paragraph) or not paragraph.endswith("."):
        return False
    bare = _NAME.sub("name", paragraph)
    if _EDITION.match(paragraph) or _CODE.search(bare):
        return False
    words = [word.strip("“”‘’(),.;:") for word in bare.split()]
    plain = sum(_WORD.fullmatch(word) is not None for word in words)
    function = sum(_FUNCTION_WORDS.fullmatch(word) is not None for word in words)
    return 5 * plain >= 4 * len(words) and 5 * function >= len(words)


def shared(releases: Iterable[Mapping[str, str]]) -> list[str]:
    """Gives the prose that all `releases` (their help topics, newest first) have: what `prose.txt` lists."""
    newest, *others = [dict.fromkeys(paragraphs(topics)) for topics in releases]
    return [p for p in newest if is_prose(p) and all(p in other for other in others)]
