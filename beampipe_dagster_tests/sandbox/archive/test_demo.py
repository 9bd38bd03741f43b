from __future__ import annotations

import math
import warnings

import pytest

from beampipe_dagster.sandbox.archive.demo import (
    load_catalogue,
    load_demo,
    position_from_name,
    systemic_velocity,
)


def test_the_catalogue_holds_a_thousand_sources_of_different_names() -> None:
    names = [source.hipass for source in load_catalogue()]
    assert len(names) == 1_000
    assert len(set(names)) == 1_000


def test_every_catalogue_position_is_near_the_one_in_its_name() -> None:
    for source in load_catalogue():
        coarse = position_from_name(source.hipass)
        assert coarse is not None
        # Names truncate a position that was refined later: within a degree or so, and the sign is right.
        apart = (source.ra_deg - coarse[0] + 180) % 360 - 180
        assert abs(apart) * math.cos(math.radians(source.dec_deg)) < 1.05, source.hipass
        assert abs(source.dec_deg - coarse[1]) < 1.05, source.hipass


def test_the_systemic_velocity_undoes_the_local_group_correction() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import numpy as np  # noqa: PLC0415  # astropy's import is slow
        from astropy.coordinates import SkyCoord  # noqa: PLC0415
    sources = load_catalogue()
    sky = SkyCoord([s.ra_deg for s in sources], [s.dec_deg for s in sources], unit="deg").galactic
    expected = np.array([s.vlg_kms for s in sources]) - 300 * np.sin(sky.l.rad) * np.cos(sky.b.rad)
    assert np.abs(expected - [s.rv_kms for s in sources]).max() < 0.06


def test_a_galaxys_velocity_is_the_published_one() -> None:
    # NGC 5068: 668 km/s heliocentric, 499 km/s in the Local Group's frame.
    assert systemic_velocity(199.74167, -21.03639, 499) == pytest.approx(668, abs=1)


def test_the_demo_has_every_outcome_that_it_shows() -> None:
    demo = load_demo()
    outcomes = [source.expect for source in demo.sources]
    assert demo.survey == "wallaby_demo"
    assert len(outcomes) == 9
    assert sorted(outcomes) == sorted(["completed"] * 6 + ["no_datasets", "held", "failed"])
    by_outcome = {source.expect: source for source in demo.sources}
    assert by_outcome["no_datasets"].observations == ()
    assert not by_outcome["held"].in_hicat
    assert [o.quality for o in by_outcome["failed"].observations] == ["REJECTED"]
    assert any(len(source.observations) == 2 for source in demo.sources)


def test_demo_positions_and_velocities_are_the_catalogues() -> None:
    catalogue = {f"HIPASS{source.hipass}": source for source in load_catalogue()}
    for source in load_demo().sources:
        known = catalogue.get(source.source_identifier)
        assert source.in_hicat == (known is not None)
        if known is not None:
            assert (source.ra_deg, source.dec_deg) == (known.ra_deg, known.dec_deg)
            assert source.rv_kms == known.rv_kms


def test_the_background_and_the_demo_share_no_source() -> None:
    demo = load_demo()
    names = {source.source_identifier for source in demo.sources}
    assert len(set(demo.background)) == 100
    assert not names & set(demo.background)
