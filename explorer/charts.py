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
    step = (WIDTH - LEFT - 8) / (last - first + 1)
    floor = HEIGHT - FOOT
    parts = [_open(title)]
    for power in range(int(top) + 1):
        y = floor - (floor - HEAD) * log10(10**power + 1) / top
        parts.append(_line(LEFT, y, WIDTH - 8, y, "grid") + _text(LEFT - 5, y + 4, f"{10**power:,}", "end"))
    for place in range(first, last + 1):
        tall = (floor - HEAD) * log10(counts[place] + 1) / top
        x = LEFT + step * (place - first)
        low, high = known[place], known[place + 1]
        said = f"{low:.3g} … {high:.3g}: {counts[place]:,}"
        parts.append(
            Markup(
                '<rect class="{}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"><title>{}</title></rect>'
            ).format("bar-low" if high <= 0 else "bar", x, floor - tall, max(step - 1, 1), tall, said)
        )
    shown = range(first, last + 2, max(1, (last - first + 1) // 7))
    parts += [_text(LEFT + step * (place - first), HEIGHT - 18, _short(known[place]), "middle") for place in shown]
    return Markup("").join([*parts, Markup("</svg>")])


def scatter(
    points: Sequence[tuple[float, float]], line: tuple[float, float] | None, *, x: str, y: str, title: str
) -> Markup:
    """One dot for each token, at (simulated, real), and the least-squares line; dots are drawn to a tenth of a unit."""
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

    dots = "".join(dict.fromkeys("M{:.0f} {:.0f}h0".format(*at(point)) for point in points))
    parts = [_open(title, height)]
    for share in (0.0, 0.5, 1.0):
        value_x, value_y = low_x + share * (high_x - low_x), low_y + share * (high_y - low_y)
        place_x, place_y = at((value_x, value_y))
        parts += [
            _line(LEFT, place_y, WIDTH - 10, place_y, "grid"), _text(LEFT - 5, place_y + 4, _short(value_y), "end"),
            _text(place_x, height - 20, _short(value_x), ("start", "middle", "end")[int(share * 2)]),
        ]  # fmt: skip
    parts.append(Markup('<path class="dots" d="{}"/>').format(dots))
    if line is not None:
        ends = [(value, min(max(line[0] + line[1] * value, low_y), high_y)) for value in (low_x, high_x)]
        parts.append(_line(*at(ends[0]), *at(ends[1]), "fit"))
    parts += [_text(WIDTH / 2, height - 4, x, "middle"), _text(LEFT + 4, HEAD + 8, y, "start")]
    return Markup("").join([*parts, Markup("</svg>")])


def interval(value: float, low: float | None, high: float | None, *, marker: float | None, title: str) -> Markup:
    """A score between -1 and 1 as a dot on its interval, and a mark where the baseline is."""

    def x(share: float) -> float:
        return 4 + 132 * (min(max(share, -1.0), 1.0) + 1) / 2

    parts = [
        Markup(
            '<svg class="interval" viewBox="0 0 140 16" width="140" height="16" role="img"><title>{}</title>'
        ).format(title),
        _line(4, 8, 136, 8, "grid"), _line(x(0), 3, x(0), 13, "grid"),
    ]  # fmt: skip
    if low is not None and high is not None:
        parts.append(_line(x(low), 8, x(high), 8, "range"))
    if marker is not None:
        parts.append(_line(x(marker), 1, x(marker), 15, "mark"))
    parts.append(Markup('<circle class="dot" cx="{:.1f}" cy="8" r="4"/></svg>').format(x(value)))
    return Markup("").join(parts)


def bars(counts: Sequence[int], title: str, labels: Sequence[str]) -> Markup:
    """A small row of bars, the highest as high as there is room; each says its label and count."""
    most, step, height = max([*counts, 1]), 120 / max(len(counts), 1), 28
    parts = [
        Markup('<svg class="bars" viewBox="0 0 120 {0}" width="120" height="{0}" role="img"><title>{1}</title>').format(
            height, title
        )
    ]
    for place, count in enumerate(counts):
        tall = 0.0 if not count else max(1.0, (height - 2) * count / most)
        parts.append(
            Markup(
                '<rect class="bar" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"><title>{}: {}</title></rect>'
            ).format(step * place, height - tall, step - 1, tall, labels[place], f"{count:,}")
        )
    parts.append(_line(0, height - 0.5, 120, height - 0.5, "grid"))
    return Markup("").join([*parts, Markup("</svg>")])


def _open(title: str, height: int = HEIGHT) -> Markup:
    return Markup(
        '<svg class="chart" viewBox="0 0 {0} {1}" role="img" preserveAspectRatio="xMinYMin meet"><title>{2}</title>'
    ).format(WIDTH, height, title)


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> Markup:
    return Markup('<line class="{}" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>').format(kind, x1, y1, x2, y2)


def _text(x: float, y: float, words: str, anchor: str) -> Markup:
    return Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(x, y, anchor, escape(words))


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 1, high + 1)


def _short(value: float) -> str:
    return f"{value:.3g}"
