"""Plots: SVG text from numbers, drawn without a library."""

from collections.abc import Mapping, Sequence
from html import escape


def bars(title: str, groups: Mapping[str, Sequence[float | None]], labels: Sequence[str], *, top: float = 1.0) -> str:
    """A bar chart: one cluster for each label, one bar for each group in it, from 0 to `top`. None draws no bar."""
    colours = ("#2f6f9f", "#d98532", "#5a9e5a", "#8c5ca8")
    width, height, left, foot = 720, 260, 44, 34
    cluster = (width - left - 10) / max(len(labels), 1)
    bar = cluster * 0.8 / max(len(groups), 1)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="white"/><text x="{left}" y="18" font-size="14">{escape(title)}</text>',
    ]

    def y(value: float) -> float:
        return height - foot - (height - foot - 44) * min(max(value / top, 0.0), 1.0)

    for step in range(6):
        tick = top * step / 5
        parts.append(
            f'<line x1="{left}" x2="{width - 10}" y1="{y(tick):.1f}" y2="{y(tick):.1f}" stroke="#ddd"/>'
            f'<text x="{left - 6}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:.1f}</text>'
        )
    for index, (name, values) in enumerate(groups.items()):
        colour = colours[index % len(colours)]
        start = left + 180 * index
        parts.append(
            f'<rect x="{start}" y="26" width="10" height="10" fill="{colour}"/><text x="{start + 14}" y="35">{escape(name)}</text>'
        )
        for place, value in enumerate(values):
            if value is not None:
                at = left + cluster * place + cluster * 0.1 + bar * index
                parts.append(
                    f'<rect x="{at:.1f}" y="{y(value):.1f}" width="{bar:.1f}" height="{y(0) - y(value):.1f}" fill="{colour}">'
                    f"<title>{escape(name)}, {escape(labels[place])}: {value:.3f}</title></rect>"
                )
    for place, label in enumerate(labels):
        x = left + cluster * (place + 0.5)
        parts.append(f'<text x="{x:.1f}" y="{height - 14}" text-anchor="middle">{escape(label)}</text>')
    return "".join([*parts, "</svg>"])
