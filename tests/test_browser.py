"""The page of `jetzoo explore` in a real browser; `make browser-test` runs these."""

import os
import re
import shutil

import numpy as np
import pytest
import torch
from explained import SAMPLE, planted

import jetzoo
from jetzoo import interpret
from jetzoo.interpret import measures, studies
from jetzoo.interpret.explorer import explorer
from jetzoo.interpret.recorder import Record
from jetzoo.style import OKABE_ITO

pytestmark = pytest.mark.browser

# Milliseconds to the first paint of a page with 50 jets.
FIRST_PAINT = 2000
CLASSES = ["jet_isQ", "jet_isG"]


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="needs the extra browser")
    names = ("chromium", "chromium-browser", "google-chrome")
    path = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    with playwright.sync_playwright() as started:
        try:
            chromium = started.chromium.launch(executable_path=path, args=["--no-sandbox"])
        except playwright.Error as error:
            pytest.skip(f"needs a Chromium browser: {str(error).splitlines()[0]}")
        yield chromium
        chromium.close()


@pytest.fixture
def visit(browser):
    """Open a page offline; whatever it prints or fails to do ends the test at its end."""
    contexts, complaints = [], []

    def opened(path, fragment="", **options):
        context = browser.new_context(viewport={"width": 1400, "height": 1000}, **options)
        context.set_offline(True)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(f"file://{path}{fragment}")
        page.wait_for_function("document.getElementById('matrix-caption').textContent !== ''")
        return page

    yield opened
    for context in contexts:
        context.close()
    assert complaints == []


def planted_jets():
    """Three jets of two layers and two heads, of which the first has planted attention.

    In layer 1, head 1, particle 1 attends to particle 3 with 0.75 and to 2 with 0.25, the others to
    themselves; in head 2 and in layer 2 all attend to themselves. The class token attends to
    particle 4.
    """
    first = np.eye(4)
    first[0] = [0, 0.25, 0.75, 0]
    one, _ = planted(
        np.stack([first, np.eye(4)]),
        4,
        types=[0, 2, 4, 1],
        subjets=[0, 0, 1, 1],
        positions=[[-0.3, -0.3], [0.3, -0.3], [0.3, 0.3], [-0.3, 0.3]],
    )
    scores = (2 * torch.arange(16.0) - 16).reshape(1, 1, 4, 4).repeat(1, 2, 1, 1)
    scores[..., 3, 3] = 15  # so that all are whole steps
    bias = torch.zeros(1, 2, 4, 4)
    bias[:, :, 3, 0] = bias[:, :, 0, 3] = 5
    weights = torch.tensor(np.stack([first, np.eye(4)]), dtype=torch.float32)[None]
    eye = torch.eye(4).expand(1, 2, 4, 4)
    cls = torch.tensor([[[[0.0, 0, 0, 0, 1]]]]).expand(1, 2, 1, 5)
    records = [
        Record("particle", 0, one.mask, weights, scores, bias),
        Record("particle", 1, one.mask, eye, scores, bias),
        Record("class", 0, one.mask, cls),
    ]
    small = [planted(np.eye(2), n, positions=[[0.1, 0.0], [0.0, 0.2]]) for n in (0, 1)]
    return [studies.Drawn(7, one, records)] + [
        studies.Drawn(8 + k, batch, found) for k, (batch, found) in enumerate(small)
    ]


@pytest.fixture(scope="module")
def page_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("explore") / "page.html"
    # All are of class 0: the first is right, the second wrong, the third right by less.
    scores = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]])
    path.write_text(explorer("ParT", CLASSES, planted_jets(), scores)[0])
    return path


def lists(page):
    """What is said of a particle: {heading: [(particle, value)]}."""
    columns = page.locator("#details > div").all()
    found = {}
    for column in columns:
        words = [x.split(" · ")[0] for x in column.locator(".ranking span").all_inner_texts()]
        found[column.locator("h3").inner_text()] = list(zip(words[::2], words[1::2], strict=True))
    return found


def point_at(page, particle):
    page.locator(f'[data-particle="{particle}"]').hover(force=True)


def matrix_colors(page):
    """Colours of the cells of the matrix, (rows, columns, 3)."""
    pixels = page.evaluate(
        "() => { const c = document.querySelector('#matrix canvas');"
        "return [c.height, c.width,"
        "[...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]] }"
    )
    return np.array(pixels[2]).reshape(pixels[0], pixels[1], 4)[..., :3]


def choose(page, group, text):
    page.locator(f"#{group} label", has_text=re.compile(f"^{text}$")).click()


def set_layer(page, value):
    page.locator("#layer").fill(str(value))


def test_pointing_at_a_particle_shows_its_attention(visit, page_file):
    page = visit(page_file)
    choose(page, "head", "1")
    point_at(page, 1)
    found = lists(page)
    assert list(found) == ["Particle 1", "Attends to", "Is attended to by"]
    assert found["Attends to"][:2] == [("3", "0.75"), ("2", "0.25")]
    assert all(float(value) == 0 for _, value in found["Attends to"][2:])
    assert all(float(value) == 0 for _, value in found["Is attended to by"])
    assert "charged hadron · 4.00 GeV" in page.locator("#tip").inner_text()
    assert page.locator(".edge.given").count() == 2
    assert page.locator(".edge.received").count() == 0
    point_at(page, 3)
    found = lists(page)
    assert found["Attends to"][0] == ("3", "1.00")
    assert found["Is attended to by"][:2] == [("3", "1.00"), ("1", "0.75")]
    assert page.locator(".edge.received").count() == 1
    page.mouse.move(5, 5)
    assert "Point at a particle" in page.locator("#details").inner_text()


def test_lines_join_the_particles(visit, page_file):
    page = visit(page_file, "#jet=7&layer=1&head=1")
    (line,) = page.locator(".edge.between").all()[-1:]
    ends = [float(x) for x in re.findall(r"-?[\d.]+", line.get_attribute("d"))]
    places = [
        [float(x) for x in re.findall(r"-?[\d.]+", p.get_attribute("transform"))[:2]]
        for p in page.locator(".particle").all()
    ]
    assert sorted([ends[:2], ends[-2:]]) == sorted([places[0], places[2]])
    assert "widest line: 0.75" in page.locator("#plane-caption").inner_text()


def test_every_control_changes_what_it_should(visit, page_file):
    page = visit(page_file, "#jet=7&layer=1&head=1&particle=1")
    weight = lists(page)["Attends to"][0]
    assert weight == ("3", "0.75")
    choose(page, "head", "2")
    assert lists(page)["Attends to"][0] == ("1", "1.00")
    choose(page, "head", "mean")
    assert lists(page)["Attends to"][:2] == [("1", "0.50"), ("3", "0.38")]
    choose(page, "head", "rollout")  # (mean + 1) / 2
    assert lists(page)["Attends to"][:2] == [("1", "0.75"), ("3", "0.19")]
    choose(page, "head", "1")
    choose(page, "show", "scores A")
    assert lists(page)["Scores given"][0] == ("4", "−10.0")
    assert page.locator("#head label", has_text="rollout").locator("input").is_disabled()
    choose(page, "show", "pair bias U")
    assert lists(page)["Bias given"][0] == ("4", "5.00")
    choose(page, "show", "attention W")
    set_layer(page, 1)
    assert lists(page)["Attends to"][0] == ("1", "1.00")
    assert page.locator("#layer-name").inner_text() == "layer 2"
    set_layer(page, 2)
    assert page.locator("#layer-name").inner_text() == "class layer 1"
    assert lists(page)["The class token attends to"][0] == ("4", "1.00")
    assert page.locator(".token").count() == 1
    assert page.locator("#show input").nth(1).is_disabled()
    page.locator('[data-jet="8"]').click()
    assert "Jet 8" in page.locator("#jet-title").inner_text()


def test_the_matrix_is_linked_with_the_plane(visit, page_file):
    page = visit(page_file, "#jet=7&layer=1&head=1")
    colors = matrix_colors(page)
    assert colors.shape == (4, 4, 3)
    bright, dark = [253, 231, 37], [68, 1, 84]  # viridis
    np.testing.assert_allclose(colors[1, 1], bright, atol=2)
    np.testing.assert_allclose(colors[0, 0], dark, atol=2)
    assert colors[0, 2].sum() > colors[0, 1].sum() > colors[0, 0].sum()
    box = page.locator("#matrix canvas").bounding_box()
    page.mouse.move(box["x"] + 0.6 * box["width"], box["y"] + 0.1 * box["height"])
    assert page.locator("#tip").inner_text() == "1 → 3\nW = 0.75"
    assert page.locator(".ring").count() == 2 and page.locator("#matrix .guide").count() == 3
    assert "Particle 1" in lists(page)
    point_at(page, 3)
    row, column = page.locator("#matrix .guide").all()
    assert float(row.get_attribute("y")) == float(row.get_attribute("height")) * 2 + 8
    assert "received" in column.get_attribute("class")


def test_jets_are_sorted(visit, page_file):
    page = visit(page_file)

    def order():
        return [int(b.get_attribute("data-jet")) for b in page.locator("#jets button").all()]

    assert order() == [7, 8, 9]
    for value, expected in (("wrong", [8, 9, 7]), ("high", [7, 9, 8]), ("low", [8, 9, 7])):
        page.locator("#sort").select_option(value)
        assert order() == expected
    page.locator("#of").select_option(label="gluon")
    assert order() == [7, 9, 8]
    words = page.locator('[data-jet="8"]').inner_text().split()
    assert words == ["8", "quark", "✗", "gluon", "0.800"]
    assert page.locator(".verdict", has_text="✗").count() == 1


def test_keys(visit, page_file):
    page = visit(page_file)

    def press(*keys):
        for key in keys:
            page.keyboard.press(key)
        return page.url.split("#")[1]

    assert press("ArrowRight", "]") == "jet=7&layer=2&head=1&show=weights"
    assert press("ArrowLeft", "[", "[") == "jet=7&layer=1&head=mean&show=weights"
    assert press("a", ".", ".") == "jet=7&layer=1&head=mean&show=scores&particle=2"
    assert press("u", ",") == "jet=7&layer=1&head=mean&show=bias&particle=1"
    assert press("Escape", "w", "ArrowDown") == "jet=8&layer=1&head=mean&show=weights"
    press("?")
    assert page.locator("#keys").is_visible()
    press("Escape")
    assert not page.locator("#keys").is_visible()
    assert press("ArrowUp") == "jet=7&layer=1&head=mean&show=weights"


def test_the_address_is_the_view(visit, page_file):
    fragment = "#jet=7&layer=2&head=2&show=bias&particle=4&sort=wrong&score=jet_isG"
    page = visit(page_file, fragment)
    assert page.url.endswith(fragment)
    assert page.locator("#matrix-caption").inner_text() == "Pair bias U: head 2, layer 2."
    assert "Particle 4" in lists(page)
    assert (
        page.locator("#sort").input_value() == "wrong" and page.locator("#of").input_value() == "1"
    )
    page.evaluate("location.hash = '#jet=8&layer=class9&head=77&show=nothing&particle=50'")
    page.wait_for_function("document.getElementById('jet-title').textContent.includes('Jet 8')")
    assert page.url.endswith("#jet=8&layer=1&head=mean&show=weights")


def test_a_click_keeps_a_particle_and_a_tap_shows_it(visit, page_file):
    page = visit(page_file, "#jet=7&layer=1&head=1")
    page.locator('[data-particle="1"]').click(force=True)
    page.mouse.move(5, 5)
    assert "particle=1" in page.url and lists(page)["Attends to"][0] == ("3", "0.75")
    page.locator('[data-particle="1"]').click(force=True)
    assert "particle" not in page.url
    page = visit(page_file, "#jet=7&layer=1&head=1", has_touch=True)
    page.locator('[data-particle="1"]').tap(force=True)
    assert lists(page)["Attends to"][0] == ("3", "0.75")


def test_looks_in_light_in_dark_and_on_paper(visit, page_file):
    for scheme, is_dark in (("light", False), ("dark", True)):
        page = visit(page_file, color_scheme=scheme)

        def paper(page=page):
            color = page.evaluate("getComputedStyle(document.body).backgroundColor")
            return sum(map(int, re.findall(r"\d+", color)[:3]))

        assert (paper() < 200) == is_dark
        page.emulate_media(media="print")
        assert paper() == 765 and not page.locator("nav").is_visible()
        assert page.locator("#plane").is_visible()
    page = visit(page_file, color_scheme="light")
    fills = page.evaluate(
        "[...document.querySelectorAll('.particle')].map((p) => getComputedStyle(p).fill)"
    )
    expected = [
        "rgb({}, {}, {})".format(*bytes.fromhex(OKABE_ITO[subjet][1:])) for subjet in (0, 0, 1, 1)
    ]
    assert fills == expected
    page.keyboard.press("t")
    page.keyboard.press("t")
    assert page.locator("#theme").inner_text() == "Colours: dark" and paper(page) < 200


def test_jets_of_no_particle_and_of_one(visit, page_file):
    page = visit(page_file, "#jet=7")
    for index, count in ((8, 0), (9, 1)):
        page.locator(f'[data-jet="{index}"]').click()
        page.wait_for_timeout(100)
        assert f"{count} particles" in page.locator("#jet-title").inner_text()
        assert page.locator(".particle").count() == count
        assert "No lines" in page.locator("#plane-caption").inner_text()


def test_fifty_jets_of_a_trained_network(visit, tmp_path):
    """Size, time to the first paint, and the rollout beside that of the measures."""
    tagger = jetzoo.load("ParT_QuarkGluon_kin", device="cpu")
    content, notes = interpret.explore(tagger, "ParT", [SAMPLE])
    path = tmp_path / "page.html"
    path.write_text(content)
    assert path.stat().st_size < 15e6 and notes == []
    page = visit(path)
    paints = page.evaluate("performance.getEntriesByType('paint').map((e) => e.startTime)")
    assert paints and max(paints) < FIRST_PAINT
    assert page.locator("#jets li").count() == 50

    drawn = studies.look(tagger, interpret.read_jets(tagger, [SAMPLE], [0]), 0)
    layers = [r.weights for r in drawn.records if r.kind == "particle"]
    expected = measures.rollout(layers)[0, 2]
    set_layer(page, len(layers) - 1)
    choose(page, "head", "rollout")
    point_at(page, 3)
    for particle, value in lists(page)["Attends to"]:
        assert float(value) == pytest.approx(float(expected[int(particle) - 1]), abs=2e-3)
    cls = [r.weights for r in drawn.records if r.kind == "class"]
    expected = (measures.class_importance(cls)[:, None] @ measures.rollout(layers))[0, 0]
    set_layer(page, len(layers))
    for particle, value in lists(page)["The class token attends to"]:
        assert float(value) == pytest.approx(float(expected[int(particle) - 1]), abs=2e-3)
