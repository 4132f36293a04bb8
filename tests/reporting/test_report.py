"""The page: from plain data, harmless, self-contained; and as a browser sees it."""

import html
import json
import re
from html.parser import HTMLParser

import cv2
import pytest

from elk_jax.reporting.report import Report, Section, build_report, write_report
from elk_jax.reporting.run import RunRecord, run_report
from elk_jax.reporting.sections import MOST_SKIPPED, data_section
from elk_jax.tasks.detection.page import DetectionRun, detection_part
from tests.pages import detection_run, open_in_chromium, run_record, whole_report

VOID = {"meta", "link", "img", "br", "input", "line", "circle", "rect", "path"}


class Balance(HTMLParser):
    """Collects tags that were not closed in order."""

    def __init__(self):
        super().__init__()
        self.open: list[str] = []
        self.wrong: list[str] = []

    def handle_starttag(self, tag, attributes):
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        pass

    def handle_endtag(self, tag):
        if tag in VOID:
            return
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)


@pytest.fixture(scope="module")
def page() -> str:
    return build_report(whole_report())


def test_is_well_formed(page):
    balance = Balance()
    balance.feed(page)
    assert not balance.open and not balance.wrong


def test_links_to_nothing_outside_the_page(page):
    addresses = re.findall(r'(?:src|href|action|data|poster)="([^"]*)"', page) + re.findall(r"url\(([^)]*)\)", page)
    assert addresses
    assert all(address.startswith(("#", "data:image/")) for address in addresses)
    assert "<script" not in page and "@import" not in page


def test_text_of_the_data_is_escaped(page):
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "Real &amp; &lt;synthetic&gt;" in page


def test_is_a_pure_function(page):
    assert page == build_report(whole_report())


def test_parts_of_several_tasks():
    one, both = run_report(run_record(), [detection_part(detection_run())]), whole_report()
    assert one.kicker == "Lesion detection · cem_mixed"
    assert both.kicker == "Lesion detection, Lesion synthesis · cem_mixed"
    assert both.summary == f"{one.summary} Painted well." and both.facts["Lesions"] == "5"


def test_sections_in_order(page):
    titles = re.findall(r"<h2>(.*?)</h2>", page)
    assert titles == [
        "Results",
        "FROC",
        "Operating points",
        "Images: mixed",
        "Detector training",
        "Synthesis",
        "Data",
        "Configuration",
        "Environment",
    ]
    for anchor in re.findall(r"<nav.*?</nav>", page, re.S)[0].split('href="#')[1:]:
        assert f'<section id="{anchor.split(chr(34))[0]}">' in page


def test_the_record_of_the_run_is_in_the_page(page):
    for expected in ("detector.optimizer.kind", "truncated", "P012_L_CM_CC", "13 min 32 s", "real at step 40"):
        assert expected in page, expected


def test_nothing_measured_yet():
    report = run_report(RunRecord("empty"), [detection_part(DetectionRun())])
    assert report.sections == [] and report.summary == ""
    assert "<h1>empty</h1>" in build_report(report)


def test_equal_titles_get_different_anchors():
    page = build_report(Report("t", sections=[Section("A b", "1"), Section("A b", "2"), Section("!", "3")]))
    assert re.findall(r'<section id="([^"]*)">', page) == ["a-b", "a-b--2", "section"]


def test_write(tmp_path, page):
    write_report(tmp_path / "report.html", whole_report())
    assert (tmp_path / "report.html").read_text() == page


# ---- In a browser ------------------------------------------------------------------------------------------


PROBE = """<script>
addEventListener("load", () => {
  const images = [...document.images], box = e => e.getBoundingClientRect();
  document.title = JSON.stringify({
    images: images.length,
    broken: images.filter(i => !i.complete || i.naturalWidth === 0).length,
    sections: document.querySelectorAll("section").length,
    charts: [...document.querySelectorAll("section svg[role=img]")].filter(e => box(e).height > 5).length,
    overflow: document.documentElement.scrollWidth > innerWidth,
    overlay: Math.max(...images.map(i => Math.abs(box(i).height - box(i.nextElementSibling).height))),
    family: getComputedStyle(document.querySelector("h1")).fontWeight,
  });
});
</script>"""


def test_in_a_browser_everything_is_there(tmp_path, page):
    # The page does not allow scripts, so the probe runs in a copy without that policy.
    probed = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page).replace("</body>", f"{PROBE}</body>")
    result = open_in_chromium(tmp_path, probed, "--dump-dom")
    found = json.loads(html.unescape(re.search(r"<title>(.*?)</title>", result.stdout, re.S).group(1)))
    assert found["images"] == 2 and found["broken"] == 0
    assert found["sections"] == 9
    assert found["charts"] >= 8
    assert not found["overflow"]
    assert found["overlay"] < 1.0  # boxes are exactly over their image
    assert found["family"] == "680"  # the style sheet was applied
    assert "CONSOLE" not in result.stderr


def test_in_a_browser_the_page_obeys_its_policy(tmp_path, page):
    result = open_in_chromium(tmp_path, page, f"--screenshot={tmp_path / 'shot.png'}")
    assert "CONSOLE" not in result.stderr
    shot = cv2.imread(str(tmp_path / "shot.png"))
    assert shot.shape[:2] == (900, 1200)
    assert shot.std() > 10  # something is drawn


def test_in_a_browser_outside_content_is_refused(tmp_path):
    outside = Section("s", '<img src="https://example.invalid/x.png"><script>document.title = "run"</script>')
    result = open_in_chromium(tmp_path, build_report(Report("quiet", sections=[outside])), "--dump-dom")
    assert "CONSOLE" in result.stderr and "Content Security Policy" in result.stderr
    assert "<title>quiet</title>" in result.stdout


def test_of_many_skipped_images_a_page_shows_the_first():
    many = [(f"image {number}", "damaged") for number in range(MOST_SKIPPED + 7)]
    shown, whole = (data_section({}, some) for some in (many, many[:MOST_SKIPPED]))
    assert shown.html.count("damaged") == whole.html.count("damaged") == MOST_SKIPPED
    assert f"({len(many)})" in shown.html and "skipped.csv" in shown.html and "skipped.csv" not in whole.html
