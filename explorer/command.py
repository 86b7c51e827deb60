"""What every command shares: the group they stand in, the settings as flags, how errors are said, and where things are printed."""

import logging
import os
import re
import shlex
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import click
from rich.console import Console

from pipeline.errors import NeuronLedgerError, SettingsError
from resources.settings import Settings

if TYPE_CHECKING:
    from assets.freshness import Outside
    from assets.project import Project
    from pipeline.ports import Lake, SubjectModel
    from resources.delta import DeltaLake

P = ParamSpec("P")
T = TypeVar("T")

DONE, FAILED, WRONG_USE, IN_PART = 0, 1, 2, 3


UNREADABLE = (
    "a data file of the lake is not what its commit says; `neuronledger audit --quick` names it: restore it from a copy"
)


def is_panic(error: BaseException) -> bool:
    """Whether polars panicked, as it does at some files that were changed: no `Exception`, and of a class that it must not name."""
    return type(error).__name__ == "PanicException"


def settings_options(command: Callable[P, T]) -> Callable[P, T]:
    """Every setting as a flag; what is not given comes from the environment, the file, or the default."""
    for name, field in reversed(Settings.model_fields.items()):
        kind: Any = int if field.annotation is int else str
        default = "" if field.default is None else f" (default {field.default})"
        command = click.option(f"--{name.replace('_', '-')}", type=kind, help=f"{field.description}{default}")(command)
    return command


def reported(command: Callable[P, T]) -> Callable[P, T]:
    """Say what went wrong in one sentence, without a traceback, and exit with the right code."""

    @wraps(command)
    def careful(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return command(*args, **kwargs)
        except NeuronLedgerError as error:
            complain(str(error))
            sys.exit(WRONG_USE if isinstance(error, SettingsError) else FAILED)
        except BrokenPipeError:
            raise  # whoever read has seen enough; click ends without a word
        except OSError as error:
            complain(f"{error}. Check the path and the permissions.")
            sys.exit(FAILED)
        except KeyboardInterrupt:
            click.echo("Stopped. What was finished is kept; the same command goes on from there.", err=True)
            sys.exit(130)
        except BaseException as error:
            if not is_panic(error):
                raise
            complain(UNREADABLE)
            sys.exit(FAILED)

    return careful


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="neuronledger")
def main() -> None:
    """Explain every MLP neuron of a language model, score the explanation, and prove where each number came from."""
    # Dagster and the model libraries report through logging and bars; what matters here is said by this command.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DAGSTER_DISABLE_TELEMETRY", "1")
    # Dagster calls parts beta that we use on purpose; a user can do nothing about it.
    warnings.filterwarnings("ignore", message=r".*is currently in (beta|preview)")
    logging.getLogger("dagster").setLevel(logging.CRITICAL)


def layer_range(text: str | None, n_layers: int) -> list[int]:
    """The layers named by a text such as `0-3,7`; all of them for None.

    Raises:
        SettingsError: the text is not of this form, or names a layer that the subject does not have.
    """
    if text is None:
        return list(range(n_layers))
    layers: set[int] = set()
    for part in text.split(","):
        found = re.fullmatch(r"\s*([0-9]{1,6})\s*(?:-\s*([0-9]{1,6})\s*)?", part, re.ASCII)
        if not found:
            raise SettingsError(f"--layers (={text!r}) must be layers and ranges such as 0-3,7")
        first, last = int(found[1]), int(found[2] or found[1])
        if first > last:
            raise SettingsError(f"--layers (={text!r}): {first}-{last} runs backwards; write {last}-{first}")
        if last >= n_layers:
            raise SettingsError(f"--layers (={text!r}): the subject has layers 0 to {n_layers - 1}; there is no {last}")
        layers.update(range(first, last + 1))
    return sorted(layers)


def outside_of(settings: Settings, subject: "SubjectModel") -> "Outside":
    """What tables are made from that is not in the lake, as it is today."""
    from assets.freshness import Outside
    from resources.corpus import open_corpus

    corpus = open_corpus(settings.corpus, column=settings.column)
    return Outside(
        corpus=corpus.fingerprint(),
        tokenizer=subject.tokenizer_hash(),
        weights=subject.fingerprints(),
        checkpoint=subject.weights_hash(),
        parts=subject.parts,
        source=corpus.provenance,
    )


def complain(words: str) -> None:
    """One line on standard error. Words of files and endpoints may stand in it."""
    from explorer.terminal import harmless

    click.echo(f"Error: {harmless(words)}", err=True)


def command_name() -> str:
    """How this command can be typed again: by its name if the shell finds it so, else by its path."""
    found, used = shutil.which("neuronledger"), Path(sys.argv[0]).resolve()
    if found is not None and Path(found).resolve() == used:
        return "neuronledger"
    return str(used.relative_to(Path.cwd()) if used.is_relative_to(Path.cwd()) else used)


def typed(flags: Mapping[str, Any]) -> str:
    """Those flags that were given, as they are typed: with them another command has the same settings."""
    given = {name: value for name, value in flags.items() if value is not None}
    return "".join(f" --{name.replace('_', '-')} {shlex.quote(str(value))}" for name, value in given.items())


def diagnostics() -> Console:
    """Standard error, through a handle of its own where it is a terminal.

    While a step runs, Dagster sends all that is written to the usual handle into the log of the step, bars too.
    """
    if not sys.stderr.isatty():
        return Console(stderr=True)
    return Console(file=os.fdopen(os.dup(sys.stderr.fileno()), "w", encoding="utf-8"))


def screen() -> Console:
    """Standard output; a wide line where it is no terminal, so that nothing is cut."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=160)


def same_subject(lake: "Lake", project: "Project", settings: Settings) -> None:
    """Refuse to mix two models of different shape in one lake."""
    shape = dict(enumerate(project.n_neurons))
    known = lake.read("subject_layers").select("layer", "n_neurons", "subject")
    for layer, n_neurons, subject in known.iter_rows():
        if shape.get(layer) != n_neurons:
            raise SettingsError(
                f"the lake {settings.lake_uri} holds {subject!r}, a model of another shape than "
                f"{settings.subject!r}; give another --lake"
            )


def end_with_the_head(settings: Settings) -> None:
    """Let this command's last line be the head of the ledger, to be noted elsewhere, however the command ends; and sign it.

    A command that fails before it wrote anything has only its error to say.

    Raises:
        SettingsError: it is to be signed, and there is no such key.
    """
    from resources import signature

    if settings.signing_file is not None:
        # Before hours of work rather than after them.
        signature.sign("", settings.signing_file)
    click.get_current_context().with_resource(_saying_the_head(settings))


@contextmanager
def _saying_the_head(settings: Settings) -> Iterator[None]:
    from resources import signature

    before, done = _head(settings), False
    try:
        yield
        done = True
    finally:
        key, head = settings.signing_file, _head(settings)
        # What made a run fail may make this fail too, and was said before.
        with suppress(NeuronLedgerError, OSError):
            if head is not None and (done or head != before):
                screen().print(f"the ledger       {head}", soft_wrap=True)
                if key is not None and (ledger := _lake(settings).ledger) is not None:
                    signature.keep(ledger.files, head, key)
                    screen().print(f"signed with      {key}", soft_wrap=True)


def _head(settings: Settings) -> str | None:
    with suppress(NeuronLedgerError, OSError):
        return _lake(settings).ledger_head()
    return None


def _lake(settings: Settings) -> "DeltaLake":
    from assets.definitions import open_lake

    return open_lake(settings)
