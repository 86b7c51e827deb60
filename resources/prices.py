"""Prices: what a language model charges for a token, where that is known.

They come from a dated file in the package, and before it from one of the user's. What is in neither is unknown, which
is not the same as free.
"""

import datetime as dt
import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.errors import SettingsError

MILLION = 1_000_000


@dataclass(frozen=True)
class Price:
    """US dollars for a million tokens."""

    input: float
    cached_input: float
    """Of tokens that the provider had read before."""
    output: float

    def cost(self, *, prompt: int, cached: int = 0, completion: int = 0) -> float:
        """US dollars for so many tokens, `cached` of the `prompt` ones included in these."""
        fresh = max(prompt - cached, 0)
        return (fresh * self.input + min(cached, prompt) * self.cached_input + completion * self.output) / MILLION


class _Line(BaseModel):
    model_config = ConfigDict(extra="forbid")

    model: str = Field(min_length=1)
    input: float = Field(ge=0, allow_inf_nan=False)
    output: float = Field(ge=0, allow_inf_nan=False)
    cached_input: float | None = Field(None, ge=0, allow_inf_nan=False)
    batch: float | None = Field(None, ge=0, allow_inf_nan=False)
    endpoint: str | None = None


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")

    price: list[_Line]
    as_of: dt.date | None = None
    source: str | None = None


@dataclass(frozen=True)
class Prices:
    """The lines of all files, those that go before others first."""

    lines: Sequence[_Line]

    def of(self, model: str, *, endpoint: str, batch: bool = False) -> Price | None:
        """The price of a model at an endpoint, by itself or in a batch; None if it is not known.

        A dated version, such as `gpt-4o-mini-2024-07-18`, costs what its name without the date does unless it has a
        line of its own.
        """
        undated = re.sub(r"-\d{4}-\d{2}-\d{2}$", "", model)
        for name in dict.fromkeys((model, undated)):
            for line in self.lines:
                if line.model == name and (line.endpoint or endpoint).rstrip("/") == endpoint.rstrip("/"):
                    if not batch:
                        cached = line.input if line.cached_input is None else line.cached_input
                        return Price(line.input, cached, line.output)
                    if line.batch is None:
                        return None
                    # A batch has no discount for what was read before.
                    return Price(line.batch * line.input, line.batch * line.input, line.batch * line.output)
        return None


def open_prices(path: Path | None = None) -> Prices:
    """The prices in the package, and those of a file that goes before them.

    Raises:
        SettingsError: the file cannot be read, or is not of this form.
    """
    ours = tomllib.loads(resources.files("resources").joinpath("prices.toml").read_text(encoding="utf-8"))
    return Prices([*(_lines(path) if path is not None else []), *_File.model_validate(ours).price])


def _lines(path: Path) -> list[_Line]:
    try:
        return _File.model_validate(tomllib.loads(path.read_text(encoding="utf-8"))).price
    except OSError as error:
        raise SettingsError(f"the price file {path} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"the price file {path} is not valid TOML: {error}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise SettingsError(
            f"the price file {path}, `{where}`: {first['msg'][0].lower()}{first['msg'][1:]}. A line has `model`, "
            "`input` and `output` in US dollars for a million tokens, and may have `cached_input`, `batch` (what a batch costs, as a share of these) and `endpoint`."
        ) from None
