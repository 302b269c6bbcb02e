"""A language model, with its edits, in EleutherAI's lm-evaluation-harness: its tasks, prompts and metrics.

Needs the package lm_eval (`pip install massive_jax[harness]`). Log-likelihoods are in nats.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from massive_jax.arguments import is_index, shown, whole_number, yes_or_no
from massive_jax.checksums import checksum
from massive_jax.evaluate.batches import TOKENS_A_BATCH, rows_a_batch
from massive_jax.evaluate.continuations import continuation_edits, score_continuations
from massive_jax.files import is_remote, local, one_line, user_path
from massive_jax.forward import left_pad
from massive_jax.inputs.tokenizer import Tokenizer
from massive_jax.model import TextModel
from massive_jax.probe import Edit
from massive_jax.probe.edit import describe

try:
    import lm_eval  # the harness: absolute imports do not see this file
    from lm_eval.api.model import CacheHook, TemplateLM
    from lm_eval.models.utils import normalize_gen_kwargs, postprocess_generated_text
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
except ImportError as error:
    raise ValueError(
        f"zero-shot tasks need the package lm_eval ({error}): pip install 'massive_jax[harness]'."
    ) from None

PAPER = ("boolq", "piqa", "winogrande", "arc_easy", "arc_challenge")
"""The tasks of the paper's zero-shot accuracy, as the harness calls them; their data is on the hub."""
_MARK = "massive_jax: what these answers are of"  # a key of a cache; the harness's own are hexadecimal
_WITHOUT_DRAWING = ("top_p", "top_k", "min_p", "typical_p", "temperature")  # no effect where nothing is drawn

_Pair = tuple[list[int], list[int]]


class HarnessLM(TemplateLM):
    """Answers the harness's requests with a language model of the zoo, under edits.

    Args:
      model: a language model with a tokenizer: quantised, with an attention bias, of any family.
      edits: interventions; positions count a sequence's own tokens, BOS included.
      bos: puts BOS in front of every text, and of every window of a long one; None for what its tokenizer was made to
        do. A text that begins with it gets no second one. Without, a text without context follows one BOS (or EOS).
      max_length: tokens that the model is run on; None for its context.
      max_gen_toks: tokens that are generated where a task does not say.
      batch_tokens: tokens of a batch, padding included.

    Raises:
      ValueError: not a language model, no tokenizer; an edit that does not suit texts of any number and length; an
        option of another type or out of range.

    Examples:
      The harness's own evaluation takes it: `lm_eval.simple_evaluate(model=HarnessLM(model, edits), tasks=["piqa"])`.
    """

    def __init__(
        self,
        model: TextModel,
        edits: Edit | Sequence[Edit] | None = None,
        *,
        bos: bool | None = None,
        max_length: int | None = None,
        max_gen_toks: int = 256,
        batch_tokens: int = TOKENS_A_BATCH,
    ) -> None:
        super().__init__()
        self.model: TextModel = TextModel.of(model)
        if self.model.tokenizer is None:
            raise ValueError(f"{model.name}: the checkpoint has no tokenizer, and tasks are texts.")
        self.tokenizer: Tokenizer = self.model.tokenizer
        self.edits = continuation_edits(edits)
        self.bos = self.tokenizer.adds_bos if bos is None else yes_or_no("bos", bos)
        if self.bos:
            self.model.bos_id()  # that there is one
        most = self.model.config.context_length
        self.max_length = most if max_length is None else whole_number("max_length", max_length, 2, most)
        self.max_gen_toks = whole_number("max_gen_toks", max_gen_toks, 1)
        self.batch_tokens = whole_number("batch_tokens", batch_tokens, 1)

    # What the harness asks about tokens -------------------------------------------------------------------------------

    @property
    def eot_token_id(self) -> int:
        """Gives the token that ends a text; BOS where there is none."""
        return self._either(self.tokenizer.eos_id, self.tokenizer.bos_id)

    @property
    def prefix_token_id(self) -> int:
        """Gives the token that stands in front of a text without context: BOS, or EOS."""
        return self._either(self.tokenizer.bos_id, self.tokenizer.eos_id)

    def _either(self, first: int | None, second: int | None) -> int:
        if first is None and second is None:
            raise ValueError(f"{self.model.name}: the tokenizer has neither BOS nor EOS to begin a text with.")
        return first if first is not None else second  # type: ignore[return-value]

    @property
    def tokenizer_name(self) -> str:
        """Names the tokenizer, for the harness's cache of prompts."""
        return f"{self.model.title}-{checksum(repr(self.tokenizer.to_json()))}"

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Turns a text into ids: with BOS where `bos` says so and the text does not begin with it already."""
        ids = self.tokenizer.encode(string)
        wanted = self.bos if add_special_tokens is None else add_special_tokens and self.tokenizer.bos_id is not None
        begun = add_special_tokens is None and ids[:1] == [self.tokenizer.bos_id]
        return [self.model.bos_id(), *ids] if wanted and not begun else ids

    def tok_decode(self, tokens: Iterable[int]) -> str:
        """Turns ids into their text, special tokens left out."""
        return self.tokenizer.decode([token for token in tokens if token not in self.tokenizer.special_ids])

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Makes a text of a conversation (`Tokenizer.chat`)."""
        return self.tokenizer.chat(chat_history, reply=add_generation_prompt)

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """Gives the model's chat template, for the harness's records."""
        return self.tokenizer.chat_template if chat_template else None

    # What a cache of answers has to know ------------------------------------------------------------------------------

    def fingerprint(self) -> str:
        """Gives a checksum of all that answers depend on: weights, config, dtype, tokenizer, edits, options.

        Raises:
          ValueError: an edit by a function, which has no checksum.
        """
        for edit in self.edits:
            if callable(edit.op) or callable(edit.position):
                raise ValueError(f"{describe(edit)}: a function has no checksum; run it without a cache.")
        edits = [{field: _plain(value) for field, value in vars(edit).items()} for edit in self.edits]
        options = (self.bos, self.max_length, self.max_gen_toks)
        model = (repr(self.model.config), self.model.params, repr(self.tokenizer.to_json()))
        return checksum(*model, edits, repr(options))

    def set_cache_hook(self, cache_hook: CacheHook) -> None:
        """Takes the harness's cache of answers, whose keys are the requests alone.

        Raises:
          ValueError: its answers are of another model, other edits or other options.
        """
        if (answers := cache_hook.dbdict) is not None:
            mine, there = self.fingerprint(), answers.get(_MARK)
            if there != mine and len(answers):
                raise ValueError(
                    f"the cache {answers.filename} has answers of another model, dtype, edits or options; name another."
                )
            answers[_MARK] = mine
        super().set_cache_hook(cache_hook)

    def get_model_info(self) -> dict[str, Any]:
        """Says what was run, for the harness's records."""
        return {
            "model": self.model.name,
            "model_dtype": self.model.config.dtype,
            "bos": self.bos,
            "max_length": self.max_length,
            "edits": [describe(edit) for edit in self.edits],
        }

    # The three kinds of requests --------------------------------------------------------------------------------------

    def _encode_pair(self, context: str, continuation: str) -> _Pair:
        """The ids of both; spaces at the end of the context are the continuation's, as in the harness."""
        found = super()._encode_pair(context, continuation)
        if not found[1]:  # the whole has no more tokens than the context: they merge
            stripped = context.rstrip()
            rest = context[len(stripped) :] + continuation
            return self.tok_encode(stripped), self.tok_encode(rest, add_special_tokens=False)
        return found

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Computes log p(continuation | context) of each request, and whether it is what greedy decoding gives."""
        if empty := [request.args for request in requests if not request.args[1]]:
            raise ValueError(f"a continuation is empty, after {shown(empty[0][0])}: there is nothing to score.")
        return super().loglikelihood(requests, disable_tqdm=disable_tqdm)

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str] | None, list[int], list[int]]], disable_tqdm: bool = False, **_: Any
    ) -> list[tuple[float, bool]]:
        pairs = [self._cut(context, continuation) for _, context, continuation in requests]
        answers: list[tuple[float, bool]] = [(0.0, False)] * len(pairs)
        for number, score, likely in self._scored(pairs, disable_tqdm):
            answers[number] = score, likely
            if (asked := requests[number][0]) is not None:
                self.cache_hook.add_partial("loglikelihood", asked, answers[number])
        return answers

    def _scored(self, pairs: list[_Pair], quiet: bool) -> Iterator[tuple[int, float, bool]]:
        from tqdm import tqdm

        found = score_continuations(self.model, pairs, self.edits, batch_tokens=self.batch_tokens)
        yield from tqdm(found, total=len(pairs), desc="log-likelihoods", disable=quiet, mininterval=1)

    def _cut(self, context: list[int], continuation: list[int]) -> _Pair:
        """A pair that the model can take: of a context that is too long the end, behind its BOS."""
        context, room = context or [self.prefix_token_id], self.max_length + 1 - len(continuation)
        if room < 1:
            raise ValueError(f"a continuation has {len(continuation)} tokens; at most {self.max_length} can be scored.")
        if len(context) <= room:
            return context, continuation
        first = context[:1] if self.bos and context[0] == self.tokenizer.bos_id else []
        return (first + context[len(context) - room + len(first) :])[:room], continuation

    def windows(self, text: str) -> list[_Pair]:
        """Cuts a text into pairs that predict each of its tokens once, with as long a context as there is.

        The first window begins with `prefix_token_id`; with `bos` every one does, which the model needs as much there.
        """
        ids, prefix = self.tok_encode(text, add_special_tokens=False), self.prefix_token_id
        if ids[:1] == [prefix]:
            ids = ids[1:]  # written out in the text: not twice, and not predicted
        length = self.max_length - self.bos
        pairs = map(make_disjoint_window, get_rolling_token_windows(ids, prefix, length, context_len=1))
        front = [prefix] if self.bos else []
        return [(front * (number > 0) + context, rest) for number, (context, rest) in enumerate(pairs)]

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Computes log p(text) of each request, of any length (`windows`)."""
        windows = [self.windows(request.args[0]) for request in requests]
        of = [number for number, its in enumerate(windows) for _ in its]
        totals, left = [0.0] * len(windows), list(map(len, windows))
        for pair, score, _ in self._scored([pair for its in windows for pair in its], disable_tqdm):
            totals[of[pair]] += score
            left[of[pair]] -= 1
            if not left[of[pair]]:
                self.cache_hook.add_partial("loglikelihood_rolling", requests[of[pair]].args, totals[of[pair]])
        return totals

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Continues each request's text until one of its stop strings, EOS, or as many tokens as it asks for.

        Drawing is by `temperature` and `top_p`; what else a request asks for is an error.
        """
        from tqdm import tqdm

        self._check_positions()
        groups: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            groups.setdefault(repr(sorted(request.args[1].items())), []).append(number)
        answers = [""] * len(requests)
        with tqdm(total=len(requests), desc="texts", disable=disable_tqdm) as bar:
            for numbers in groups.values():
                how = _Generation.of(requests[numbers[0]].args[1], self.max_gen_toks)
                room = self.max_length - how.most
                if room < 1:
                    raise ValueError(f"{how.most} new tokens leave no room for a prompt: at most {self.max_length}.")
                prompts = {n: self._cut_prompt(self.tok_encode(requests[n].args[0]), room) for n in numbers}
                for number, text in self._texts(prompts, how):
                    answers[number] = text
                    self.cache_hook.add_partial("generate_until", requests[number].args, text)
                    bar.update()
        return answers

    def _cut_prompt(self, prompt: list[int], room: int) -> list[int]:
        prompt = prompt or [self.prefix_token_id]
        first = prompt[:1] if self.bos and len(prompt) > room else []
        return (first + prompt[len(first) :][-(room - len(first)) :])[:room] if room > len(first) else first

    def _texts(self, prompts: Mapping[int, list[int]], how: _Generation) -> Iterator[tuple[int, str]]:
        """Generates texts, those of a batch until all of them have stopped."""
        waiting = sorted(prompts, key=lambda number: len(prompts[number]))
        size = rows_a_batch(len(waiting), len(prompts[waiting[-1]]) + how.most, self.batch_tokens)
        for start in range(0, len(waiting), size):
            its = waiting[start : start + size]
            rows = [prompts[number] for number in its]
            tokens, mask = left_pad(rows + rows[-1:] * (size - len(rows)))
            found = self.model.generate(
                tokens,
                max_new_tokens=how.most,
                mask=mask,
                temperature=how.temperature,
                top_p=how.top_p,
                stop=self.tokenizer.eos_id,
                edits=self.edits,
                until=lambda new: all(self._text(row, how)[1] for row in new.tolist()),
            ).tokens[:, tokens.shape[1] :]
            for number, new in zip(its, found.tolist(), strict=False):
                yield number, postprocess_generated_text(self._text(new, how)[0], list(how.until), None)

    def _text(self, new: list[int], how: _Generation) -> tuple[str, bool]:
        """The text of new tokens up to EOS, and whether it has come to its end."""
        eos = self.tokenizer.eos_id
        ended = eos is not None and eos in new
        text = self.tok_decode(itertools.takewhile(lambda token: token != eos, new))
        return text, ended or any(stop in text for stop in how.until)

    def _check_positions(self) -> None:
        """ValueError for positions that the length of the new text would change."""
        for edit in self.edits:
            if is_index(edit.position) and edit.position < 0:  # type: ignore[operator]
                raise ValueError(f"{describe(edit)}: while text is generated, a place is a number from 0, or a rule.")


@dataclasses.dataclass(frozen=True)
class _Generation:
    """How a request wants its text."""

    until: tuple[str, ...]
    most: int
    temperature: float
    top_p: float

    @classmethod
    def of(cls, asked: Mapping[str, Any], most: int) -> _Generation:
        options = dict(normalize_gen_kwargs(dict(asked), most))
        until, most = (
            tuple(filter(None, options.pop("until"))),
            whole_number("max_gen_toks", options.pop("max_gen_toks"), 1),
        )
        if not options.pop("do_sample") or not options.get("temperature"):
            options = {name: value for name, value in options.items() if name not in _WITHOUT_DRAWING}
        found = cls(until, most, float(options.pop("temperature", 0.0)), float(options.pop("top_p", 1.0)))
        if options:
            raise ValueError(
                f"generation by {shown(options)} is not known; known are until, max_gen_toks, do_sample, temperature "
                "and top_p."
            )
        return found


def _plain(value: Any) -> Any:
    """A field of an edit with the kind of what it holds, for a checksum: text, or arrays as they are."""
    return np.asarray(value) if hasattr(value, "dtype") else repr(value)


def evaluate_tasks(
    model: TextModel | HarnessLM,
    tasks: Sequence[str],
    edits: Edit | Sequence[Edit] | None = None,
    *,
    include_path: str | None = None,
    num_fewshot: int | None = None,
    limit: int | None = None,
    cache: str | None = None,
    chat: bool = False,
    seed: int = 0,
    **options: Any,
) -> dict[str, Any]:
    """Runs tasks of the harness.

    Args:
      model: a language model, or a `HarnessLM` with its own edits and options.
      tasks: names as the harness has them, or files of tasks (.yaml); "paper" for the five of `PAPER`.
      edits: interventions, of a model.
      include_path: a directory with tasks of your own.
      num_fewshot: examples in front of each question; None for what a task says.
      limit: items of each task, from its start; None for all.
      cache: beginning of the name of a file that keeps answers; the model, edits and options are in its name.
      chat: puts questions by the model's chat template.
      seed: of the examples, and of what else the harness draws.
      options: of `HarnessLM`.

    Returns:
      What `lm_eval.simple_evaluate` does: "results" by task, "samples" by task and item, "configs", "versions" …

    Raises:
      ValueError: a task that is not known, or whose data cannot be had; see also `HarnessLM`.
    """
    if cache is not None and is_remote(cache):
        raise ValueError(f"cache {cache!r}: the harness keeps answers in a file of this machine; give a path there.")
    lm = model if isinstance(model, HarnessLM) else HarnessLM(model, edits, **options)
    names, manager = task_manager(tasks, include_path)
    if chat and lm.tokenizer.chat_template is None:
        raise ValueError(f"{lm.model.name}: the tokenizer has no chat template; run without it.")
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    found = lm_eval.simple_evaluate(
        model=lm,
        tasks=names,
        task_manager=manager,
        num_fewshot=num_fewshot,
        limit=limit,
        use_cache=None if cache is None else f"{user_path(cache)}-{lm.fingerprint()[:16]}",
        apply_chat_template=chat,
        fewshot_as_multiturn=chat,
        bootstrap_iters=0,  # intervals are made of the samples
        random_seed=seed,
        numpy_random_seed=seed,
        torch_random_seed=seed,
        fewshot_random_seed=seed,
    )
    assert found is not None
    return dict(found)


def task_manager(tasks: Sequence[str], include_path: str | None = None) -> tuple[list[str], Any]:
    """Gives the names of tasks, "paper" spelled out, and what of the harness knows them.

    That is a person's own directory, where it has them all: the harness's 14,000 files take long to read.

    Raises:
      ValueError: no tasks, no such directory; a task that is in neither.
    """
    names = [name for task in tasks for name in (PAPER if task == "paper" else (task,)) if task]
    if not names:
        raise ValueError("there are no tasks; name one at least.")
    names = [str(local(name)) if is_remote(name) else name for name in names]
    directory = None if include_path is None else user_path(include_path)
    if directory is not None and not directory.is_dir():
        raise ValueError(f"there is no directory {str(include_path)!r} of tasks.")
    if directory is not None:
        directory = local(directory)  # the harness reads it itself
    for defaults in (False, True) if directory is not None else (True,):
        manager = _manager(None if directory is None else str(directory), defaults)
        unknown = [name for name in names if not name.endswith(".yaml") and not manager.match_tasks([name])]
        if not unknown:
            return names, manager
    raise ValueError(f"the harness ({lm_eval.__version__}) has no task {', '.join(map(shown, unknown))}.")


@functools.lru_cache(maxsize=4)
def _manager(directory: str | None, defaults: bool) -> Any:
    from lm_eval.tasks import TaskManager

    class Tasks(TaskManager):
        """Says in one line why a task cannot be had."""

        def load(self, task_list: Any) -> Any:
            try:
                return super().load(task_list)
            except Exception as error:  # `datasets` raises dozens of types, and so do tasks
                raise ValueError(
                    f"a task of {', '.join(task_list)} cannot be loaded: {type(error).__name__}: {one_line(error)}"
                ) from None

    return Tasks(include_path=directory, include_defaults=defaults)
