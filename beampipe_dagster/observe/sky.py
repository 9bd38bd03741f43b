"""The sky as a small picture: a survey's sources in a Hammer-Aitoff projection, coloured by what they are doing.

The picture is SVG text without scripts, fonts or references, so that it can be an image in any page. Right
ascension grows to the left, as on all maps of the sky, and 12 h is in the middle.
"""

from __future__ import annotations

import math
from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from beampipe_dagster.sources.status import WORDS, Word

CELL_DEG: Final = 5
"""Width and height of a cell of the grid, in degrees."""

COLOURS: Final[Mapping[str, str]] = {
    Word.UNCHECKED: "#9aa5b1",
    Word.DISCOVERING: "#56b4e9",
    Word.DISCOVERY_FAILED: "#d55e00",
    Word.QUARANTINED: "#7f1d1d",
    Word.NO_DATASETS: "#c3cad2",
    Word.VANISHING: "#cc79a7",
    Word.PENDING: "#e8b500",
    Word.HELD: "#a05a00",
    Word.RUNNING: "#0072b2",
    Word.COMPLETED: "#009e73",
    Word.FAILED: "#d62728",
    Word.CANCELLED: "#6b4c9a",
    Word.DISABLED: "#dde1e6",
    Word.IDLE: "#7fb8a4",
}
"""A colour for each word; the common ones are told apart also by people who see few colours."""

_URGENT: Final = (Word.FAILED, Word.QUARANTINED, Word.DISCOVERY_FAILED, Word.VANISHING, Word.HELD)
"""Drawn last, so that no crowd of good sources covers them."""

_WIDTH, _HEIGHT, _LEGEND = 720, 360, 190
_MARGIN = 14
_CROWD: Final = 400
"""With more points than this they are drawn smaller."""


@dataclass(frozen=True, slots=True)
class Place:
    """A source in the sky: right ascension and declination in degrees (ICRS), and its word."""

    ra_deg: float
    dec_deg: float
    word: str


@dataclass(frozen=True, slots=True)
class Cell:
    """Sources of one word in a cell; ``ra`` counts cells from 0 h, ``dec`` from the south pole."""

    ra: int
    dec: int
    word: str
    number: int


def project(ra_deg: float, dec_deg: float) -> tuple[float, float]:
    """A place in the picture, in pixels from its upper left corner.

    The Hammer-Aitoff projection has equal areas (Calabretta and Greisen 2002, AIT): a denser spot is denser.
    """
    longitude = math.radians((ra_deg % 360.0) - 180.0)
    latitude = math.radians(max(-90.0, min(90.0, dec_deg)))
    scale = math.sqrt(1.0 + math.cos(latitude) * math.cos(longitude / 2.0))
    x = 2.0 * math.cos(latitude) * math.sin(longitude / 2.0) / scale
    y = math.sin(latitude) / scale
    half_width, half_height = _WIDTH / 2.0, _HEIGHT / 2.0
    return half_width - x / 2.0 * (half_width - _MARGIN), half_height - y * (half_height - _MARGIN)


def sky_svg(words: Mapping[str, int], places: Sequence[Place], cells: Sequence[Cell]) -> str:
    """The picture as SVG.

    Parameters
    ----------
    words
        Numbers for the legend.
    places
        Sources to be drawn one by one. Without any, ``cells`` are drawn.
    cells
        The grid: in each cell the word of most of its sources, the stronger the more there are.
    """
    drawn = _points(places) if places else _grid(cells)
    return "".join(
        (
            (
                f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH + _LEGEND}" height="{_HEIGHT}" '
                f'viewBox="0 0 {_WIDTH + _LEGEND} {_HEIGHT}" font-family="sans-serif" font-size="12">'
            ),
            f'<rect width="{_WIDTH + _LEGEND}" height="{_HEIGHT}" fill="#ffffff"/>',
            *_graticule(),
            *drawn,
            *_labels(),
            *_legend(words),
            "</svg>",
        )
    )


def as_image(svg: str, title: str) -> str:
    """The picture as Markdown, complete in itself."""
    data = b64encode(svg.encode()).decode("ascii")
    return f"![{title}](data:image/svg+xml;base64,{data})"


def _path(line: Iterable[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:.0f} {y:.0f}" for x, y in line)


def _graticule() -> list[str]:
    # 359.999 degrees, not 360: that would be the other edge.
    edge = [project(0.0, dec) for dec in range(-90, 91, 5)]
    edge += [project(359.999, dec) for dec in range(90, -91, -5)]
    lines = [_path(project(ra, dec) for dec in range(-90, 91, 10)) for ra in range(30, 360, 30)]
    lines += [
        _path(project(min(ra, 359.999), dec) for ra in range(0, 361, 10)) for dec in (-60, -30, 0, 30, 60)
    ]
    return [
        f'<path d="{_path(edge)}Z" fill="#f6f8fa" stroke="#8794a1"/>',
        f'<path d="{"".join(lines)}" fill="none" stroke="#d5dbe1" stroke-width="0.7"/>',
    ]


def _labels() -> list[str]:
    hours = [(f"{ra // 15}h", *project(ra, 0.0)) for ra in range(60, 360, 60)]
    degrees = [(f"{dec:+d}°", *project(180.0, dec)) for dec in (-60, -30, 30, 60)]
    return [
        f'<text x="{x + 3:.0f}" y="{y - 3:.0f}" fill="#6b7785" font-size="10">{words}</text>'
        for words, x, y in hours + degrees
    ]


def _points(places: Sequence[Place]) -> list[str]:
    radius = 2.2 if len(places) > _CROWD else 4.0
    by_word: dict[str, list[str]] = {}
    for place in places:
        x, y = project(place.ra_deg, place.dec_deg)
        # A line of no length with round ends is the shortest way to write a disc.
        by_word.setdefault(place.word, []).append(f"M{x:.1f} {y:.1f}h0")
    order = [word for word in WORDS if word not in _URGENT] + list(reversed(_URGENT))
    return [
        f'<path d="{"".join(by_word[word])}" stroke="{COLOURS[word]}" stroke-width="{radius * 2}" '
        'stroke-linecap="round" stroke-opacity="0.85" fill="none"/>'
        for word in order
        if word in by_word
    ]


def _grid(cells: Sequence[Cell]) -> list[str]:
    by_place: dict[tuple[int, int], list[Cell]] = {}
    for cell in cells:
        by_place.setdefault((cell.ra, cell.dec), []).append(cell)
    if not by_place:
        return []
    most = max(sum(cell.number for cell in group) for group in by_place.values())
    return [_patch(place, group, most) for place, group in sorted(by_place.items())]


def _patch(place: tuple[int, int], group: Sequence[Cell], most: int) -> str:
    west, south = place[0] * CELL_DEG, place[1] * CELL_DEG - 90
    east, north = min(west + CELL_DEG, 359.999), min(south + CELL_DEG, 90)
    corners = [project(ra, dec) for ra, dec in ((west, south), (east, south), (east, north), (west, north))]
    main = max(group, key=lambda cell: (cell.number, cell.word))
    number = sum(cell.number for cell in group)
    strength = 0.25 + 0.7 * math.log1p(number) / math.log1p(most)
    return f'<path d="{_path(corners)}Z" fill="{COLOURS[main.word]}" fill-opacity="{strength:.2f}"/>'


def _legend(words: Mapping[str, int]) -> list[str]:
    shown = [(word, words[word]) for word in WORDS if words.get(word)]
    out = []
    for place, (word, number) in enumerate(shown):
        y = 30 + 22 * place
        out.append(f'<circle cx="{_WIDTH + 18}" cy="{y - 4}" r="6" fill="{COLOURS[word]}"/>')
        out.append(
            f'<text x="{_WIDTH + 32}" y="{y}" fill="#30363d">{word.replace("_", " ")}: {number:,}</text>'
        )
    return out
