"""An export read by Neuronpedia's own data classes: `python -m benchmarks.peers.neuronpedia_classes out/ CLONE`.

CLONE is a clone of github.com/hijohnnylin/neuronpedia. A field that the classes do not know is an error of theirs.
"""

import gzip
import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

LINES = {
    "features": "feature.Feature",
    "activations": "activation.Activation",
    "explanations": "explanation.Explanation",
}
FILES = {
    "model": "model.Model", "source": "source.Source", "sourceset": "source_set.SourceSet", "release": "source_release.SourceRelease",
}  # fmt: skip


def main(folder: str, clone: str) -> None:
    """Read every line, and say how many there were."""
    sys.path.insert(0, str(Path(clone) / "utils" / "neuronpedia-utils" / "neuronpedia_utils"))
    counts: dict[str, int] = {}
    for kind, name in LINES.items():
        known = _known(name)
        for path in sorted(Path(folder).glob(f"v1/*/*/{kind}/batch-*.jsonl.gz")):
            with gzip.open(path, "rt", encoding="utf-8") as lines:
                counts[kind] = counts.get(kind, 0) + sum(1 for line in lines if known(**json.loads(line)))
    for kind, name in FILES.items():
        for path in Path(folder).glob(f"v1/*/*/{kind}.jsonl"):
            _known(name)(**json.loads(path.read_text(encoding="utf-8")))
    said = ", ".join(f"{count:,} {kind}" for kind, count in counts.items())
    print(f"{said} were read by Neuronpedia's data classes")


def _known(name: str) -> Any:
    module, _, found = name.partition(".")
    return getattr(import_module(f"db_models.{module}"), found)


if __name__ == "__main__":
    main(*sys.argv[1:])
