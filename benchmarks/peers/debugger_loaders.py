"""An export read, and written again, by transformer-debugger's own code: `python -m benchmarks.peers.debugger_loaders out/ CLONE again/`.

CLONE is a clone of github.com/openai/transformer-debugger. Every neuron and its explanations are read by the functions that
its server reads them with, and written to `again/` by its own `dumps`, under the names that fields have there. `again/` can
then be imported: it must give the rows of `out/`.
"""

import asyncio
import sys
from importlib import import_module
from pathlib import Path
from typing import Any


def main(folder: str, clone: str, again: str) -> None:
    """Read every neuron, write it again, and say how many there were."""
    sys.path.insert(0, clone)
    activations: Any = import_module("neuron_explainer.activations.activations")
    explanations: Any = import_module("neuron_explainer.explanations.explanations")
    dumps: Any = import_module("neuron_explainer.fast_dataclasses").dumps
    root, target = Path(folder), Path(again)
    neurons = scores = 0
    for path in sorted((root / "collated-activations").glob("*/*.json")):
        record = asyncio.run(activations.read_neuron_file(str(path)))
        _write(target / path.relative_to(root), dumps(record))
        said = root / "explanations" / path.parent.name / f"{path.stem}.jsonl"
        results = asyncio.run(explanations.read_explanation_file(str(said)))
        if results is not None:
            scores += sum(one.get_preferred_score() is not None for one in results.scored_explanations)
            _write(target / said.relative_to(root), dumps(results))
        neurons += 1
    print(
        f"{neurons:,} neurons with {scores:,} scores were read by transformer-debugger's code, and written again to {again}"
    )


def _write(path: Path, data: str | bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())


if __name__ == "__main__":
    main(*sys.argv[1:])
