"""A file of sparse activations that delphi cached (safetensors), read in pieces, and the tokenizer that its ids are of."""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from pipeline.delphi_latents import Cached
from pipeline.errors import FormError, SettingsError

PIECE = 2_000_000
"""Activations read at a time."""


class LatentsFile(Cached):
    """One file.

    Raises:
        FormError: it is no safetensors file, or lacks one of its three arrays, or they are of other shapes.
    """

    def __init__(self, path: Path) -> None:
        self._file = _opened(path)
        names = set(self._file.keys())
        if missing := [name for name in ("locations", "activations", "tokens") if name not in names]:
            raise FormError(f"it lacks {', '.join(missing)}")
        shapes = {
            name: tuple(self._file.get_slice(name).get_shape()) for name in ("locations", "activations", "tokens")
        }
        self._count = shapes["activations"][0] if shapes["activations"] else 0
        if (
            shapes["activations"] != (self._count,)
            or shapes["locations"] != (self._count, 3)
            or len(shapes["tokens"]) != 2
        ):
            raise FormError(f"its arrays must be [n, 3], [n] and [windows, tokens], not {list(shapes.values())}")
        kinds = {name: str(self._file.get_slice(name).get_dtype()) for name in shapes}
        if not kinds["activations"].startswith("F") or not all(
            kinds[name][0] in "UI" for name in ("locations", "tokens")
        ):
            raise FormError(f"its numbers are of other kinds: {kinds}")
        self.windows, self.length = shapes["tokens"]

    def pieces(self) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
        """Locations and activations in the file's order."""
        locations, activations = (self._file.get_slice(name) for name in ("locations", "activations"))
        for start in range(0, self._count, PIECE):
            end = min(start + PIECE, self._count)
            yield locations[start:end], activations[start:end]

    def tokens(self, window: int) -> Sequence[int]:
        """The token ids of one window."""
        found: list[int] = self._file.get_slice("tokens")[window : window + 1][0].tolist()
        return found


def _opened(path: Path) -> Any:
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(path, framework="numpy")
    except SafetensorError as error:
        raise FormError(f"no safetensors: {error}") from None


@lru_cache(maxsize=1)
def vocabulary(folder: str) -> list[str] | None:
    """Each token as text, as delphi shows it; None unless there is a `tokenizer.json` in the folder.

    Raises:
        SettingsError: it cannot be read.
    """
    from tokenizers import Tokenizer

    path = Path(folder).expanduser() / "tokenizer.json"
    if not path.is_file():
        return None
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # noqa: BLE001 (the library raises bare ones)
        raise SettingsError(f"{path} is no tokenizer that can be read: {error}") from None
    size = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1
    return [tokenizer.decode([token], skip_special_tokens=False) for token in range(size)]
