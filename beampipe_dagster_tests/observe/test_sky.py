"""The sky plot: places where they belong, bounded in size, and text that any page can show."""

from __future__ import annotations

from base64 import b64decode
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beampipe_dagster.observe.sky import COLOURS, Cell, Place, as_image, project, sky_svg
from beampipe_dagster.sources.status import WORDS, Word

RA = st.floats(0.0, 359.99)
DEC = st.floats(-90.0, 90.0)


@given(RA, DEC)
def test_every_place_is_inside_the_map(ra: float, dec: float) -> None:
    x, y = project(ra, dec)
    assert ((x - 360.0) / 346.0) ** 2 + ((y - 180.0) / 166.0) ** 2 <= 1.0 + 1e-9


def test_the_middle_is_12_h_and_right_ascension_grows_to_the_left() -> None:
    assert project(180.0, 0.0) == pytest.approx((360.0, 180.0))
    assert project(190.0, 0.0)[0] < 360.0 < project(170.0, 0.0)[0]
    assert project(180.0, 30.0)[1] < 180.0


def test_equal_areas_stay_equal() -> None:
    def area(ra: float, dec: float) -> float:
        """A tiny patch of the same size on the sphere, by its parallelogram in the picture."""
        (x0, y0), (x1, y1), (x2, y2) = project(ra, dec), project(ra + 0.01, dec), project(ra, dec + 0.01)
        return abs((x1 - x0) * (y2 - y0) - (x2 - x0) * (y1 - y0))

    from_equator = area(180.0, 0.0)
    # cos(60 degrees) is one half: the patch is half as wide on the sphere.
    assert area(90.0, 60.0) == pytest.approx(from_equator / 2.0, rel=1e-3)


def test_every_word_has_a_colour_of_its_own() -> None:
    assert set(COLOURS) == set(WORDS)
    assert len(set(COLOURS.values())) == len(WORDS)


def test_a_picture_of_points_names_the_words_with_their_numbers() -> None:
    svg = sky_svg({Word.FAILED: 1, Word.COMPLETED: 1200}, [Place(10.0, -30.0, Word.FAILED)], [])
    root = ET.fromstring(svg)  # noqa: S314  # our own text
    texts = {element.text for element in root.iter("{http://www.w3.org/2000/svg}text")}
    assert {"failed: 1", "completed: 1,200"} <= texts
    assert COLOURS[Word.FAILED] in svg


def test_failed_sources_are_drawn_over_completed_ones() -> None:
    places = [Place(10.0, 0.0, Word.FAILED), Place(10.0, 0.0, Word.COMPLETED)]
    svg = sky_svg({}, places, [])
    assert svg.index(COLOURS[Word.COMPLETED]) < svg.index(COLOURS[Word.FAILED])


def test_a_cell_has_the_colour_of_most_of_its_sources() -> None:
    svg = sky_svg({}, [], [Cell(3, 10, Word.PENDING, 2), Cell(3, 10, Word.COMPLETED, 900)])
    assert COLOURS[Word.COMPLETED] in svg
    assert COLOURS[Word.PENDING] not in svg


def test_the_largest_pictures_are_bounded() -> None:
    points = [Place(index * 0.072, index * 0.036 - 90.0, WORDS[index % 14]) for index in range(5000)]
    cells = [Cell(ra, dec, Word.COMPLETED, 40) for ra in range(72) for dec in range(36)]
    sizes = len(as_image(sky_svg({}, points, []), "sky")), len(as_image(sky_svg({}, [], cells), "sky"))
    assert max(sizes) < 400_000


def test_an_image_is_complete_in_itself() -> None:
    words = as_image(sky_svg({}, [], []), "a sky")
    head, _, data = words.removesuffix(")").partition("base64,")
    assert head == "![a sky](data:image/svg+xml;"
    assert b64decode(data).startswith(b"<svg ")
