"""What an explainer may read and what is scored have nothing in common, in every request of every method, word for word."""

import json

from explorer.fake_endpoint import FakeEndpoint

METHODS = "token-activation-pairs,revision,revision-random,best-of:2,contrastive,highlight,highlight-values,summary"
PIECE = 40
"""Letters in a row that two texts have in common only if one was taken from the other."""


def letters(text):
    """The letters of a text alone: whatever form it is given in, they stay in their order."""
    return "".join(sign for sign in text if sign.isalpha())


def pieces(windows):
    """What a request that holds any longer part of these windows holds."""
    return {text[place : place + PIECE] for text in windows for place in range(0, len(text) - PIECE, PIECE // 4)}


def holding(texts, some):
    """Those of the texts that hold one of some pieces."""
    return [name for name, text in texts.items() if any(piece in text for piece in some)]


def test_no_request_of_an_explainer_holds_a_text_that_is_scored(copied, served):
    with served(FakeEndpoint().app()) as url:
        result = copied.type(
            "run", "--neurons", "0:1", "--explainer", "scripted", "--base-url", f"{url}/v1", "--methods", METHODS,
        )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    windows = {}
    for row in copied.table("sequences").iter_rows(named=True):
        text = letters(b"".join(row["token_bytes"]).decode(errors="replace"))
        windows.setdefault(row["split"], set()).add(text)
    asked = {
        row["request_id"]: letters("".join(text for _, text in json.loads(row["request"])["messages"]))
        for row in copied.table("language_calls").iter_rows(named=True)
    }
    said = copied.table("explanations", layer=0, neurons=[1])
    by_method = {}
    for row in said.filter(said["explainer"] == "scripted").iter_rows(named=True):
        found = [one for one in (row["request_id"], *(row["other_request_ids"] or ())) if one is not None]
        by_method.setdefault(row["method"], set()).update(found)
    assert set(METHODS.split(",")) <= by_method.keys()
    scored, shown = (
        pieces(text for split in splits for text in windows[split])
        for splits in (("score", "test"), ("explain", "calibrate"))
    )
    for method, requests in by_method.items():
        texts = {one: asked[one] for one in requests}
        assert not holding(texts, scored), method
        # The same look finds what was shown, in the methods that show texts as they are.
        assert holding(texts, shown) or method not in ("token-activation-pairs", "highlight"), method
    # Of all that was asked, only the simulator was shown scored texts.
    simulated = {one for row in copied.table("simulations", layer=0, neurons=[1])["request_ids"] for one in row}
    assert set(holding(asked, scored))
    assert set(holding(asked, scored)) <= simulated
