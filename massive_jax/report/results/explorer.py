"""What the report's page lets a reader explore: the JSON that it holds, and draws."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from massive_jax.analysis.massive import DEFINITION, Thresholds
from massive_jax.report.records import optional


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExploredLayer:
    """A layer: its median magnitude, and of every token the activation of largest magnitude, and its dim.

    The last five are of the input's `massive` tokens, and None where there are none.

    Attributes:
      layer: from 1.
      median: magnitude.
      values: T, signed.
      dims: T.
      share: of the attention that massive tokens get, mean over heads and queries.
      update_norm: of what attention adds to the other tokens from these.
      rest_norm: the same from all others.
      spread: how much that changes from query to query: mean of ‖u − ū‖ over ‖ū‖; 0 for a bias.
      rest_spread: the same of what the others add.
    """

    layer: int
    median: float
    values: tuple[float, ...]
    dims: tuple[int, ...]
    share: float | None = None
    update_norm: float | None = None
    rest_norm: float | None = None
    spread: float | None = None
    rest_spread: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExploredImage:
    """The picture whose patches an input's last tokens are, row by row.

    Attributes:
      picture: as the model sees it, a data: address of a JPEG.
      grid: rows and columns of patches.
    """

    picture: str
    grid: tuple[int, int]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExploredAttention:
    """Attention of every layer and head.

    Attributes:
      cells: of each token, which row and which column it is in, from 0; several share one where a page would be too
        large: of a text tokens that follow each other, of an image patches that make a square.
      causal: whether a row ends at its own column.
      maps: of each layer, of each head, of each row the attention on each column, in thousandths; of a cell of several
        tokens the sum over its keys, averaged over its queries.
    """

    cells: tuple[int, ...]
    causal: bool
    maps: tuple[tuple[tuple[tuple[int, ...], ...], ...], ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExploredMap:
    """Magnitudes of one layer over tokens and dims.

    Attributes:
      layer: which.
      cells: of each token, which row it is in.
      dims: the first dim of every column; a column is the largest magnitude of its dims.
      rows: the magnitudes.
    """

    layer: int
    cells: tuple[int, ...]
    dims: tuple[int, ...]
    rows: tuple[tuple[float, ...], ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExploredInput:
    """One model on one input.

    Attributes:
      model: its title.
      input: what it is called, such as "no BOS", or an image's name.
      tokens: T texts; of an image CLS, reg1, …, (row,column).
      labels: how they are written.
      massive: positions that are massive in some layer, and stand apart there: 5 times the middle token's magnitude.
      layers: every layer.
      attention: of every layer and head.
      map: of the layer that is drawn in 3D.
      image: of a vision model.
    """

    model: str
    input: str
    tokens: tuple[str, ...]
    labels: tuple[str, ...]
    massive: tuple[int, ...]
    layers: tuple[ExploredLayer, ...]
    attention: ExploredAttention
    map: ExploredMap
    image: ExploredImage | None = optional()  # noqa: RUF009  (a dataclass field)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Likely:
    """A token that may come next, as it is written, or a class; and how likely it is."""

    name: str
    probability: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class WhatIfOutcome:
    """What a model says of an input: the metric, and the most likely next tokens, or classes (none without a head)."""

    value: float
    top: tuple[Likely, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class WhatIfEdit(WhatIfOutcome):
    """The same with the output of block `layer` changed, at a place and by an operation of `WhatIf`'s lists."""

    layer: int
    place: int
    operation: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class WhatIf:
    """What the model says where activations are changed.

    Attributes:
      model: its title.
      metric: "perplexity" of a text; of an image "cosine_similarity" of its feature to the unedited one.
      text: on which: the start of it is meant.
      bos: whether BOS is in front of it.
      image: on which, in place of a text.
      tokens: how many it has, with BOS.
      ending: its last few tokens, as they are written.
      places: in words.
      operations: in words.
      unedited: without an edit.
      edits: every layer × place × operation.
    """

    model: str
    metric: str
    text: str | None = optional()
    bos: bool | None = optional()
    image: str | None = optional()
    tokens: int
    ending: str | None = optional()
    places: tuple[str, ...]
    operations: tuple[str, ...]
    unedited: WhatIfOutcome
    edits: tuple[WhatIfEdit, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Explorer:
    """All of it.

    Attributes:
      headline: the finding in one sentence.
      thresholds: the definition of massive.
      inputs: models and inputs, to be compared.
      what_if: one a model; none where there is nothing to predict.
      provenance: what it was made of and by, in words.
    """

    headline: str
    thresholds: Thresholds = DEFINITION
    inputs: tuple[ExploredInput, ...]
    what_if: tuple[WhatIf, ...] = ()
    provenance: Mapping[str, str] | None = optional()
