from __future__ import annotations

from pathlib import Path

import pytest

from beampipe_dagster_tests.cli.support import DEMO, SURVEY, Beampipe, World


def changed(tmp_path: Path, old: str, new: str) -> str:
    """The demo survey beside its graph, with one text replaced."""
    text = (DEMO / "wallaby_demo.yaml").read_text()
    assert text.count(old) == 1
    (tmp_path / "wallaby_demo.graph").write_bytes((DEMO / "wallaby_demo.graph").read_bytes())
    path = tmp_path / "changed.yaml"
    path.write_text(text.replace(old, new))
    return str(path)


@pytest.mark.usefixtures("world")
def test_a_survey_goes_to_another_revision_and_back(beampipe: Beampipe, tmp_path: Path) -> None:
    path = changed(tmp_path, "batch_size: 5", "batch_size: 7")
    assert beampipe.json("project", "add", path)["version"] == 2
    assert f"{SURVEY} is at revision 1 now" in beampipe.ok("project", "activate", SURVEY, "1")
    again = beampipe.json("project", "activate", SURVEY, "1")
    assert (again["version"], again["changed"]) == (1, False)
    found = beampipe.json("project", "history", SURVEY)["revisions"]
    assert [(one["version"], one["active"], len(one["activations"])) for one in found] == [
        (2, False, 1),
        (1, True, 2),
    ]
    assert "(2 times)" in " ".join(beampipe.ok("project", "history", SURVEY).split())
    beampipe.refused("project", "activate", SURVEY, "9", code="revision_not_found")
    beampipe.refused("project", "history", "nobody", code="project_not_found")


@pytest.mark.usefixtures("world")
def test_two_revisions_and_a_file_are_compared(beampipe: Beampipe, tmp_path: Path) -> None:
    path = changed(tmp_path, "        - filesize\n", "")
    for args in (("project", "diff", path), ("project", "diff", SURVEY, "1", "2")):
        if args[2] == SURVEY:
            assert beampipe.json("project", "add", path)["warnings"][0]["code"] == "signature_changed"
        text = beampipe.ok(*args)
        assert "removed filesize" in text
        assert "-        - filesize" in text
        assert [one["code"] for one in beampipe.json(*args)["changes"]] == ["signature_changed"]
    assert "- filesize" not in beampipe.ok("project", "diff", SURVEY, "1", "--no-text")
    assert "They mean the same." in beampipe.ok("project", "diff", SURVEY, "1", "1")
    beampipe.refused("project", "diff", SURVEY, code="usage")
    beampipe.refused("project", "diff", path, "1", code="usage")


def test_the_impact_of_a_file_names_the_sources_that_would_run(
    beampipe: Beampipe, world: World, tmp_path: Path
) -> None:
    world.looked_at("A")
    world.looked_at("B", ready=False)
    path = changed(tmp_path, "        - filesize\n", "        - dataset_id\n")
    found = beampipe.json("project", "impact", path)
    assert (found["sources"], found["compared"]) == (3, 2)
    assert (found["changed"], found["would_run"]) == (2, 1)
    assert found["blocked"] == {"discovery_flags_failed": 1}
    text = beampipe.ok("project", "impact", path)
    assert "2 of 2 sources with data would get a new signature; 1 would run." in text
    assert "no: discovery_flags_failed" in text
    beampipe.refused("project", "impact", SURVEY, code="usage")
    beampipe.refused("project", "impact", SURVEY, "9", code="revision_not_found")


@pytest.mark.usefixtures("world")
def test_a_survey_is_explained_by_its_name_or_from_its_file(beampipe: Beampipe) -> None:
    text = beampipe.ok("project", "explain", SURVEY, "--source", "HIPASSJ0001-02")
    assert "WHERE HIPASS = 'J0001-02'" in text
    assert "a DALiuGE island manager at" in text
    titles = [
        one["title"]
        for one in beampipe.json("project", "explain", str(DEMO / "wallaby_demo.yaml"))["sections"]
    ]
    assert titles[0] == "Archives"
    beampipe.refused("project", "explain", SURVEY, "--revision", "4", code="revision_not_found")


@pytest.mark.usefixtures("world")
def test_patches_that_do_not_fit_are_refused_and_odd_ones_are_shown(
    beampipe: Beampipe, tmp_path: Path
) -> None:
    wrong = changed(
        tmp_path, "equals: Scatter/GenericScatterApp/Beam", "equals: Scatter/GenericScatterApp/Beem"
    )
    error = beampipe.refused("project", "add", wrong, code="graph_patch_node_not_found")
    assert "Scatter/GenericScatterApp/Beam" in error
    odd = changed(tmp_path, 'num_of_copies: "$count(sbids[].datasets[])"', 'num_of_copies: "3"')
    text = beampipe.ok("project", "add", odd)
    assert "warning[graph_patch_type_mismatch]" in text
