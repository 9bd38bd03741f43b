"""What the sandbox archive is filled with: a real catalogue and the demo survey.

The catalogue is the HIPASS Bright Galaxy Catalogue (Koribalski et al. 2004, AJ 128, 16; VizieR
J/AJ/128/16). It gives velocities in the frame of the Local Group; :func:`systemic_velocity` undoes that.
"""

from __future__ import annotations

import functools
import json
import math
import re
from dataclasses import dataclass
from importlib import resources
from typing import Any, Literal

from beampipe_dagster.errors import ConfigError

Expectation = Literal["completed", "no_datasets", "held", "failed"]

# J2000 equatorial to galactic rotation: rows are the galactic axes (ESA SP-1200, vol. 1, eq. 1.5.11).
_TO_GALACTIC = (
    (-0.0548755604, -0.8734370902, -0.4838350155),
    (0.4941094279, -0.4448296300, 0.7469822445),
    (-0.8676661490, -0.1980763734, 0.4559837762),
)
_LOCAL_GROUP_KMS = 300.0


@dataclass(frozen=True, slots=True)
class CatalogueSource:
    """A row of the Bright Galaxy Catalogue: degrees (J2000) and km/s."""

    hipass: str
    ra_deg: float
    dec_deg: float
    identification: str
    w50_kms: int
    vlg_kms: int

    @property
    def rv_kms(self) -> float:
        """Systemic velocity, km/s to one decimal."""
        return systemic_velocity(self.ra_deg, self.dec_deg, self.vlg_kms)


@dataclass(frozen=True, slots=True)
class DemoObservation:
    """One scheduling block of a source: beams, quality and, when fixed, its end (MJD, days)."""

    sbid: int
    beams: int
    quality: str
    t_max: float | None = None


@dataclass(frozen=True, slots=True)
class DemoSource:
    """A source of the demo survey, what the archive holds of it, and what must become of it."""

    source_identifier: str
    ra_deg: float
    dec_deg: float
    rv_kms: float | None
    in_hicat: bool
    observations: tuple[DemoObservation, ...]
    expect: Expectation
    note: str


@dataclass(frozen=True, slots=True)
class DemoSurvey:
    """The demo survey, and the other sources that only fill the archive."""

    survey: str
    sources: tuple[DemoSource, ...]
    background: tuple[str, ...]
    background_first_sbid: int
    background_beams: int


def systemic_velocity(ra_deg: float, dec_deg: float, vlg_kms: float) -> float:
    """The velocity before the Local Group correction ``VLG = v + 300 sin(l) cos(b)``.

    Parameters
    ----------
    ra_deg, dec_deg
        Position, J2000, degrees.
    vlg_kms
        Velocity in the Local Group's frame, km/s.

    Returns
    -------
    float
        km/s, to one decimal.
    """
    ra, dec = math.radians(ra_deg), math.radians(dec_deg)
    unit = (math.cos(dec) * math.cos(ra), math.cos(dec) * math.sin(ra), math.sin(dec))
    # sin(l) cos(b) is the unit vector's component along the galactic y axis.
    sin_l_cos_b = sum(a * b for a, b in zip(_TO_GALACTIC[1], unit, strict=True))
    return round(vlg_kms - _LOCAL_GROUP_KMS * sin_l_cos_b, 1)


def position_from_name(source_identifier: str) -> tuple[float, float] | None:
    """The coarse position in a name of the form ``...Jhhmm-dd``, in degrees; None for other names."""
    found = re.search(r"J(\d\d)(\d\d)([-+])(\d\d)", source_identifier)
    if found is None:
        return None
    hours, minutes, sign, degrees = found.groups()
    return (int(hours) + int(minutes) / 60) * 15.0, int(sign + degrees) * 1.0


@functools.cache
def load_catalogue() -> tuple[CatalogueSource, ...]:
    """The 1,000 sources of the HIPASS Bright Galaxy Catalogue, in the catalogue's order."""
    return tuple(CatalogueSource(*row) for row in _read("hipass_bgc.json")["rows"])


@functools.cache
def load_demo() -> DemoSurvey:
    """The demo survey that ships with the package.

    Raises
    ------
    ConfigError
        ``invalid_demo_data`` when the package's own data file is damaged.
    """
    data = _read("demo_survey.json")
    try:
        background = data["background"]
        return DemoSurvey(
            survey=data["survey"],
            sources=tuple(_source(item) for item in data["sources"]),
            background=tuple(background["source_identifiers"]),
            background_first_sbid=background["first_sbid"],
            background_beams=background["beams"],
        )
    except (KeyError, TypeError) as error:
        raise _damaged("demo_survey.json", error) from error


def _source(item: dict[str, Any]) -> DemoSource:
    observations = tuple(DemoObservation(**each) for each in item["observations"])
    return DemoSource(**{**item, "observations": observations})


def _read(name: str) -> dict[str, Any]:
    try:
        text = resources.files("beampipe_dagster.sandbox").joinpath("data", name).read_text("utf-8")
        data = json.loads(text)
        if not isinstance(data, dict):
            raise TypeError("not a JSON object")  # noqa: TRY301  # one translation for all damage
    except (OSError, ValueError, TypeError) as error:
        raise _damaged(name, error) from error
    return data


def _damaged(name: str, error: Exception) -> ConfigError:
    return ConfigError(
        f"sandbox/data/{name} cannot be read: {error}",
        code="invalid_demo_data",
        hint="The file is part of the package: install the package again.",
    )
