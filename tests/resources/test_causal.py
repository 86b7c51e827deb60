"""The causal subject: what comes next, with a neuron replaced, in every family; and who foretells nothing."""

import numpy as np
import pytest
import torch
from tiny_models import save_subject
from transformers import AutoModelForCausalLM

from pipeline.errors import SubjectError
from resources.subject import HuggingFaceSubject

WINDOW = list(range(5, 26))
OUTPUT = {
    "gpt2": "mlp.c_proj",
    "gpt_neox": "mlp.dense_4h_to_h",
    "llama": "mlp.down_proj",
    "opt": "fc2",
    "gemma2": "mlp.down_proj",
}


def values(count):
    return np.random.default_rng(0).normal(size=(count, len(WINDOW))).astype(np.float32)


def by_hand(folder, subject, module, neuron, put):
    """The logits of transformers' own model, with a hook of our own."""
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    before = subject._tokenizer.prefix
    (block,) = (part for name, part in model.named_modules() if name.endswith(("h.1", "layers.1")))

    def replace(_module, given):
        changed = given[0].clone()
        rows = changed.view(-1, changed.shape[-1])
        rows[len(before) : len(before) + len(put), neuron] = torch.from_numpy(put)
        return (changed,)

    block.get_submodule(module).register_forward_pre_hook(replace)
    with torch.no_grad():
        found = model(torch.tensor([[*before, *WINDOW]])).logits[0]
    return found[len(before) :]


@pytest.mark.parametrize("family", OUTPUT)
def test_logits_are_those_of_the_whole_model_with_the_neuron_replaced(family, tmp_path):
    folder = save_subject(family, tmp_path)
    subject = HuggingFaceSubject(str(folder))
    assert subject.irreplaceable() is None
    put = values(2)
    clean, first, second = (one.clone() for one in subject.replaced(1, WINDOW, [3, 0], put))
    assert torch.allclose(first, by_hand(folder, subject, OUTPUT[family], 3, put[0]), atol=1e-5)
    assert torch.allclose(second, by_hand(folder, subject, OUTPUT[family], 0, put[1]), atol=1e-5)
    assert not torch.allclose(clean, first, atol=1e-4)


def test_a_neuron_alone_gives_the_bits_that_it_gives_among_others(tmp_path):
    subject = HuggingFaceSubject(str(save_subject("gpt2", tmp_path)))
    put = values(5)
    among = [one.clone() for one in subject.replaced(0, WINDOW, [4, 1, 1, 0, 2], put)]
    alone = [one.clone() for one in subject.replaced(0, WINDOW, [0], put[3:4])]
    assert torch.equal(among[4], alone[1])
    assert torch.equal(among[0], alone[0])


def test_what_a_neuron_does_anyway_changes_nothing(tmp_path):
    subject = HuggingFaceSubject(str(save_subject("gpt2", tmp_path)))
    kept = {}
    subject.capture([[WINDOW]], [1], lambda layer, _, found: kept.setdefault(layer, found[0, :, 7].numpy().copy()))
    clean, same = (one.clone() for one in subject.replaced(1, WINDOW, [7], kept[1][None]))
    assert torch.equal(clean, same)


def test_reading_neurons_goes_on_as_before(tmp_path):
    subject = HuggingFaceSubject(str(save_subject("gpt2", tmp_path)))

    def read():
        found = []
        subject.capture([[WINDOW]], [2], lambda _, __, values: found.append(values.numpy().copy()))
        return found[0]

    before = read()
    list(subject.replaced(1, WINDOW, [7], values(1)))
    assert np.array_equal(before, read())


def test_encoders_and_models_without_their_head_foretell_nothing(tmp_path):
    for place, (family, head) in enumerate((("bert", True), ("llama", False))):
        subject = HuggingFaceSubject(str(save_subject(family, tmp_path / str(place), head=head)))
        assert subject.irreplaceable() == "not_causal"
        with pytest.raises(SubjectError, match="next-token probabilities"):
            next(subject.replaced(0, WINDOW, [0], values(1)))


def test_other_sites_than_neurons_are_not_replaced(tmp_path):
    folder = str(save_subject("gpt2", tmp_path))
    assert HuggingFaceSubject(folder, site="residual").irreplaceable() == "not_replaceable"


def test_values_that_do_not_fit_are_refused(tmp_path):
    subject = HuggingFaceSubject(str(save_subject("gpt2", tmp_path)))
    with pytest.raises(SubjectError, match=r"values of shape \(1, 21\)"):
        next(subject.replaced(0, WINDOW, [0, 1], values(1)))
    with pytest.raises(SubjectError, match="neurons 0 to"):
        next(subject.replaced(0, WINDOW, [10_000], values(1)))
