"""Training a vision model on labelled images. Axis letters: see `massive_jax.probe.sites`; V classes."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import PartitionSpec

from massive_jax.data import ImageProcessor, LabelledImages
from massive_jax.files import Path
from massive_jax.models import VisionTransformer
from massive_jax.parallel import BATCH_AXES, mesh_set, process_part
from massive_jax.train.census import take_census
from massive_jax.train.config import ImageTrainConfig
from massive_jax.train.loop import Task, Trained, mesh_of, run
from massive_jax.train.metrics import flops_per_token
from massive_jax.train.objective import Classification
from massive_jax.train.step import Trainer
from massive_jax.weights.checkpoint import save_params


def train_images(
    config: ImageTrainConfig,
    training: LabelledImages,
    held_out: LabelledImages,
    workdir: Path,
    *,
    say: Callable[[str], Any] = lambda line: None,
) -> Trained:
    """Trains a vision model on labelled images; see `massive_jax.train.run` for `workdir`, `say` and how it goes on.

    The held-out images decide nothing: "validation_loss" and "accuracy" (top-1, from 0 to 1) are on all of them.

    Raises:
      ValueError: images of another size, or of other classes, than the model's; and as `massive_jax.train.run`.
      Preempted: SIGTERM.
    """
    return run(_Classes(config, training, held_out), workdir, say=say)


def shuffled_batches(
    images: LabelledImages,
    *,
    batch: int,
    seed: int,
    flip: bool = False,
    shift: int = 0,
    shard: tuple[int, int] = (0, 1),
) -> Any:
    """Makes endless batches of augmented images, an iterator of grain (see `massive_jax.train.batches_of`).

    Every epoch has each image once, in an order of its own; a batch may begin in one and end in the next. The seed and
    the batch's number fix the images and what is done to them.

    Args:
      images: the images.
      batch: B, of all processes.
      seed: of order and augmentation.
      flip: mirrors half of the images.
      shift: most pixels that each is moved by, down or up and right or left.
      shard: (number, count) of this process, which takes its part of each batch.

    Returns:
      Batches {"images": uint8 [B / count, height, width, 3], "labels": int32 [B / count]}.
    """
    import grain

    source = grain.MapDataset.source(_Batches(images, batch, seed, flip, shift, shard))
    return iter(source.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)))


@dataclasses.dataclass(frozen=True, eq=False)
class _Batches:
    """Batches by number."""

    images: LabelledImages
    batch: int
    seed: int
    flip: bool
    shift: int
    shard: tuple[int, int]

    def __len__(self) -> int:
        return 1 << 40  # more than anyone trains on

    def __getitem__(self, index: Any) -> dict[str, np.ndarray]:
        number, count = self.shard
        size = self.batch // count
        first = int(index) * self.batch + number * size
        which = np.arange(first, first + size)
        epochs, places = np.divmod(which, len(self.images))
        chosen = np.concatenate(
            [_order(len(self.images), self.seed, int(e))[places[epochs == e]] for e in np.unique(epochs)]
        )
        pixels = self.images[chosen]
        rng = np.random.default_rng((self.seed, int(index), 0))
        mine = slice(number * size, (number + 1) * size)  # of the whole batch, however many processes share it
        if self.shift:
            pixels = _shifted(pixels, rng.integers(-self.shift, self.shift + 1, (2, self.batch))[:, mine])
        if self.flip:
            pixels = np.where(rng.random(self.batch)[mine, None, None, None] < 0.5, pixels[:, :, ::-1], pixels)
        return {"images": np.ascontiguousarray(pixels), "labels": self.images.labels[chosen]}


@functools.lru_cache(maxsize=4)  # two epochs are open at most, for each of two iterators
def _order(count: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(count)


def _shifted(pixels: np.ndarray, by: np.ndarray) -> np.ndarray:
    """Images [B, height, width, 3] moved by [2, B] pixels, down and right; what comes in repeats the edge."""
    B, height, width, _ = pixels.shape
    rows = np.clip(np.arange(height) - by[0][:, None], 0, height - 1)
    columns = np.clip(np.arange(width) - by[1][:, None], 0, width - 1)
    return pixels[np.arange(B)[:, None, None], rows[:, :, None], columns[:, None, :]]


class _Classes(Task):
    """The task of telling an image's class."""

    config: ImageTrainConfig
    unit = "images"

    def __init__(self, config: ImageTrainConfig, training: LabelledImages, held_out: LabelledImages):
        """Checks that the images fit the training."""
        model = config.model
        if training.checksum != config.data:
            raise ValueError(f"the training is of data {config.data[:12]}…, and these are {training.checksum[:12]}….")
        for images, what in ((training, "training"), (held_out, "held-out")):
            if images.size != model.image_size:
                raise ValueError(
                    f"the {what} images have {images.size} pixels, the model takes {model.image_size}; give both the "
                    "same size."
                )
            if len(images.classes) != model.num_classes or images.classes != training.classes:
                raise ValueError(
                    f"the {what} images are of {len(images.classes)} classes, the training ones of "
                    f"{len(training.classes)}, the model's head has {model.num_classes}: all must be the same."
                )
        self.config = config
        self._images, self._held_out = training, held_out
        self._objective = Classification(config.smoothing)
        module = VisionTransformer(model, config.remat, config.unroll)
        self.trainer = Trainer(
            module,
            config.optimizer,
            config.accumulate,
            mesh_of(config),
            self._objective,
            kernel_std=None,  # 0.02 is for widths of several hundred
            ema=config.ema,
        )
        self.units = config.batch
        tokens = model.num_tokens(*model.image_size)
        self.flops = tokens * flops_per_token(model, tokens)

    def batches(self) -> Any:
        cfg = self.config
        return shuffled_batches(
            self._images,
            batch=cfg.batch,
            seed=cfg.seed,
            flip=cfg.flip,
            shift=cfg.shift,
            shard=process_part(self.trainer.mesh),
        )

    def validate(self, params: Any) -> dict[str, float]:
        size, count = self.config.batch, len(self._held_out)
        total, right = 0.0, 0
        for start in range(0, count, size):
            which = np.arange(start, min(start + size, count))
            batch = {"images": self._held_out[which], "labels": self._held_out.labels[which]}
            even = len(which) % self.config.batch_devices == 0
            placed = self.trainer.on_devices(batch, PartitionSpec(BATCH_AXES) if even else PartitionSpec())
            with mesh_set(self.trainer.mesh):
                nll, hits = _judge(self._objective, self.trainer.module, params, placed)
            total, right = total + float(nll), right + int(hits)
        return {"validation_loss": total / count, "accuracy": right / count}

    def census(self, params: Any) -> list[dict[str, Any]]:
        which = np.unique(np.linspace(0, len(self._held_out) - 1, self.config.census_images).astype(int))
        images = np.asarray(self._objective.normalised(self._held_out[which]))
        return take_census(VisionTransformer(self.config.model), params, images)

    def save(self, directory: Path, params: Any) -> None:
        provenance = {"training": self.config.described(), "classes": list(self._images.classes)}
        model = dataclasses.replace(self.config.model, attention_kernel="xla", dtype="float32")
        height, width = model.image_size
        processor = ImageProcessor(
            {
                "image_processor_type": "ViTImageProcessor",
                "size": {"height": height, "width": width},
                "image_mean": [self._objective.mean] * 3,
                "image_std": [self._objective.std] * 3,
            }
        )
        save_params(str(directory), model, params, processor=processor, provenance=lambda: provenance)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _judge(objective: Classification, module: VisionTransformer, params: Any, batch: Any) -> tuple[jax.Array, ...]:
    """Of a batch: the sum of -log p(class), and how many have the right class as the most likely one."""
    logits = objective.logits(module, params, batch["images"])
    nll = optax.softmax_cross_entropy_with_integer_labels(logits, batch["labels"])
    return jnp.sum(nll), jnp.sum(jnp.argmax(logits, axis=-1) == batch["labels"])
