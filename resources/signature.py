"""Signatures of the ledger's head: who vouches for all that was written up to then.

    {lake}/_ledger/signatures/{the 64 digits of the head}.sig      as `ssh-keygen -Y sign -n neuronledger` makes it

Keys are SSH keys, which people and machines have, and the work is left to OpenSSH: a key may lie in a file or, if the file
is a public key, in an agent or on a token. Who doubts this program checks a signature without it:

    printf %s sha256:0f3a... | ssh-keygen -Y verify -n neuronledger -f allowed_signers -I WHO -s 0f3a....sig

`allowed_signers` is a file of lines `WHO ssh-ed25519 AAAA...` (ssh-keygen(1), "ALLOWED SIGNERS").
"""

import subprocess
import tempfile
from pathlib import Path

from pipeline.errors import SettingsError
from resources.lake_files import TAG, Files

FOLDER = "_ledger/signatures"
NAMESPACE = "neuronledger"
PATIENCE = 120
"""Seconds that OpenSSH has, with a person who types a passphrase or touches a token."""


def keep(files: Files, head: str, key: Path) -> None:
    """Sign a head and keep the signature beside the ledger, unless one is there.

    Raises:
        SettingsError: as `sign`.
        OSError: it cannot be written.
    """
    files.create(f"{FOLDER}/{head.removeprefix(TAG)}.sig", sign(head, key))


def kept(files: Files) -> dict[str, bytes]:
    """The signatures beside the ledger by the heads that they are of.

    Raises:
        OSError: one cannot be read.
    """
    names = [name for name in files.names(FOLDER) if name.endswith(".sig")]
    return {TAG + name.removeprefix(f"{FOLDER}/").removesuffix(".sig"): files.read(name) for name in names}


def sign(head: str, key: Path) -> bytes:
    """The signature of a head by a key, as text in ASCII.

    Raises:
        SettingsError: there is no such key, it cannot sign, or OpenSSH is not installed.
    """
    if not key.is_file():
        raise SettingsError(
            f"--sign-with (={str(key)!r}) is no file; give an SSH key, made by `ssh-keygen -t ed25519 -f FILE`"
        )
    done = _ssh_keygen("-Y", "sign", "-n", NAMESPACE, "-f", str(key), said=head)
    if done.returncode or b"BEGIN SSH SIGNATURE" not in done.stdout:
        why = " ".join(done.stderr.decode(errors="replace").split())
        raise SettingsError(f"--sign-with (={str(key)!r}) cannot sign: {why}")
    return done.stdout


def signer(head: str, signature: bytes, allowed: Path) -> str | None:
    """Who of the allowed signers signed this head; None if nobody of them did.

    Raises:
        SettingsError: the file of allowed signers is not there, or OpenSSH is not installed.
    """
    if not allowed.is_file():
        raise SettingsError(
            f"--signers (={str(allowed)!r}) is no file; give one of lines such as `ada ssh-ed25519 AAAA...`"
        )
    with tempfile.NamedTemporaryFile(suffix=".sig") as file:
        file.write(signature)
        file.flush()
        named = ("-f", str(allowed), "-s", file.name)
        found = _ssh_keygen("-Y", "find-principals", *named)
        for who in found.stdout.decode(errors="replace").splitlines() if not found.returncode else ():
            if not _ssh_keygen("-Y", "verify", "-n", NAMESPACE, "-I", who, *named, said=head).returncode:
                return who
    return None


def _ssh_keygen(*words: str, said: str = "") -> "subprocess.CompletedProcess[bytes]":
    try:
        return subprocess.run(  # noqa: S603 (no shell; the words are ours or paths)
            ["ssh-keygen", *words],  # noqa: S607 (OpenSSH as the user has it)
            input=said.encode("ascii"),
            capture_output=True,
            timeout=PATIENCE,
            check=False,
        )
    except FileNotFoundError as error:
        raise SettingsError("signatures need OpenSSH's `ssh-keygen`; install openssh-client") from error
    except subprocess.TimeoutExpired as error:
        raise SettingsError(f"`ssh-keygen` did not end within {PATIENCE} s; is it waiting for a passphrase?") from error
