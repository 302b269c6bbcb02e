import sys

import pytest

from massive_jax.data import load_text, text_name
from massive_jax.data import prose as module
from massive_jax.data.prose import PINNED, checksum, is_prose, paragraphs, prose, shared


@pytest.mark.parametrize(
    "paragraph",
    [
        "The value of the whole expression is the value of the last one, which may be an object of any type.",
        'A class may define "__del__()", and the "async with" statement calls it when the name goes out of scope.',
        "It is not obvious to everybody, but the left-hand side’s value isn’t read (see the section on names).",
    ],
)
def test_sentences_are_prose(paragraph):
    assert is_prose(paragraph)


@pytest.mark.parametrize(
    ("paragraph", "why"),
    [
        ('assert_stmt ::= "assert" expression ["," expression] and so on to the end of the rule.', "a rule"),
        (">>> the value of the last expression is not printed when it is of a type that has none.", "a session"),
        ("The form is equivalent to the following, in which the name is bound to the value of it:", "a lead to code"),
        ("Changed in version 3.12: The name is bound to the value of the expression in the scope of it.", "an edition"),
        (
            'The operation "x + 1 if x else y" is the one that the name of the operator stands for in it.',
            "an operation",
        ),
        ('"int", "float", "complex", "list", "tuple", "range", "dict", "set", "frozenset", "bytes".', "names"),
        ("ArithmeticError BaseException BufferError EOFError LookupError MemoryError NameError OSError.", "names"),
        ("The value is a number.", "short"),
        ("def method that is of the class and of the name of the object that it is an attribute of.", "code"),
        ("| The operator | of the operation | that is the one with | the priority of it |.", "a table"),
    ],
)
def test_what_is_no_prose(paragraph, why):
    assert not is_prose(paragraph)


def test_paragraphs_do_not_depend_on_where_lines_were_broken():
    wide = "A *mapping* of the built-in kind.\n\n* The **second** one - it has a dash.\n"
    narrow = "A\n*mapping* of\nthe built-\nin kind.\n   \n* The **second** one -\n  it has\n  a dash."
    expected = ["A mapping of the built-in kind.", "The second one - it has a dash."]
    assert list(paragraphs({"b": wide})) == list(paragraphs({"b": narrow})) == expected


def test_shared_prose_is_what_all_releases_say_once_in_the_order_of_the_newest():
    one = "The first of the paragraphs is in all of the releases, and it is one that is kept."
    two = "The second of the paragraphs is in all of the releases, and in another topic of one."
    new = "The third of the paragraphs is in the newest of the releases, and it is not kept."
    assert shared([{"a": f"{two}\n\n{one}\n\n{new}", "b": one}, {"x": one, "y": two}]) == [two, one]


def test_this_python_has_every_listed_paragraph_and_they_are_prose():
    """What other releases lack of them would be seen here by their checksum."""
    text = prose()
    assert checksum(text) == PINNED
    assert all(map(is_prose, text.split("\n\n")))
    assert len(set(text.split("\n\n"))) == text.count("\n\n") + 1  # each once
    assert text_name("python") == "python"
    assert text_name("book.txt") == "book.txt"


@pytest.fixture
def other_topics(monkeypatch):
    """A Python with other help topics; what is known of this one's is forgotten, before and after."""
    from pydoc_data import topics

    def have(changed):
        prose.cache_clear()
        monkeypatch.setattr(topics, "topics", changed)

    yield have
    prose.cache_clear()


def test_a_release_that_changed_a_paragraph_gives_the_others_and_says_so(other_topics):
    first, second, third = prose().split("\n\n")[:3]
    other_topics({"z": f"{third}\n\n{first}", "a": second.replace("the", "The", 1)})
    assert load_text("python") == f"{first}\n\n{third}"
    assert text_name("python") == f"python (sha256 {checksum(load_text())})"
    assert text_name(text_name("python")) == text_name("python")


def test_a_python_without_its_help_topics(other_topics, monkeypatch):
    other_topics({"a": "Nothing that is listed."})
    with pytest.raises(ValueError, match="the text 'python' is empty"):
        load_text()
    prose.cache_clear()
    monkeypatch.setitem(sys.modules, "pydoc_data", None)
    with pytest.raises(ValueError, match="this Python has no pydoc_data.*give the path of a text"):
        load_text()


def test_the_list_names_each_paragraph_once():
    listed = module._LIST.read_text(encoding="ascii").split()
    assert len(set(listed)) == len(listed) > 300
