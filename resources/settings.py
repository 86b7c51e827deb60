"""Settings: what a user chose, from the command line, the environment and `neuronledger.toml`, in this order.

Every field is a flag (`--windows`), a variable (`NEURONLEDGER_WINDOWS`) and a line of the file (`windows = 3072`). API
keys are none of them: they are read from the environment by the door that needs them, and appear nowhere else.
"""

import os
import re
import tomllib
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource

from pipeline.errors import SettingsError

FILE = "neuronledger.toml"
HOME = "NEURONLEDGER_HOME"


class Settings(BaseSettings):
    """Everything that can be chosen, with its default."""

    model_config = SettingsConfigDict(env_prefix="NEURONLEDGER_", extra="forbid", frozen=True)

    subject: str = Field("demo", description="subject model: `demo`, a Hugging Face name, or a folder", min_length=1)
    revision: str | None = Field(None, description="revision of a Hugging Face model")
    corpus: str = Field("demo", description="corpus: `demo`, a file, a folder, a glob, or a Hugging Face dataset")
    column: str = Field("text", description="column that holds the text, in JSONL and Parquet files")
    windows: int = Field(3072, ge=1, description="most windows of text to read, one for each document")
    length: int = Field(64, ge=2, le=4096, description="tokens of a window")
    seed: int = Field(0, ge=0, lt=2**32, description="seed of everything that is drawn at random")
    device: str = Field("auto", description="where to compute: `auto`, `cpu`, `cuda`, or several: `cuda:0,cuda:1`")
    engine: Literal["local", "ray"] = Field(
        "local", description="machines of a forward pass: `local`, or `ray` for those of the cluster in RAY_ADDRESS"
    )
    dtype: Literal["float32", "bfloat16", "float16", "openai-compat"] = Field(
        "float32",
        description="number format of the subject: `float32`, `bfloat16`, `float16`, or `openai-compat` (float16 with "
        "the GELU of the published GPT-2 activations)",
    )
    site: str = Field(
        "mlp",
        description="what counts as a neuron: `mlp`, `residual`, `attention`, `directions:PATH`, "
        "`random-directions:COUNT`, `sae:PATH`",
        min_length=1,
    )
    explainer: str | None = Field(
        None,
        description="language model that explains, `local:FOLDER` for one in this process; none for the baselines alone",
    )
    simulator: str | None = Field(None, description="language model that simulates; the explainer unless given")
    methods: str = Field(
        "token-activation-pairs",
        description="ways to ask the explainer, separated by commas: `token-activation-pairs`, `highlight`, "
        "`highlight-values`, `highlight-reasoning`, `contrastive`, `hypotheses:5`, `best-of:5`, `summary`, `next-token-pairs`, `logits`, `token-space`, "
        "`token-space-weights`; "
        "and of the first of them `revision`; `random-explanation`, `revision-random` and `empty` are controls",
    )
    language: str = Field("en", description="language of the explanations: `en`, `de`, `es`, `fr`")
    simulation: Literal[
        "json",
        "json-many",
        "json-sparse",
        "json-closed",
        "json-schema",
        "json-logprobs",
        "json-logprobs-9",
        "all-at-once",
        "all-at-once-9",
        "one-at-a-time",
        "one-at-a-time-9",
    ] = Field(
        "json",
        description="how the simulator is asked: `json` one excerpt at a time, `json-schema` in a shape that the endpoint "
        "holds it to, `json-many` five, for half the tokens, `json-sparse` ten, for a reply without zeros, `json-closed` with "
        "a mark at its end, `json-logprobs` with probabilities; of completions: `all-at-once` (with echo), `one-at-a-time`; "
        "the last three with `-9` on a scale from 0 to 9, for models that spell 10 in two tokens",
    )
    scorers: str = Field(
        "",
        description="further scorers, separated by commas: `detection`, `fuzzing`, `fuzzing_active`, `intruder` ask the simulator's model; "
        "`surprisal` (or `surprisal:MODEL`) foretells texts, `embedding:MODEL` compares vectors; `ablation` puts the simulation in the neuron's place, in a causal subject; none unless given",
    )
    encoder: str | None = Field(
        None,
        description="encoder of explanations for search by meaning (`embed`): `local:FOLDER`, `local:demo`, or a model of the "
        "endpoint; none unless given",
    )
    base_url: str = Field("https://api.openai.com/v1", description="OpenAI-compatible endpoint")
    concurrency: int = Field(16, ge=1, le=1000, description="requests in flight at a time")
    timeout: int = Field(
        120, ge=1, le=86_400, description="seconds that an answer may take; a model on a slow machine needs more"
    )
    batch: Literal["no", "yes"] = Field(
        "no",
        description="whether to ask through the provider's batch API, for less (at OpenAI half) and within a day: `yes` or `no`",
    )
    select: str = Field(
        "all",
        description="neurons of each layer to ask about: `all`, `random:50`, `top:50:context` or another statistic",
    )
    prices: str | None = Field(
        None, description="TOML file with prices of language models, before those in the package"
    )
    human_explanations: str | None = Field(
        None, description="CSV or JSONL file of explanations by people: neuron, explanation, author"
    )
    grow: Literal["no", "yes"] = Field(
        "no",
        description="whether to keep what was captured (about 30 kB for each neuron), so that when the corpus grows only the new "
        "text is read: `yes` or `no`",
    )
    sign_with: str | None = Field(
        None,
        description="file of an SSH key that signs the head of the ledger at the end of a run; see `audit --signers`",
    )
    automation_budget_usd: float | None = Field(
        None,
        ge=0,
        allow_inf_nan=False,
        description="most US dollars that this lake may cost in all while Dagster explains by itself what a change of the model "
        "made stale; without it Dagster asks no language model by itself",
    )
    lake: str | None = Field(
        None, description="folder or object-store prefix of the tables; `lake/<subject>` (and the site) by default"
    )

    @field_validator(
        "revision",
        "explainer",
        "simulator",
        "encoder",
        "prices",
        "human_explanations",
        "automation_budget_usd",
        "sign_with",
        "lake",
        mode="before",
    )
    @classmethod
    def _empty_is_none(cls, value: Any) -> Any:
        """An empty text is no choice, so that a flag can take back what the file says."""
        return value if value != "" else None

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 (the base class names it)
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003 (the base class names it)
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Flag before environment before file."""
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls, toml_file=home() / FILE)

    @property
    def lake_uri(self) -> str:
        """Where the tables are: an absolute folder, or an object-store prefix as it was given."""
        if self.lake is None:
            return str(home() / "lake" / self._explained)
        if "://" in self.lake:
            return self.lake
        return str((home() / _expanded(self.lake)).resolve())

    @property
    def price_file(self) -> Path | None:
        """The user's own prices."""
        return None if self.prices is None else (home() / _expanded(self.prices)).resolve()

    @property
    def signing_file(self) -> Path | None:
        """The key that signs."""
        return None if self.sign_with is None else (home() / _expanded(self.sign_with)).resolve()

    @property
    def human_file(self) -> Path | None:
        """The explanations that people wrote."""
        chosen = self.human_explanations
        return None if chosen is None else (home() / _expanded(chosen)).resolve()

    @property
    def instance(self) -> Path:
        """The Dagster instance folder of this lake: runs and events of two subjects never mix."""
        return home() / "dagster_home" / (slug(self.lake_uri) if self.lake is not None else self._explained)

    @property
    def releases(self) -> Path:
        """Where versions of this lake for others are kept."""
        return home() / "releases" / (slug(self.lake_uri) if self.lake is not None else self._explained)

    @property
    def _explained(self) -> str:
        """A folder name for what is explained: the subject, and the site unless it is the MLP's neurons."""
        # No name of a subject has a line break, so none can look like a subject with a site.
        return slug(self.subject if self.site == "mlp" else f"{self.subject}\n{self.site}")

    def for_children(self) -> dict[str, str]:
        """These settings as environment variables, for the processes that Dagster starts."""
        chosen = {
            f"NEURONLEDGER_{name.upper()}": "" if value is None else str(value)
            for name, value in self.model_dump().items()
        }
        return {**chosen, HOME: str(home()), "DAGSTER_HOME": str(self.instance)}


def load(**flags: Any) -> Settings:
    """The settings in force, with those flags that were given (None means not given).

    Raises:
        SettingsError: a value is wrong, or the file has an unknown line or cannot be read.
    """
    given = {name: value for name, value in flags.items() if value is not None}
    try:
        return Settings(**given)
    except ValidationError as error:
        raise SettingsError(_sentence(error, given)) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{home() / FILE} is not valid TOML: {error}") from None
    except OSError as error:
        raise SettingsError(f"{home() / FILE} cannot be read: {error.strerror}") from None


def home() -> Path:
    """The project folder: NEURONLEDGER_HOME, or the nearest folder upwards with `neuronledger.toml`, or this one."""
    if chosen := os.environ.get(HOME):
        return _expanded(chosen).resolve()
    here = Path.cwd()
    return next((folder for folder in (here, *here.parents) if (folder / FILE).is_file()), here)


def _expanded(path: str) -> Path:
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise SettingsError(f"{path!r} names the home folder of nobody; write the folder in full") from None


def slug(name: str) -> str:
    """A folder name for a subject: lower case letters, digits, dots and dashes, at most 64 of them."""
    import hashlib

    plain = re.sub(r"[^a-z0-9._-]+", "-", name.lower()).strip("-.") or "subject"
    if plain == name and len(plain) <= 64:
        return plain
    # Two names may look alike once simplified, so the rest of the name is kept as a hash.
    return f"{plain[-48:].strip('-.')}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _sentence(error: ValidationError, flags: dict[str, Any]) -> str:
    first = error.errors()[0]
    name = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        known = ", ".join(sorted(Settings.model_fields))
        return f"`{name}` is no setting; known are {known}"
    origin = f"--{name.replace('_', '-')}"
    if name not in flags:
        variable = f"NEURONLEDGER_{name.upper()}"
        origin = variable if variable in os.environ else f"`{name}` in {home() / FILE}"
    description = Settings.model_fields[name].description if name in Settings.model_fields else ""
    return f"{origin} (={first['input']!r}): {first['msg'][0].lower()}{first['msg'][1:]}. It means: {description}."
