"""The site: pages as files that stand by themselves, and a neuron in a notebook."""

import json
import re

import pytest

from explorer.access import open_lake
from explorer.kept import Kept
from explorer.server import Explorer
from explorer.site import NOT_HERE, chosen, file_of, write
from explorer.staleness import Staleness
from pipeline.errors import SettingsError


@pytest.fixture(scope="module")
def explorer(told, tmp_path_factory):
    lake = told.lake
    return Explorer(Kept(lake), Staleness(lake, None), told.home, tmp_path_factory.mktemp("files"))


@pytest.fixture(scope="module")
def folder(explorer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("site") / "new"
    assert write(explorer, folder, chosen(explorer, None, [(1, 5), (1, 6), (0, 3)])) == 6
    return folder


@pytest.mark.parametrize(("path", "file"), [("/", "index.html"), ("/5", "5/index.html"), ("/5/131", "5/131.html")])
def test_a_page_has_a_file(path, file):
    assert file_of(path) == file


def test_every_link_of_the_site_leads_to_a_file_of_it_or_says_that_it_does_not(folder):
    pages = list(folder.rglob("*.html"))
    assert {str(page.relative_to(folder)) for page in pages} == {
        "index.html", "0/index.html", "1/index.html", "0/3.html", "1/5.html", "1/6.html",
    }  # fmt: skip
    for page in pages:
        text = page.read_text()
        for link in re.findall(r'(?:href|src|action)="([^"]*)"', text):
            if link.startswith(("#", "http://127.0.0.1:3000/")):
                continue
            assert (page.parent / link.partition("#")[0]).is_file(), f"{page}: {link}"
        assert "<form" not in text
    assert NOT_HERE in (folder / "1" / "5.html").read_text()


def test_the_files_hold_what_the_pages_of_the_server_show(folder, explorer):
    found = json.loads((folder / "1" / "5.json").read_text())
    assert found["explanations"] == json.loads(json.dumps(explorer.one(1, 5), default=str))["explanations"]
    island = re.search(
        r'<script type="application/json" id="all">(.*?)</script>', (folder / "1" / "5.html").read_text()
    )[1]
    assert json.loads(island) == found
    assert "<" not in island


def test_the_files_name_no_place_of_this_machine(folder, told):
    for file in folder.rglob("*"):
        if file.suffix in (".html", ".json"):
            assert str(told.home) not in file.read_text(), file
    calls = json.loads((folder / "1" / "5.json").read_text())["calls"].values()
    assert calls
    assert {call["endpoint"] for call in calls} == {None}


def test_a_folder_with_something_in_it_is_left_as_it_is(folder, explorer):
    with pytest.raises(SettingsError, match="is not empty; name a new one"):
        write(explorer, folder, [(1, 5)])


def test_without_names_the_site_has_what_was_explained_or_stands_out(explorer):
    found = chosen(explorer, None, [])
    assert (1, 5) in found
    assert len(found) > 1
    assert len(chosen(explorer, [0], [])) == len({neuron for _, neuron in chosen(explorer, [0], [])}) > 5


def test_the_command_writes_the_site(told, tmp_path):
    result = told.type("explore", "--static", str(tmp_path / "out"), "--neurons", "1:5")
    assert (result.exit_code, result.stderr) == (0, "")
    assert "wrote 3 pages; open" in result.stdout
    result = told.type("explore", "--neurons", "1:5")
    assert result.exit_code == 2
    assert "--neurons and --layers choose what --static writes" in result.stderr


def test_a_notebook_shows_a_neuron_without_a_script(told):
    shown = open_lake(told.lake.uri)["1:5"]._repr_html_()
    assert "<script" not in shown
    assert shown.count('class="nl-t"') == 5
    # Explanations with their scores, each side by side and none averaged.
    assert "random_only" in shown
    dead = open_lake(told.lake.uri)["0:3"]._repr_html_()
    assert "the neuron never fires on this corpus" in dead


def test_a_page_to_be_embedded_has_no_forms_and_may_be_framed_from_this_machine(explorer, served, asking):
    import urllib.request

    with served(explorer.app()) as address, urllib.request.urlopen(f"{address}/1/5?embed=1") as reply:
        page = reply.read().decode()
        policy = reply.headers["Content-Security-Policy"]
        assert asking(f"{address}/1?embed=1")[1].count("<form") > 0
    assert "<form" not in page
    assert "frame-ancestors 'self' http://127.0.0.1:* http://localhost:*" in policy
