"""A rectangle of someone's figure, drawn on as if it were a figure of its own."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

_given: contextvars.ContextVar[Any] = contextvars.ContextVar("given", default=None)
_BEFORE = "_massive_jax_before"  # attribute of given axes: where they were, and what was drawn beside them


@contextlib.contextmanager
def into(axes: Any) -> Iterator[None]:
    """Lets the next figure be made in the room of `axes`; None for one of its own."""
    token = _given.set(axes)
    try:
        yield
    finally:
        _given.reset(token)


def given() -> Any:
    """What `into` was given: axes, an array of them, a figure or a subfigure; None."""
    return _given.get()


class Sheet:
    """The room of axes, or a figure or subfigure: what drawing asks of a figure, in inches from its lower left corner.

    Where the room is too small, the whole figure grows, in width or in height, by as much as makes it large enough;
    a larger room is filled from its upper left corner. All places are shares of the room, so that they stay in it when
    the figure's size is changed later. What an earlier sheet drew beside the same axes goes.

    Attributes:
      axes: those that were drawn on; given ones are used first, in their order.
    """

    def __init__(self, given: Any, width: float, height: float):
        from matplotlib.axes import Axes
        from matplotlib.figure import FigureBase
        from matplotlib.layout_engine import TightLayoutEngine

        found = [given] if isinstance(given, Axes | FigureBase) else _flat(given)
        hosts = {id(one.get_figure()): one.get_figure() for one in found if isinstance(one, Axes)}
        self._host: Any
        if isinstance(given, FigureBase):
            self._host, self._unused = given, list[Any]()
        elif found and all(isinstance(one, Axes) for one in found) and len(hosts) == 1:
            (self._host,), self._unused = hosts.values(), list(found)
        else:
            kinds = ", ".join(sorted({type(one).__name__ for one in found})) or "nothing"
            raise ValueError(
                f"axes: given {kinds}; give matplotlib axes, an array of them in one figure, or a (sub)figure"
            )
        self._root = self._host.get_figure(root=True)
        self._size, self.axes, self._made = (width, height), list[Any](), list[Any]()
        if self._root.get_layout_engine() is not None and self._unused:
            self._root.draw_without_rendering()  # only then are the axes where they will be
            if isinstance(self._root.get_layout_engine(), TightLayoutEngine):
                self._root.set_layout_engine("none")  # it would move them again, away from the words beside them
        for ax in self._unused:
            _forget(ax)
        for ax in self._unused:
            setattr(ax, _BEFORE, (ax.get_position(), self._made))
        room = self._room()
        grow = np.maximum(1.0, np.array(self._size) / (room[2:] * self._host.bbox.size / self._root.dpi))
        self._root.set_size_inches(*(self._root.get_size_inches() * grow))
        share = np.array(self._size) / (self._host.bbox.size / self._root.dpi)
        room = self._room()
        self._corner, self._share = np.array([room[0], room[1] + room[3] - share[1]]), share
        for ax in self._unused:
            ax.set_axis_off()

    def _room(self) -> np.ndarray:
        """Left, bottom, width and height of what was given, as shares of the host."""
        if not self._unused:
            return np.array([0.0, 0.0, 1.0, 1.0])
        boxes = np.array([ax.get_position().extents for ax in self._unused])
        low, high = boxes[:, :2].min(axis=0), boxes[:, 2:].max(axis=0)
        return np.concatenate([low, high - low])

    @property
    def figure(self) -> Any:
        """The figure that all is in."""
        return self._root

    @property
    def dpi_scale_trans(self) -> Any:
        """From inches of the sheet to pixels."""
        from matplotlib.transforms import Affine2D

        scale = self._share / np.array(self._size)
        return Affine2D().scale(*scale).translate(*self._corner) + self._host.transSubfigure

    def get_size_inches(self) -> np.ndarray:
        """Width and height."""
        return np.array(self._size)

    def add_axes(self, rect: Sequence[float], **options: Any) -> Any:
        """The next of the given axes, emptied, or new ones, at a place in shares of the sheet."""
        corner = self._corner + np.array(rect[:2]) * self._share
        place = (*corner, *(np.array(rect[2:]) * self._share))
        if self._unused:
            ax = self._unused.pop(0)
            _renew(ax)
            ax.set_position(place)
            ax.set(**options)
        else:
            ax = self._keep(self._host.add_axes(place, **options))
        self.axes.append(ax)
        return ax

    def _keep(self, artist: Any) -> Any:
        self._made.append(artist)
        return artist

    def text(self, *place_and_words: Any, **options: Any) -> Any:
        """As of a figure."""
        return self._keep(self._host.text(*place_and_words, **options))

    def add_artist(self, artist: Any) -> Any:
        """As of a figure."""
        return self._keep(self._host.add_artist(artist))

    def colorbar(self, *args: Any, **options: Any) -> Any:
        """As of a figure."""
        return self._host.colorbar(*args, **options)


def _forget(ax: Any) -> None:
    """Takes away what an earlier sheet drew beside axes, and puts them where they were before it."""
    place, made = getattr(ax, _BEFORE, (None, []))
    if place is None:
        return
    while made:
        with contextlib.suppress(ValueError, NotImplementedError):  # someone else took it away
            made.pop().remove()
    ax.set_position(place)


def _flat(given: Any) -> list[Any]:
    if isinstance(given, str | bytes) or not hasattr(given, "__iter__"):
        return [given]
    return [one for part in given for one in _flat(part)]


def _renew(ax: Any) -> None:
    """Makes axes as they would be if they were made now: their settings are those of when they were made."""
    import matplotlib

    settings: Any = matplotlib.rcParams
    ax.clear()
    ax.set_axis_on()
    ax.set_facecolor(settings["axes.facecolor"])
    for side, spine in ax.spines.items():
        spine.set_visible(settings[f"axes.spines.{side}"])
        spine.set(color=settings["axes.edgecolor"], linewidth=settings["axes.linewidth"])
