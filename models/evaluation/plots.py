"""Charts as SVG text, drawn without a plotting library so that an evaluation needs nothing that is not installed."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from typing import Literal

Points = Sequence[tuple[float, float]]
_WIDTH, _HEIGHT = 300, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 48, 10, 26, 38
# Okabe and Ito's colours, which the colour-blind tell apart.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One set of points of a chart; `name` stands in the legend where there is more than one."""

    points: Points
    name: str = ""
    style: Literal["line", "steps", "dots"] = "line"


def chart(
    title: str,
    layers: Sequence[Layer],
    *,
    x_label: str,
    y_label: str,
    x_range: tuple[float, float],
    y_range: tuple[float, float],
    diagonal: bool = False,
    levels: Sequence[float] = (),
) -> str:
    """An SVG element. `levels` are dashed horizontal lines; `diagonal` draws y = x over the shown square."""

    def at(x: float, y: float) -> tuple[float, float]:
        across = (x - x_range[0]) / (x_range[1] - x_range[0])
        up = (y - y_range[0]) / (y_range[1] - y_range[0])
        return (
            round(_LEFT + across * (_WIDTH - _LEFT - _RIGHT), 1),
            round(_HEIGHT - _BOTTOM - up * (_HEIGHT - _TOP - _BOTTOM), 1),
        )

    parts = [
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" height="{_HEIGHT}" role="img" '
        f'aria-label="{escape(title)}" font-family="sans-serif" font-size="10">',
        f'<text x="{_LEFT}" y="15" font-size="12" font-weight="bold">{escape(title)}</text>',
    ]
    parts += _axes(at, x_range, y_range, x_label, y_label)
    if diagonal:
        low, high = max(x_range[0], y_range[0]), min(x_range[1], y_range[1])
        parts.append(_path((at(low, low), at(high, high)), "#999", dashed=True))
    parts += [_path((at(x_range[0], level), at(x_range[1], level)), "#555", dashed=True) for level in levels]
    for number, layer in enumerate(layers):
        colour = _COLOURS[number % len(_COLOURS)]
        parts += _layer(layer, colour, at)
        if len(layers) > 1:
            y = _HEIGHT - _BOTTOM - 6 - 12 * (len(layers) - 1 - number)
            name = (
                f'<text x="{_WIDTH - _RIGHT - 4}" y="{y}" text-anchor="end" fill="{colour}">{escape(layer.name)}</text>'
            )
            parts.append(name)
    return "".join([*parts, "</svg>"])


def spread(values: Sequence[float]) -> tuple[float, float]:
    """A range a little wider than the values."""
    low, high = min(values), max(values)
    margin = 0.06 * (high - low) or max(abs(high) * 0.1, 0.5)
    return low - margin, high + margin


def _axes(at, x_range, y_range, x_label, y_label) -> list[str]:  # type: ignore[no-untyped-def]
    left, bottom = at(x_range[0], y_range[0])
    right, top = at(x_range[1], y_range[1])
    parts = [f'<path d="M{left} {top}V{bottom}H{right}" fill="none" stroke="#333"/>']
    for step in range(5):
        x = x_range[0] + step / 4 * (x_range[1] - x_range[0])
        y = y_range[0] + step / 4 * (y_range[1] - y_range[0])
        parts.append(f'<text x="{at(x, y)[0]}" y="{bottom + 13}" text-anchor="middle">{_tick(x)}</text>')
        parts.append(f'<text x="{left - 5}" y="{at(x, y)[1] + 3}" text-anchor="end">{_tick(y)}</text>')
    middle = (top + bottom) / 2
    parts.append(f'<text x="{(left + right) / 2}" y="{_HEIGHT - 6}" text-anchor="middle">{escape(x_label)}</text>')
    parts.append(
        f'<text x="11" y="{middle}" text-anchor="middle" transform="rotate(-90 11 {middle})">{escape(y_label)}</text>'
    )
    return parts


def _tick(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _layer(layer: Layer, colour: str, at) -> list[str]:  # type: ignore[no-untyped-def]
    places = [at(x, y) for x, y in layer.points]
    if layer.style == "dots":
        return [f'<circle cx="{x}" cy="{y}" r="3" fill="{colour}" fill-opacity="0.6"/>' for x, y in places]
    if layer.style == "steps":
        places = [place for a, b in pairwise(places) for place in (a, (b[0], a[1]))] + places[-1:]
    return [_path(places, colour)] if places else []


def _path(places: Sequence[tuple[float, float]], colour: str, *, dashed: bool = False) -> str:
    way = "L".join(f"{x} {y}" for x, y in places)
    dash = ' stroke-dasharray="4 3"' if dashed else ""
    return f'<path d="M{way}" fill="none" stroke="{colour}" stroke-width="1.6"{dash}/>'
