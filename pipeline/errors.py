"""What can go wrong, as one small family.

    NeuronLedgerError
    ├── SettingsError       a flag, a variable or a line of neuronledger.toml is wrong
    ├── SubjectError        the subject model cannot be loaded, or has no MLP neurons
    ├── CaptureError        captures of different layers, or with a window in common, cannot be merged
    ├── CorpusError         the corpus cannot be read, or holds no text
    ├── LakeError           a table is damaged, or rows would break one of its rules
    ├── FormError           a file is not of the form of another system that it is read as
    ├── MachinesError       other machines cannot be reached, or are lost
    └── LanguageModelError  the endpoint cannot be used at all (one failed reply is a row, not an error)

Every message names the value, what was expected and what to do. The command line prints it without a traceback.
"""


class NeuronLedgerError(Exception):
    """The root: catch this to catch everything the project raises on purpose."""


class SettingsError(NeuronLedgerError):
    """A flag, an environment variable or a line of `neuronledger.toml` is wrong."""


class SubjectError(NeuronLedgerError):
    """The subject model cannot be loaded, or it has no MLP neurons to explain."""


class CaptureError(NeuronLedgerError):
    """Captures cannot be merged, or a kept one does not belong to this run."""


class CorpusError(NeuronLedgerError):
    """The corpus cannot be read, or holds no text."""


class LakeError(NeuronLedgerError):
    """A table is damaged, or rows would break one of its rules."""


class FormError(NeuronLedgerError):
    """A file is not of its form. `offset` is where, in characters, if a place is to blame."""

    def __init__(self, reason: str, offset: int | None = None) -> None:
        super().__init__(reason)
        self.offset = offset


class MachinesError(NeuronLedgerError):
    """Machines that a forward pass was to be spread over cannot be reached, or were lost too often."""


class LanguageModelError(NeuronLedgerError):
    """The language-model endpoint cannot be used at all."""
