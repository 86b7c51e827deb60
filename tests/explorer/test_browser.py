"""The explorer in a real browser: by keyboard, without script, dark, narrow, for screen readers, and fed hostile text."""

import re
import shutil
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from explorer.kept import Kept
from explorer.live import Live
from explorer.meaning import Meaning
from explorer.server import Explorer
from explorer.staleness import Staleness
from explorer.verify import Link
from explorer.verifying import Verifying
from pipeline import meaning
from pipeline.ports import Usage, Vector
from pipeline.scripted_tokens import embedding
from pipeline.tables import TABLES
from resources.subject import HuggingFaceSubject

playwright = pytest.importorskip("playwright.sync_api", reason="no browser: `pip install playwright`")
BROWSER = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no browser: `apt-get install chromium`")

MARKS = [
    "<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "\"><svg onload=alert(1)>", "'><b onmouseover=alert(1)>",
    "javascript:alert(1)", "</script><script>alert(1)</script>", "</title><script>alert(1)</script>", "<!--", "-->", "]]>",
    "<style>*{display:none}</style>", "<iframe src=//evil.example></iframe>", "<form action=//evil.example><button>", "</main>",
    "&lt;script&gt;", "&#60;script&#62;", "{{ 7*7 }}", "{% include 'x' %}", "${7*7}", "%3Cscript%3E", "<a href='javascript:alert(1)'>x</a>",
    "<base href=//evil.example>", "<meta http-equiv=refresh content=0;url=//evil.example>", "<textarea>", "<plaintext>", "</p>",
    "\\u003cscript\\u003e", "<math><mtext></mtext></math>", "<details open ontoggle=alert(1)>", "<input autofocus onfocus=alert(1)>",
]  # fmt: skip
CONTROLS = [
    "\x00",
    "\x1b[31m",
    "\x07",
    "\x7f",
    "\x9b",
    "\u202e",
    "\u2066",
    "\u2028",
    "\u2029",
    "\ufeff",
    "\u200f",
    "\ue000",
    "\r\n",
    "\t",
]
STRINGS = [
    *MARKS, *CONTROLS, "مرحبا", "שלום", "e\u0301" * 40, "Z̴̛͚a̷l̵g̶o̸", "👩‍👩‍👧‍👦", "\U0010ffff", "",
    *[f"{one} {other}" for one in MARKS for other in CONTROLS],
]  # fmt: skip
LONE = b"\xed\xa0\x80 half a character \xff\xfe"
LONG = "A" * 1_000_000


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as opened:
        found = opened.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield found
        found.close()


@contextmanager
def visit(browser, **options):
    """A page that remembers what must never happen: dialogs, errors, refused by the policy, requests elsewhere."""
    context = browser.new_context(**{"locale": "en-GB", "viewport": {"width": 1200, "height": 900}, **options})
    page = context.new_page()
    wrong = []
    page.on("dialog", lambda dialog: (wrong.append(f"dialog: {dialog.message}"), dialog.dismiss()))
    page.on("pageerror", lambda error: wrong.append(f"error: {error}"))
    page.on("console", lambda said: wrong.append(f"console: {said.text}") if said.type == "error" else None)
    page.on("request", lambda asked: wrong.append(f"asked {asked.url}") if "//127.0.0.1:" not in asked.url else None)
    if options.get("java_script_enabled", True):
        page.add_init_script(
            "document.addEventListener('securitypolicyviolation', (e) => console.error('policy', e.violatedDirective, e.sample))"
        )
    try:
        yield page
        page.wait_for_timeout(50)
        assert wrong == []
    finally:
        context.close()


@pytest.fixture(scope="module")
def address(told, served, tmp_path_factory):
    lake = told.lake
    live = Live(lambda: HuggingFaceSubject(str(told.home / "subject")))
    verifying = Verifying(lambda layer, neuron, say: [Link("weights", f"{layer}:{neuron}", "equal", "the same files")])
    explorer = Explorer(
        Kept(lake), Staleness(lake, None), told.home, tmp_path_factory.mktemp("files"), {}, None, live=live, verifying=verifying
    )  # fmt: skip
    with served(explorer.app()) as address:
        yield address


class Shared:
    """An encoder by which texts are alike as far as they share words."""

    name = MARKS[0]

    def fingerprint(self):
        return "sha256:shared words"

    def encode(self, texts, *, run_id):
        return [Vector(np.asarray(embedding(text), dtype=np.float32)) for text in texts], Usage()


@pytest.fixture(scope="module")
def hostile(told, served, tmp_path_factory):
    """The same lake with hostile text in every place that text can come from."""
    folder = told.copy(tmp_path_factory.mktemp("hostile"))
    lake = folder.lake
    sequences = lake.read("sequences")
    pieces, at = [], 0
    for ids in sequences.get_column("token_ids"):
        row = [STRINGS[(at + place) % len(STRINGS)].encode("utf-8", "surrogatepass") for place in range(len(ids))]
        at += len(row)
        pieces.append(row)
    pieces[0][0], pieces[1][0] = LONE, LONG.encode()
    sequences = sequences.with_columns(
        pl.Series("token_bytes", pieces, dtype=pl.List(pl.Binary)),
        pl.Series("document_id", [STRINGS[place % len(MARKS)] + f" {place}" for place in range(len(sequences))]),
    )
    lake.replace("sequences", sequences, record={})
    vocabulary = lake.read("vocabulary")
    words = [STRINGS[place % len(STRINGS)].encode() for place in range(len(vocabulary))]
    lake.replace("vocabulary", vocabulary.with_columns(pl.Series("bytes", words, dtype=pl.Binary)), record={})
    for layer in (0, 1):
        said = lake.read("explanations", layer=layer)
        texts = [
            None if text is None else " ".join(STRINGS[place : place + 40]) for place, text in enumerate(said["text"])
        ]
        said = said.with_columns(
            pl.Series("text", texts, dtype=pl.String), explainer=pl.when(pl.col("explainer") != "none")
            .then(pl.lit("<script>alert(2)</script>")).otherwise(pl.col("explainer")),
        )  # fmt: skip
        calls = said.drop_nulls("request_id")
        if len(calls):
            call = lake.read("language_calls").filter(pl.col("request_id").is_in(calls["request_id"].implode()))
            call = call.with_columns(
                request_id=pl.lit("sha256:hostile"), reply=pl.lit("".join(STRINGS)), error=pl.lit("".join(MARKS)),
                model=pl.lit(MARKS[0]), model_served=pl.lit(MARKS[1]), finish_reason=pl.lit(MARKS[2]),
            )  # fmt: skip
            lake.add("language_calls", call.head(1), record={})
            said = said.with_columns(
                request_id=pl.when(pl.col("request_id").is_not_null()).then(pl.lit("sha256:hostile"))
            )
        lake.replace("explanations", said, layer=layer, record={})
        asked = meaning.wanted(said, fingerprint=Shared().fingerprint())
        texts = meaning.unknown(asked, TABLES["explanation_embeddings"].empty())
        vectors = dict(zip(texts, Shared().encode(texts, run_id="")[0], strict=True))
        known = TABLES["explanation_embeddings"].empty()
        made = meaning.rows(asked, known, vectors, encoder=MARKS[0], fingerprint=Shared().fingerprint())
        made = made.with_columns(run_id=pl.lit(MARKS[1]))
        lake.replace("explanation_embeddings", made, layer=layer, record={})
        subject = lake.read("subject_layers", layer=layer).with_columns(subject=pl.lit(MARKS[0]), site=pl.lit(MARKS[1]))
        lake.replace("subject_layers", subject, layer=layer, record={})
    live = Live(lambda: HuggingFaceSubject(str(folder.home / "subject")))
    files = tmp_path_factory.mktemp("files")
    explorer = Explorer(
        Kept(lake), Staleness(lake, None), folder.home, files, {"lake": MARKS[0]}, None, live,
        meaning=Meaning(files, Shared),
    )  # fmt: skip
    with served(explorer.app()) as address:
        yield address


OWN = "the+river+and+%3Cscript%3Ealert(1)%3C/script%3E+%E2%80%AE+%1B%5B31m+%D9%85%D8%B1%D8%AD%D8%A8%D8%A7"
THEN = "scores@3"
"""When layer 1 was scored, before a language model explained a neuron of it."""
PATHS = (
    f"/1/5?v={THEN}",
    "/1/5/history",
    "/compare",
    f"/compare?a={THEN}&layer=1",
    f"/1/5/compare?a={THEN}",
    "/",
    "/1",
    "/1/5",
    "/1/6",
    "/0/3",
    "/search?q=the",
    "/help",
    "/1/5?view=difference",
    "/1/5?view=overlay&scale=own",
    f"/text?text={OWN}&neurons=1:5",
    "/1/5/similar",
    "/search?q=the&by=meaning",
)


def test_hostile_text_is_shown_and_does_nothing(browser, hostile):
    assert len(STRINGS) > 450
    for path in (
        "/",
        "/1",
        "/1/5",
        "/1/6",
        "/0/0?ws=1",
        "/1/5?view=overlay",
        "/search?q=script",
        "/search?q=<script>alert(3)</script>",
        f"/text?text={OWN}",
        "/1/5/similar",
        "/1/5/history",
        f"/compare?a={THEN}&layer=1",
        f"/1/5/compare?a={THEN}",
        "/search?q=<script>alert(3)</script>&by=meaning",
    ):
        with visit(browser) as page:
            page.goto(hostile + path)
            # The frame of the page stands whatever is within it.
            assert page.locator("footer.foot").count() == 1
            assert page.locator("iframe, form[action^='//'], base, main style, main script").count() == 0
            assert page.evaluate("document.scripts.length") == 1
            if path == "/1/5":
                assert "<script>alert(1)</script>" in page.locator("#explanations").inner_text()
                for text in page.locator(".heat[data-r]").all()[:3]:
                    text.hover()
                playwright.expect(page.locator("#said")).to_be_visible()
                assert len(page.content()) < 3_000_000


@pytest.mark.parametrize(
    ("scheme", "paths"),
    [
        (
            "light",
            (
                "/",
                "/1",
                "/1/5",
                "/search?q=the",
                "/search?q=the&by=meaning",
                "/help",
                f"/text?text={OWN}",
                "/1/5/similar",
            ),
        ),
        ("dark", ("/1", "/1/5?view=difference", f"/1/5/compare?a={THEN}")),
        (
            "light",
            (f"/1/5?v={THEN}", "/1/5/history", "/compare", f"/compare?a={THEN}&layer=1", f"/1/5/compare?a={THEN}"),
        ),
    ],
)
def test_axe_finds_no_fault(browser, address, scheme, paths):
    axe = pytest.importorskip("axe_playwright_python.base", reason="no axe: `pip install axe-playwright-python`")
    source = (Path(axe.__file__).parent / "axe.min.js").read_text(encoding="utf-8")
    rules = "{resultTypes: ['violations'], runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'wcag22aa', 'best-practice']}"
    for path in paths:
        with visit(browser, color_scheme=scheme) as page:
            page.goto(address + path)
            page.evaluate("for (const one of document.querySelectorAll('details')) one.open = true;")
            page.evaluate(source)
            found = page.evaluate(f"axe.run(document, {rules})")
            faults = [
                f"{one['id']}: {node['html'][:200]} {node['failureSummary'][:300]}"
                for one in found["violations"]
                for node in one["nodes"]
            ]
            assert faults == [], f"{path} {scheme}"


def test_by_keyboard_alone_one_goes_from_neuron_to_neuron_and_reads_each_token(browser, address):
    with visit(browser) as page:
        page.goto(f"{address}/1/5")
        page.keyboard.press("ArrowRight")
        page.wait_for_url("**/1/6")
        page.keyboard.press("ArrowLeft")
        page.wait_for_url("**/1/5")
        page.keyboard.press("Shift+ArrowDown")
        page.wait_for_url("**/0/5")
        page.keyboard.press("Shift+ArrowUp")
        page.wait_for_url("**/1/5")
        text = page.locator(".heat[data-r]").first
        text.focus()
        playwright.expect(page.locator("#said")).to_contain_text("#")
        before = page.locator("#said").inner_text()
        page.keyboard.press("ArrowRight")
        playwright.expect(page.locator("#said")).not_to_have_text(before)
        place = int(re.search(r"#(\d+)", page.locator("#said").inner_text())[1])
        assert place == int(re.search(r"#(\d+)", before)[1]) + 1
        # Within a text the arrows move from token to token, not to another neuron.
        assert page.url.endswith("/1/5")
        page.keyboard.press("Escape")
        page.keyboard.press("/")
        page.keyboard.type("1:6")
        page.keyboard.press("Enter")
        page.wait_for_url("**/1/6")
        # The page that is left has an address of the same form, and takes the next key if it is still there.
        with page.expect_navigation(url=re.compile(r"/[01]/\d+$")):
            page.keyboard.press("r")
        page.keyboard.press("?")
        page.wait_for_url("**/help")


def test_letters_go_on_and_can_be_turned_off(browser, address):
    with visit(browser) as page:
        page.goto(f"{address}/1/5")
        for query in ("?view=overlay", "?view=difference", ""):
            page.keyboard.press("s")
            page.wait_for_url(f"{address}/1/5{query}#compared")
        page.keyboard.press("l")
        page.wait_for_url("**/1/6")
        page.goto(f"{address}/help")
        page.get_by_role("button", name="Turn keys of one letter off").click()
        page.goto(f"{address}/1/5")
        page.keyboard.press("l")
        page.keyboard.press("ArrowRight")
        page.wait_for_url("**/1/6")
        page.keyboard.press("h")
        page.keyboard.press("ArrowRight")
        page.wait_for_url("**/1/7")


def test_the_value_of_a_token_is_that_of_the_table(browser, address, told):
    row = (
        told.table("activations", layer=1, neurons=[5])
        .filter(pl.col("stratum") == "top")
        .sort("rank")
        .row(0, named=True)
    )
    window = told.table("sequences").filter(pl.col("sequence_id") == row["sequence_id"]).row(0, named=True)
    with visit(browser) as page:
        page.goto(f"{address}/1/5")
        text = page.locator(".heat[data-r]").first
        text.hover()
        playwright.expect(text).to_have_attribute("data-whole", "1")
        spans = text.locator("> u")
        assert spans.count() == len(row["activations"])
        spans.nth(row["peak_token"]).hover()
        playwright.expect(page.locator("#said")).to_contain_text(f"#{row['peak_token']} ")
        said = page.locator("#said").inner_text()
    assert f"id {window['token_ids'][row['peak_token']]}" in said
    value = row["activations"][row["peak_token"]]
    assert float(re.search(r"· (\S+) \(10/10\)", said)[1]) == pytest.approx(value, rel=1e-4)


def test_a_text_is_read_by_keyboard_and_each_of_its_tokens_says_its_value(browser, address, planted):
    neuron = next(one for one in planted.neurons if (one.layer, one.neuron) == (1, 5))
    text = " ".join([*([neuron.after] if neuron.after else []), neuron.tokens[0], "and"])
    with visit(browser) as page:
        page.goto(f"{address}/1/5")
        page.locator("#own-text").focus()
        page.keyboard.type(text)
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        page.wait_for_url("**/text?*")
        heat = page.locator(".heat[data-t]").first
        heat.focus()
        playwright.expect(page.locator("#said")).to_contain_text("/10)")
        assert neuron.tokens[0] in page.locator("#said").inner_text()
        page.keyboard.press("ArrowRight")
        playwright.expect(page.locator("#said")).to_contain_text("and")
    with visit(browser, java_script_enabled=False, locale="fr-FR") as page:
        page.goto(f"{address}/text")
        page.get_by_label("Texte").fill(text)
        page.get_by_label("neurones, comme").fill("1:5")
        page.get_by_role("button", name="Le lire").click()
        assert page.locator(".heat .k10, .heat .k9, .heat .k8").count() >= 1
        page.get_by_role("link", name="par z").click()
        assert "order=z" in page.url
        assert page.get_by_label("Texte").input_value() == text


def test_similar_neurons_unfold_on_the_page_and_verifying_says_what_came_out(browser, address):
    with visit(browser) as page:
        page.goto(f"{address}/1/5")
        page.locator("#similar summary").focus()
        page.keyboard.press("Enter")
        playwright.expect(page.locator("#similar #found")).to_contain_text("They fire together")
        page.get_by_role("button", name="Verify it now").focus()
        page.keyboard.press("Enter")
        page.wait_for_url("**/1/5#verified")
        page.reload()
        playwright.expect(page.locator("#verified")).to_contain_text("1 of 1 links are equal.")
    with visit(browser, java_script_enabled=False, locale="fr-FR") as page:
        page.goto(f"{address}/1/5")
        page.locator("#similar summary").click()
        page.locator("#similar details").get_by_role("link").click()
        page.wait_for_url("**/1/5/similar")
        assert "Ils s'activent ensemble" in page.locator("#found").inner_text()
        page.goto(f"{address}/0/3")
        page.get_by_role("button", name="Le vérifier maintenant").click()
        page.wait_for_url("**/0/3#verified")


def test_the_search_goes_by_meaning_without_script_and_says_why_where_it_cannot(browser, address, hostile):
    with visit(browser, java_script_enabled=False, locale="fr-FR") as page:
        page.goto(f"{hostile}/search?q=alert")
        page.get_by_role("link", name="Chercher par le sens").click()
        assert "by=meaning" in page.url
        assert "les plus proches d'abord" in page.locator("caption").inner_text()
        page.get_by_label("chercher par").select_option("")
        page.get_by_role("button", name="Filtrer").click()
        assert "Les mots sont comparés par leurs racines." in page.locator("main").inner_text()
        page.goto(f"{address}/search?q=the&by=meaning")
        assert "Aucune explication de ce lac n'a encore d'embedding" in page.locator("main").inner_text()


def test_light_and_dark_are_those_of_the_system_until_one_chooses(browser, address):
    ground = "getComputedStyle(document.body).backgroundColor"
    found = {}
    for scheme in ("light", "dark"):
        with visit(browser, color_scheme=scheme) as page:
            page.goto(f"{address}/1/5")
            found[scheme] = page.evaluate(ground)
            page.keyboard.press("d")
            turned = page.evaluate(ground)
            assert turned != found[scheme]
            page.reload()
            assert page.evaluate(ground) == turned
    assert found["light"] != found["dark"]


def test_without_script_everything_can_be_read_and_done(browser, address):
    with visit(browser, java_script_enabled=False) as page:
        page.goto(f"{address}/")
        page.locator("main table a").first.click()
        page.locator("select[name=state]").select_option("dead")
        page.get_by_role("button", name="Filter").click()
        assert "state=dead" in page.url
        page.locator("table.list tbody a").first.click()
        assert page.locator(".badge", has_text="dead").count() >= 1
        page.goto(f"{address}/1/5")
        page.get_by_role("link", name="difference").click()
        assert "view=difference" in page.url
        page.get_by_role("link", name="Français").click()
        assert page.locator("html").get_attribute("lang") == "fr"
        assert "view=difference" in page.url
        page.get_by_role("link", name="chaque token").first.click()
        assert page.locator("tbody tr").count() == 64
        assert page.locator("html").get_attribute("lang") == "fr"


def test_one_goes_back_in_time_and_compares_without_script_and_by_keyboard(browser, address):
    with visit(browser, java_script_enabled=False) as page:
        page.goto(f"{address}/1/5/history")
        page.locator("section.card").last.get_by_role("link").first.click()
        assert "v=" in page.url
        assert page.get_by_role("note").is_visible()
        page.get_by_role("link", name="What differs").click()
        assert "/1/5/compare?a=" in page.url
        page.get_by_label("b", exact=True).fill(THEN)
        page.get_by_role("button", name="Compare").click()
        assert f"b={THEN.replace('@', '%40')}" in page.url
    with visit(browser) as page:
        page.goto(f"{address}/1/5?v={THEN}")
        page.keyboard.press("ArrowRight")
        page.wait_for_url("**/1/6?v=*")
        text = page.locator(".heat[data-r]").first
        text.focus()
        playwright.expect(page.locator("#said")).to_contain_text("#")


def test_every_page_fits_a_telephone_keeps_its_own_policy_and_asks_for_nothing_elsewhere(browser, address):
    for path in PATHS:
        with visit(browser, viewport={"width": 360, "height": 740}) as page:
            page.goto(address + path)
            assert page.locator("h1").count() == 1
            page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true })")
            assert page.evaluate("document.documentElement.scrollWidth") <= 360, path


def test_it_prints_everything_that_is_folded_away_without_what_only_a_screen_needs(browser, address):
    with visit(browser) as page:
        page.goto(f"{address}/1/5")
        page.emulate_media(media="print")
        assert page.locator(".top").is_hidden()
        assert page.locator("details table").first.is_visible()


def test_where_a_token_is_needed_one_enters_it_and_is_in(browser, told, served, tmp_path):
    lake = told.lake
    app = Explorer(Kept(lake), Staleness(lake, None), told.home, tmp_path).app(token="a secret of some length")
    with served(app) as address:
        context = browser.new_context()
        page = context.new_page()
        assert page.goto(f"{address}/1/5").status == 401
        page.get_by_label("Token").fill("a secret of some length")
        page.get_by_role("button", name="Enter").click()
        page.wait_for_url(f"{address}/")
        assert page.goto(f"{address}/1/5").status == 200
        assert "secret" not in page.content()
        context.close()
