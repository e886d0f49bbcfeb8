"""The gallery: a page of all models that opens at once, however many they are."""

import csv
import time
from pathlib import Path

import pytest

from browsing import open_page
from lib.report import gallery
from lib.report.looks import Looks
from lib.stages.registry import FAMILIES

MODELS = ("Mix", "Two", "Plain")  # of project.py, those with a report
LOOKS = Looks.of(FAMILIES.values())
FORMS = 30
HOSTILE = "<img src=x onerror=alert(1)>"


def write_table(results: Path, model: str, forms: int = FORMS) -> None:
    """A report's table of a model of so many forms, 1 GB to 16 GB, each closer than the last."""
    report = results / model / "report"
    report.mkdir(parents=True)
    (report / "quality.html").touch()
    (report.parent / "README.md").touch()
    with (report / "quality.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(("form", "file", "bytes", "kld", "memory_16k"))
        for n in range(forms):
            family = "exl2" if n % 3 == 2 else "gguf"
            size = int(1e9 + 15e9 * n / FORMS)
            path = f"results/{model}/{family}/{model}-F{n}"
            table.writerow((f"F{n}", path, size, 0.9 / 2 ** (n / 3), size + int(2e9)))


@pytest.fixture(scope="module")
def many(tmp_path_factory) -> Path:
    """The gallery of 100 models of 30 forms each, and of one that has no report."""
    results = tmp_path_factory.mktemp("many") / "results"
    names = [f"{kind}-{n}" for n in range(25) for kind in ("Llama", "Qwen", "Gemma", "Merge")]
    for name in names:
        write_table(results, name)
    gallery.write([*names, "Not-Built"], LOOKS, results / "index.html")
    return results / "index.html"


def models(browser) -> list[str]:
    """The models that can be seen."""
    cards = browser.find_elements("css selector", "li:not([hidden]) h2")
    return [card.text for card in cards]


@pytest.mark.parametrize("width", [390, 820, 1280])
def test_it_opens_in_a_second_with_100_models_of_30_forms(browser, many, width):
    browser.get("about:blank")
    begun = time.monotonic()
    open_page(browser, many, width)
    browser.execute_script("return document.body.offsetHeight")
    assert time.monotonic() - begun < 1
    assert len(models(browser)) == 101
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    assert browser.get_log("browser") == []


def test_best_forms_go_by_memory_and_family(browser, many):
    open_page(browser, many)
    card = browser.find_element("css selector", "li").text.splitlines()
    assert card[:3] == ["Llama-0", "30 forms, 1.00 GB to 15.50 GB", "Best that fits, with room for "
                        "16k tokens of context"]  # fmt: skip
    # 7, 11 and 15 of 2**30 bytes, less 2 GB of cache and buffers, and 1 GB for F0: n is half of it.
    assert card[3:] == [
        *("GGUF", "8 GB", "F9", "12 GB", "F16", "16 GB", "F25", "24 GB and more", "F28"),
        *("EXL2", "8 GB", "F8", "12 GB", "F17", "16 GB", "F26", "24 GB and more", "F29"),
        *("Report", "Card"),
    ]
    assert "No report yet." in browser.find_element("css selector", "li:last-child").text


def test_the_search_finds_names_and_forms(browser, many):
    open_page(browser, many)
    field = browser.find_element("css selector", "input")
    field.send_keys("qwen f12")
    assert len(models(browser)) == 25 and models(browser)[0] == "Qwen-0"
    assert browser.find_element("css selector", "output").text == "25 of 101"
    field.clear()
    field.send_keys("not-built")
    assert models(browser) == ["Not-Built"]


def test_its_links_lead_to_what_is_there(browser, many):
    open_page(browser, many)
    script = "return [...document.querySelectorAll('a')].map(a => a.getAttribute('href'))"
    links = browser.execute_script(script)
    assert len(links) == 300
    assert all((many.parent / link).is_file() for link in links)


def test_names_are_shown_as_they_are(browser, tmp_path):
    write_table(tmp_path, HOSTILE, forms=1)
    gallery.write([HOSTILE], LOOKS, tmp_path / "index.html")
    open_page(browser, tmp_path / "index.html")
    assert models(browser) == [HOSTILE]


def test_a_build_writes_it_and_it_is_no_stranger(project):
    page = project / "results/index.html"
    assert all(name in page.read_text() for name in MODELS)
    page.unlink()
    project.run("gallery")
    assert "Mix/report/quality.html" in page.read_text()
    for question in ("orphans", "verify"):
        assert "index.html" not in project.run(question)


def test_a_damaged_table_ends_no_build(project):
    """The build is good, and the gallery says what is wrong."""
    project.quants.append("Q5_0")
    table = project / "results/Plain/report/quality.csv"
    table.write_text("form,file\nQ8_0,results/Plain/gguf/x\n")
    said = project.build("--config", "model=Mix")  # else Plain's report would be made anew
    assert "results/Plain/report/quality.csv: is no report's table" in said
    assert "built   results/Mix/gguf/Mix-Q5_0.gguf" in said and "Traceback" not in said
