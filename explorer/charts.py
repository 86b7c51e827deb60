"""Charts: SVG from numbers, drawn without a library, coloured by the page's style sheet.

Each has a title for people who do not see it, and stands beside a table of the same numbers.
"""

from collections.abc import Sequence
from math import log10

from markupsafe import Markup, escape

from pipeline.capture import HISTOGRAM_EDGES

WIDTH, HEIGHT = 560, 190
LEFT, FOOT, HEAD = 46, 34, 8


def edges() -> list[float]:
    """The 100 edges of the histogram's 99 bins, infinite at both ends, units of the neuron."""
    return [float("-inf"), *HISTOGRAM_EDGES, float("inf")]


def histogram(counts: Sequence[int], title: str) -> Markup:
    """Tokens in each bin from the first to the last that holds any; heights are logarithms of counts."""
    known, bins = edges(), [place for place, count in enumerate(counts) if count]
    if not bins:
        return Markup()
    first, last = bins[0], bins[-1]
    top = log10(max(counts) + 1)
    step = (WIDTH - LEFT - 8) // (last - first + 1)
    floor = HEIGHT - FOOT
    parts = [_open(title)]
    for power in range(int(top) + 1):
        y = floor - (floor - HEAD) * log10(10**power + 1) / top
        parts.append(_line(LEFT, y, WIDTH - 8, y, "grid") + _text(LEFT - 5, y + 4, f"{10**power:,}", "end"))
    for place in range(first, last + 1):
        tall = (floor - HEAD) * log10(counts[place] + 1) / top
        x = LEFT + step * (place - first)
        low, high = known[place], known[place + 1]
        said = f"{low:.4g} … {high:.4g}: {counts[place]:,}"
        kind = "bar-low" if high <= 0 else "bar"
        parts.append(_bar(kind, x=x, y=floor - round(tall), width=max(step - 1, 1), height=round(tall), said=said))
    shown = range(first, last + 2, max(1, (last - first + 1) // 7))
    parts += [_text(LEFT + step * (place - first), HEIGHT - 18, _short(known[place]), "middle") for place in shown]
    return _drawn(parts)


def scatter(
    points: Sequence[tuple[float, float]], line: tuple[float, float] | None, *, x: str, y: str, title: str
) -> Markup:
    """One dot for each token, at (simulated, real), and the least-squares line; dots are drawn to two units of 560."""
    if not points:
        return Markup()
    low_x, high_x = _range([point[0] for point in points])
    low_y, high_y = _range([point[1] for point in points])
    height = 300

    def at(value: tuple[float, float]) -> tuple[float, float]:
        return (
            LEFT + (WIDTH - LEFT - 10) * (value[0] - low_x) / (high_x - low_x),
            height - FOOT - (height - FOOT - HEAD) * (value[1] - low_y) / (high_y - low_y),
        )

    # A dot is 5 units wide, so dots that lie closer than 2 units are drawn as one.
    places = {(2 * round(x / 2), 2 * round(y / 2)) for x, y in map(at, points)}
    dots, (at_x, at_y) = "M0 0", (0, 0)
    for dot in sorted(places):
        down = dot[1] - at_y
        dots += f"m{dot[0] - at_x}{down if down < 0 else f' {down}'}h0"
        at_x, at_y = dot
    parts = [_open(title, height)]
    for share in (0.0, 0.5, 1.0):
        value_x, value_y = low_x + share * (high_x - low_x), low_y + share * (high_y - low_y)
        place_x, place_y = at((value_x, value_y))
        parts += [
            _line(LEFT, place_y, WIDTH - 10, place_y, "grid"), _text(LEFT - 5, place_y + 4, _short(value_y), "end"),
            _text(place_x, height - 20, _short(value_x), ("start", "middle", "end")[int(share * 2)]),
        ]  # fmt: skip
    parts.append(f'<path class="dots" d="{dots}"/>')
    if line is not None:
        ends = [(value, min(max(line[0] + line[1] * value, low_y), high_y)) for value in (low_x, high_x)]
        parts.append(_line(*at(ends[0]), *at(ends[1]), "fit"))
    parts += [_text(WIDTH / 2, height - 4, x, "middle"), _text(LEFT + 4, HEAD + 8, y, "start")]
    return _drawn(parts)


def interval(value: float, low: float | None, high: float | None, *, marker: float | None, title: str) -> Markup:
    """A score between -1 and 1 as a dot on its interval, and a mark where the baseline is."""

    def x(share: float) -> float:
        return 4 + 132 * (min(max(share, -1.0), 1.0) + 1) / 2

    parts = [
        f'<svg class="interval" viewBox="0 0 140 16" width="140" height="16" role="img"><title>{escape(title)}</title>',
        _line(4, 8, 136, 8, "grid"), _line(x(0), 3, x(0), 13, "grid"),
    ]  # fmt: skip
    if low is not None and high is not None:
        parts.append(_line(x(low), 8, x(high), 8, "range"))
    if marker is not None:
        parts.append(_line(x(marker), 1, x(marker), 15, "mark"))
    parts.append(f'<circle class="dot" cx="{x(value):.1f}" cy="8" r="4"/>')
    return _drawn(parts)


def bars(counts: Sequence[int], title: str, labels: Sequence[str]) -> Markup:
    """A small row of bars, the highest as high as there is room; each says its label and count."""
    most, step, height = max([*counts, 1]), 120 / max(len(counts), 1), 28
    parts = [
        f'<svg class="bars" viewBox="0 0 120 {height}" width="120" height="{height}" role="img"><title>{escape(title)}</title>'
    ]
    for place, count in enumerate(counts):
        tall = 0.0 if not count else max(1.0, (height - 2) * count / most)
        parts.append(
            _bar(
                "bar", x=step * place, y=height - tall, width=step - 1, height=tall, said=f"{labels[place]}: {count:,}"
            )
        )
    parts.append(_line(0, height - 0.5, 120, height - 0.5, "grid"))
    return _drawn(parts)


def _drawn(parts: Sequence[str]) -> Markup:
    """Pieces of one drawing. Each is of numbers and our own words, or was escaped."""
    return Markup("".join([*parts, "</svg>"]))  # noqa: S704


def _open(title: str, height: int = HEIGHT) -> str:
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {height}" role="img" preserveAspectRatio="xMinYMin meet">'
        f"<title>{escape(title)}</title>"
    )


def _bar(kind: str, *, x: float, y: float, width: float, height: float, said: str) -> str:
    return (
        f"<rect class={kind} x={_plain(x)} y={_plain(y)} width={_plain(width)} height={_plain(height)}>"
        f"<title>{escape(said)}</title></rect>"
    )


def _plain(value: float) -> str:
    """A length to a tenth of a unit, without a needless end."""
    return f"{value:.1f}".removesuffix(".0")


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _text(x: float, y: float, words: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 1, high + 1)


def _short(value: float) -> str:
    return f"{value:.3g}"
