"""The same place: the ruler and the tuned file by what is in them, and what a reader sees of a difference."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from benchmarks.harness.ruler import sources
from benchmarks.harness.schema import place
from tests import ROOT
from tests import records_factory as made


@pytest.mark.parametrize(
    "edited", ["ruler/clock.py", "ruler/statistics.py", "workload/data/residues.json", "workload/data/proteins.fasta"]
)
def test_the_ruler_is_another_once_anything_of_it_is_edited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, edited: str
) -> None:
    harness = tmp_path / "harness"
    shutil.copytree(ROOT / "benchmarks" / "harness", harness)
    assert sources.ruler_hash() == sources.ruler_hash()
    before = sources.ruler_hash()
    monkeypatch.setattr(sources, "_HARNESS", harness)
    assert sources.ruler_hash() == before, "wherever it lies"
    (harness / "workload" / "data" / "README.md").write_text("words")
    (harness / "__pycache__").mkdir(exist_ok=True)
    (harness / "__pycache__" / "clock.cpython-311.pyc").write_bytes(b"compiled")
    assert sources.ruler_hash() == before
    with (harness / edited).open("a") as f:
        f.write("\n")
    assert sources.ruler_hash() != before


def test_a_new_file_beside_the_ruler_is_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "_HARNESS", tmp_path)
    empty = sources.ruler_hash()
    (tmp_path / "new.py").touch()
    assert sources.ruler_hash() != empty


def test_the_tuned_file_is_the_one_that_the_kernels_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tuned = pytest.importorskip("variants.triton.tuned")
    monkeypatch.delenv(tuned.AUTOTUNE, raising=False)
    monkeypatch.delenv(tuned.TUNED_FILE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    tuned.default_file().parent.mkdir(parents=True)
    tuned.default_file().write_text("default")
    assert tuned.tuned_file() is None
    assert sources.tuned_hash() is None
    monkeypatch.setenv(tuned.AUTOTUNE, "1")
    assert sources.tuned_hash() == sources.file_hash(tuned.tuned_file()) is not None
    named = tmp_path / "named.json"
    named.write_text("named")
    monkeypatch.setenv(tuned.TUNED_FILE, str(named))
    assert sources.tuned_hash() == sources.file_hash(tuned.tuned_file()) == sources.file_hash(named)
    named.write_text("edited")
    assert sources.tuned_hash() == sources.file_hash(named) != sources.file_hash(tuned.default_file())
    named.unlink()
    assert sources.tuned_hash() is None


def test_places_that_look_the_same_are_told_apart_by_what_differs() -> None:
    new = made.provenance(ruler="a" * 16, options={})
    versions = new.versions | {"torch": "2.14.0"}
    changed = [new, new.model_copy(update={"versions": versions}), new.model_copy(update={"ruler": None})]
    places = [place.place_of(one, "cpu") for one in changed]
    shown = place.told_apart(places)
    assert len({one.hardware for one in shown.values()}) == len({one.tag for one in shown.values()}) == 3
    assert "torch 2.14.0" in shown[places[1]].hardware
    assert f"ruler {place.NOT_RECORDED}" in shown[places[2]].hardware
    assert "numpy" not in shown[places[1]].hardware, "what is the same everywhere tells nothing"
    alone = place.told_apart(places[:1])[places[0]]
    assert alone == places[0]
    assert alone.tag == ""
    elsewhere = place.place_of(new.model_copy(update={"machine": "other"}), "cpu")
    assert place.told_apart([places[0], elsewhere])[places[0]] == places[0]
