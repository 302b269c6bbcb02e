"""What would fit where something does not: other meshes, dtypes, chips, batches and lengths, each tried."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence

from massive_jax.chips import Chips
from massive_jax.parallel import AXES, BATCH_AXES, mesh_text
from massive_jax.plan.estimate import Estimate, estimate, fits, most_held, time_of
from massive_jax.plan.place import Config
from massive_jax.plan.programs import Program


@dataclasses.dataclass(frozen=True)
class Job:
    """Describes what is to be planned: programs of a model on chips.

    Attributes:
      programs: the programs, of a number of sequences at a time and of tokens in each.
      config: of the model.
      chips: what they run on.
      batch: B.
      length: T.
      cuts: whether the batch and the length may be less.
      divides: whether it runs only where the batch divides over the mesh, as a training does.
    """

    programs: Callable[[int, int], Sequence[Program]]
    config: Config
    chips: Chips
    batch: int
    length: int
    cuts: bool = True
    divides: bool = False

    @functools.cached_property
    def _programs(self) -> Sequence[Program]:
        return self.programs(self.batch, self.length)

    def estimates(self, sizes: Mapping[str, int]) -> list[Estimate]:
        """Works out each program on a mesh."""
        return [estimate(program, self.config, self.chips, sizes) for program in self._programs]

    def best(self) -> tuple[dict[str, int], list[Estimate]]:
        """Gives the mesh on which it fits and is fastest, or else needs least memory, and the estimates.

        Raises:
          ValueError: it runs on none of so many chips.
        """
        tried = [(sizes, self.estimates(sizes)) for sizes in self.meshes()]
        if not tried:
            raise ValueError(
                f"{self.chips}: no mesh of {self.chips.count} chips splits a batch of {self.batch} and "
                f"{self.config.num_heads} heads evenly; give another batch, or --mesh."
            )
        fitting = [one for one in tried if fits(one[1], self.chips)]
        if fitting:
            return min(fitting, key=lambda one: time_of(one[1])[1])
        return min(tried, key=lambda one: most_held(one[1]))

    def meshes(self) -> list[dict[str, int]]:
        """Gives the meshes of the chips on which it runs."""

        def runs(sizes: Mapping[str, int]) -> bool:
            return not self.divides or self.batch % math.prod(sizes[axis] for axis in BATCH_AXES) == 0

        return list(filter(runs, meshes(self.chips.count, self.config)))


def meshes(count: int, config: Config) -> Iterator[dict[str, int]]:
    """Gives the meshes of so many chips: the batch over fsdp or data, the model over tensor and, if it has any, expert.

    Of meshes that take as long the first splits the parameters most.
    """
    experts = config.experts.num_experts if config.experts else 1
    for expert in _divisors(count):
        if experts % expert:
            continue
        for tensor in _divisors(count // expert):
            if config.num_heads % tensor == 0:
                rest, sizes = count // expert // tensor, dict.fromkeys(AXES, 1) | {"tensor": tensor, "expert": expert}
                yield sizes | {"fsdp": rest}
                if rest > 1:
                    yield sizes | {"data": rest}


def check_fits(job: Job, sizes: Mapping[str, int], estimates: Sequence[Estimate]) -> None:
    """Checks that a job fits its chips.

    Raises:
      ValueError: it does not; one line that says what it needs, what there is, and what would fit.
    """
    if fits(estimates, job.chips):
        return
    chip, needed = job.chips.chip, most_held(estimates)
    what = f"{job.config.dtype} on {job.chips}, mesh {mesh_text(sizes)}"
    raise ValueError(
        f"{what}, needs {needed / 1e9:,.1f} GB a chip, of whose {chip.memory / 1e9:,.1f} programs have "
        f"{chip.usable / 1e9:,.1f}. {_what_would(job, sizes)}"
    )


def _what_would(job: Job, sizes: Mapping[str, int]) -> str:
    found = list(_fitting(job, sizes))
    if not found:
        return "Nothing near it fits: give more chips, a smaller model, or a shorter context."
    return f"It fits with {'; or with '.join(found)}."


def _fitting(job: Job, sizes: Mapping[str, int]) -> Iterator[str]:
    """What fits, one change at a time, in the order of how little is given up."""

    def fitting(changed: Job, on: Mapping[str, int] | None = None) -> Mapping[str, int] | None:
        """The mesh, where it fits."""
        if on is None:
            if not changed.meshes():
                return None
            on, estimates = changed.best()
        else:
            estimates = changed.estimates(on)
        return on if fits(estimates, changed.chips) else None

    if (mesh := fitting(job)) is not None and dict(mesh) != dict(sizes):
        yield f"--mesh={mesh_text(mesh)}"
    for what, changed in _smaller(job) if job.cuts else ():
        if fitting(changed, sizes) is not None:
            yield what
            break
    if job.config.dtype == "float32":
        half = dataclasses.replace(job, config=dataclasses.replace(job.config, dtype="bfloat16"))
        if (mesh := fitting(half)) is not None:
            yield f"--dtype=bfloat16 --mesh={mesh_text(mesh)}"
            return
    for more in job.chips.larger:
        if (mesh := fitting(dataclasses.replace(job, chips=more))) is not None:
            yield f"--chips={more} --mesh={mesh_text(mesh)}"
            return


def _smaller(job: Job) -> Iterator[tuple[str, Job]]:
    """Fewer sequences at a time, then shorter ones."""
    if job.batch > 1:
        yield "--windows=1 (or fewer at a time)", dataclasses.replace(job, batch=1)
    length = job.length // 2
    while length >= 64:
        yield f"--windows=1 --context={length}", dataclasses.replace(job, batch=1, length=length)
        length //= 2


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]
