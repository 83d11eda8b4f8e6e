"""Reports in a real browser: no errors, nothing too wide on a phone, light and dark, and on paper."""

import pytest
from browser import layouts, open_page
from report_cases import binary, classification, regression, several_labels

from parallelcnn.report.training_report import training_report

pytestmark = pytest.mark.browser

NAMES = ("<script>alert(1)</script>", "a name of several words", "n" * 60, "caf\u00e9")
RUNS = {
    "classes": classification(names=NAMES, notes=["Interrupted: to continue, give --out " + "x" * 90]),
    "many classes": classification(classes=100, samples=300, wrong=150),
    "twenty classes": classification(
        classes=20, samples=300, wrong=150, names=tuple(f"class number {i}" for i in range(20))
    ),
    "binary": binary(),
    "labels": several_labels(),
    "regression": regression(outputs=3),
    "features": classification(shape=(9,)),
}


def test_nothing_sticks_out_of_a_page_on_phones_and_desktops(tmp_path):
    widths = 320, 390, 1200
    pages = {name: training_report(run) for name, run in RUNS.items()}
    for name, found in layouts(pages, widths, tmp_path).items():
        for one, width in zip(found, widths, strict=True):
            assert (name, one["out"]) == (name, [])
            assert one["width"] <= width
            assert one["images"]
            assert one["height"] > 900


def test_a_page_causes_no_errors_and_can_be_printed(tmp_path):
    file = tmp_path / "report.html"
    file.write_bytes(training_report(RUNS["classes"]))
    for scheme in ("light", "dark"):
        picture = tmp_path / f"{scheme}.png"
        setting = f"--blink-settings=preferredColorScheme={int(scheme == 'light')}"
        said = open_page(file, f"--screenshot={picture}", setting, profile=tmp_path / "profile")
        assert "CONSOLE" not in said
        assert picture.stat().st_size > 10_000
    said = open_page(file, f"--print-to-pdf={tmp_path / 'report.pdf'}", profile=tmp_path / "profile")
    assert "CONSOLE" not in said
    paper = (tmp_path / "report.pdf").read_bytes()
    assert paper.startswith(b"%PDF")
    assert 2 <= paper.count(b"/Type /Page\n") <= 8


def test_an_error_of_a_page_would_be_seen(tmp_path):
    (tmp_path / "wrong.html").write_text("<script>throw new Error('found')</script>")
    assert "CONSOLE" in open_page(tmp_path / "wrong.html", "--dump-dom", profile=tmp_path / "profile")
    wide = b"<!DOCTYPE html><meta charset='utf-8'><p style='width:900px'>wide</p>"
    assert layouts({"wide": wide}, [390], tmp_path)["wide"][0]["out"] == ["P."]
