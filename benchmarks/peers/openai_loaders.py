"""An export read by OpenAI's own loaders: `python -m benchmarks.peers.openai_loaders out/ CLONE`.

CLONE is a clone of github.com/openai/automated-interpretability. Its readers of remote files stand aside for open files, so
neither blobfile nor boostedblob is needed. Every neuron is loaded; its splits are taken with their code, five to a split and
as many as there are; scored sequences must be the valid records, and scores must follow from the simulations.
"""

import os
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np


def main(folder: str, clone: str) -> None:
    """Read every neuron, and say how many there were and how far any score is from the one that is written."""
    _stand_in(
        "blobfile", join=os.path.join, exists=os.path.exists, isdir=os.path.isdir, listdir=os.listdir, BlobFile=open
    )
    _stand_in("boostedblob", ensure_session=lambda function: function, read=SimpleNamespace())
    sys.path.insert(0, str(Path(clone) / "neuron-explainer"))
    activations: Any = import_module("neuron_explainer.activations.activations")
    explanations: Any = import_module("neuron_explainer.explanations.explanations")
    tokens: Any = import_module("neuron_explainer.activations.token_connections")
    root, neurons, far = Path(folder).resolve(), 0, 0.0
    splits = [activations.ActivationRecordSliceParams(n_examples_per_split=count) for count in (5, None)]
    for path in sorted((root / "collated-activations").glob("*/*.json")):
        at = path.parent.name, path.stem
        record = activations.load_neuron(*at, dataset_path=f"file://{root}/collated-activations")
        five, all_of_them = ((record.train_activation_records(n), record.valid_activation_records(n)) for n in splits)
        _hold(five == all_of_them, path, "its splits depend on how many are asked for")
        _hold(
            bool(
                tokens.load_token_lookup_table_connections_of_neuron(
                    *at, f"file://{root}/related-tokens/activation-based"
                ).tokens
            ),
            path,
            "no tokens",
        )
        results = explanations.load_neuron_explanations(str(root / "explanations"), *at)
        for one in results.scored_explanations if results else ():
            parts = one.scored_simulation.scored_sequence_simulations
            if not parts:
                continue
            if len(parts) == len(five[1]):
                _hold(
                    [part.simulation.tokens for part in parts] == [valid.tokens for valid in five[1]],
                    path,
                    "other texts are scored",
                )
            if one.get_preferred_score() is not None:
                true = np.concatenate([part.true_activations for part in parts])
                expected = np.concatenate([part.simulation.expected_activations for part in parts])
                far = max(far, abs(np.corrcoef(true, expected)[0, 1] - one.get_preferred_score()))
        neurons += 1
    print(
        f"{neurons:,} neurons were read by OpenAI's loaders; no score is further than {far:.1e} from its simulation's"
    )


def _stand_in(name: str, **members: Any) -> None:
    module = ModuleType(name)
    vars(module).update(members)
    sys.modules[name] = module


def _hold(held: bool, path: Path, said: str) -> None:  # noqa: FBT001
    if not held:
        raise SystemExit(f"{path}: {said}")


if __name__ == "__main__":
    main(*sys.argv[1:])
