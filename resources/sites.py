"""Sites: what counts as a neuron of a layer. The MLP's own neurons by default; something else when asked for.

    mlp                      inputs of the MLP's output projection
    residual                 axes of the stream after a block
    attention                axes of what the attention adds to the stream
    directions:PATH          projections of a layer's MLP neurons on given vectors
    random-directions:COUNT  projections of a layer's MLP neurons on random unit vectors
    sae:PATH                 latents of a sparse autoencoder

A site is a place in the block, and what is done with the tensor that passes there.
"""

import re
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.errors import SubjectError
from resources import checkpoint
from resources.anatomy import Anatomy, Place
from resources.sparse_autoencoder import SparseAutoencoder, find_autoencoders

if TYPE_CHECKING:
    import torch

KINDS = ("mlp", "residual", "attention", "directions:PATH", "random-directions:COUNT", "sae:PATH")


class Site:
    """What counts as a neuron: here the MLP's own, from which every other site differs in something."""

    name = "mlp"
    writes = True
    """Whether a neuron adds a vector of its own to the stream."""

    def place(self, anatomy: Anatomy) -> Place:
        """Where in each block to look.

        Raises:
            SubjectError: the model has no such place.
        """
        return anatomy.neurons

    def count(self, anatomy: Anatomy, layer: int) -> int:
        """How many neurons a layer has.

        Raises:
            SubjectError: the site's files cannot be read.
        """
        return anatomy.widths[layer]

    def signed(self, anatomy: Anatomy) -> bool:
        """Whether they mean something on both sides of zero."""
        return anatomy.signed

    def missing(self, anatomy: Anatomy, layer: int) -> str | None:  # noqa: ARG002 (others depend on it)
        """Why a layer has no neurons at this site, in one sentence; None if it has."""
        return None

    def made_with(self, anatomy: Anatomy, layer: int) -> Any:  # noqa: ARG002 (others depend on it)
        """What decides the values besides the model, such as the hash of a file."""
        return None

    def values(self, anatomy: Anatomy, layer: int, found: "torch.Tensor") -> "torch.Tensor":  # noqa: ARG002
        """The neurons' values (sequence, token, neuron), in the number format of the model or in float32.

        `found` is what passed at the place, (sequence, token, axis), in the number format of the model.
        """
        return found

    def writing(self, layer: int) -> np.ndarray | None:  # noqa: ARG002 (others depend on it)
        """What each neuron writes to the stream, float32 (neuron, width), where the site alone decides that."""
        return None


class Residual(Site):
    """The axes of the stream after a block."""

    name = "residual"
    writes = False

    def place(self, anatomy: Anatomy) -> Place:
        return anatomy.stream_after

    def count(self, anatomy: Anatomy, layer: int) -> int:  # noqa: ARG002
        return anatomy.width

    def signed(self, anatomy: Anatomy) -> bool:  # noqa: ARG002
        return True


class Attention(Residual):
    """The axes of what the attention adds to the stream."""

    name = "attention"

    def place(self, anatomy: Anatomy) -> Place:
        if anatomy.attention is None:
            raise SubjectError(
                "site `attention`: no output projection of an attention was found whose result is added to the stream "
                "as it is; use site `residual`."
            )
        return anatomy.attention


class RandomDirections(Site):
    """Projections of a layer's MLP neurons on random unit vectors, the same ones for the same layer and count.

    A control: are neurons easier to explain than any other direction in their space (Bills et al. 2023, "Finding
    explainable directions")? Normal draws divided by their length, so that all directions are equally likely.
    """

    writes = False

    def __init__(self, count: int) -> None:
        self.name = f"random-directions:{count}"
        self._count = count
        self._on_device: dict[int, torch.Tensor] = {}

    def count(self, anatomy: Anatomy, layer: int) -> int:  # noqa: ARG002
        return self._count

    def signed(self, anatomy: Anatomy) -> bool:  # noqa: ARG002
        return True

    def made_with(self, anatomy: Anatomy, layer: int) -> Any:
        return {"count": self._count, "layer": layer, "neurons": anatomy.widths[layer], "draw": "numpy PCG64 normal"}

    def values(self, anatomy: Anatomy, layer: int, found: "torch.Tensor") -> "torch.Tensor":
        import torch

        vectors = self._on_device.get(layer)
        if vectors is None or vectors.device != found.device:
            vectors = torch.from_numpy(self.vectors(anatomy, layer)).to(found.device)
            self._on_device[layer] = vectors
        return found.to(torch.float32) @ vectors.T

    def vectors(self, anatomy: Anatomy, layer: int) -> np.ndarray:
        """Float32 (direction, MLP neuron)."""
        drawn = np.random.default_rng([layer, self._count]).standard_normal((self._count, anatomy.widths[layer]))
        return np.asarray(drawn / np.linalg.norm(drawn, axis=1, keepdims=True), dtype=np.float32)


class Directions(RandomDirections):
    """Projections of a layer's MLP neurons on the vectors of a file, taken as they are, of whatever length.

    A safetensors file with a tensor `layer.L` of shape (direction, MLP neuron) for each layer L, or one tensor
    `directions` for all of them.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(0)
        self.name = f"directions:{path}"
        self._path = path

    @cached_property
    def _stored(self) -> dict[str, checkpoint.StoredTensor]:
        if not self._path.is_file():
            raise SubjectError(f"site {self.name!r}: {self._path} is no file; expected a safetensors file.")
        found = {tensor.name: tensor for tensor in checkpoint.header(self._path)}
        fitting = {name: tensor for name, tensor in found.items() if re.fullmatch(r"directions|layer\.\d+", name)}
        if not fitting or any(len(tensor.shape) != 2 or 0 in tensor.shape for tensor in fitting.values()):
            raise SubjectError(
                f"site {self.name!r}: {self._path} holds {', '.join(found) or 'no tensors'}; expected `layer.0`, "
                "`layer.1`, ... or `directions`, each of shape (direction, MLP neuron)."
            )
        return fitting

    def _of(self, layer: int) -> checkpoint.StoredTensor | None:
        return self._stored.get(f"layer.{layer}", self._stored.get("directions"))

    def count(self, anatomy: Anatomy, layer: int) -> int:
        # A layer without directions counts as many as another one: nothing else knows of layers without neurons.
        tensor = self._of(layer) or next(iter(self._stored.values()))
        if tensor.shape[1] != anatomy.widths[layer]:
            raise SubjectError(
                f"site {self.name!r}: {tensor.name} has shape {tensor.shape}, but layer {layer} has "
                f"{anatomy.widths[layer]} MLP neurons; expected (direction, {anatomy.widths[layer]})."
            )
        return tensor.shape[0]

    def missing(self, anatomy: Anatomy, layer: int) -> str | None:  # noqa: ARG002
        if self._of(layer):
            return None
        return f"{self._path} holds no directions for layer {layer}, only {', '.join(sorted(self._stored))}"

    def made_with(self, anatomy: Anatomy, layer: int) -> Any:  # noqa: ARG002
        tensor = self._of(layer)
        return tensor and checkpoint.tensor_hashes({tensor.name: tensor})[tensor.name]

    def vectors(self, anatomy: Anatomy, layer: int) -> np.ndarray:
        tensor = self._of(layer)
        if tensor is None:
            raise SubjectError(f"site {self.name!r}: {self.missing(anatomy, layer)}.")
        return checkpoint.read_float32(tensor)


class Latents(Site):
    """The latents of sparse autoencoders, at most one for each layer."""

    def __init__(self, path: Path) -> None:
        self.name = f"sae:{path}"
        self._path = path

    def _found(self, anatomy: Anatomy) -> dict[int, SparseAutoencoder]:
        found = self._autoencoders
        wrong = [layer for layer, sae in found.items() if layer >= anatomy.count or sae.width != anatomy.width]
        if wrong:
            sae = found[wrong[0]]
            raise SubjectError(
                f"site {self.name!r}: {sae.folder} is for {sae.width} axes at layer {wrong[0]}, but the subject has "
                f"{anatomy.width} axes and layers 0 to {anatomy.count - 1}. It belongs to another model."
            )
        return found

    @cached_property
    def _autoencoders(self) -> dict[int, SparseAutoencoder]:
        return find_autoencoders(self._path)

    def place(self, anatomy: Anatomy) -> Place:
        places = {sae.place(anatomy) for sae in self._found(anatomy).values()}
        if len(places) > 1:
            raise SubjectError(f"site {self.name!r}: its autoencoders read several places of a block; expected one.")
        return places.pop()

    def count(self, anatomy: Anatomy, layer: int) -> int:
        found = self._found(anatomy)
        # A layer without one counts as many as another: nothing else knows of layers without neurons.
        return found.get(layer, next(iter(found.values()))).latents

    def signed(self, anatomy: Anatomy) -> bool:  # noqa: ARG002
        return False

    def missing(self, anatomy: Anatomy, layer: int) -> str | None:
        found = self._found(anatomy)
        if layer in found:
            return None
        return f"{self._path} holds no autoencoder for layer {layer}, only for {', '.join(map(str, sorted(found)))}"

    def made_with(self, anatomy: Anatomy, layer: int) -> Any:
        sae = self._found(anatomy).get(layer)
        return sae and sae.content()

    def values(self, anatomy: Anatomy, layer: int, found: "torch.Tensor") -> "torch.Tensor":
        import torch

        return self._found(anatomy)[layer].encode(found.to(torch.float32))

    def writing(self, layer: int) -> np.ndarray | None:
        sae = self._autoencoders.get(layer)
        return None if sae is None else sae.decoder()


def find_site(site: str) -> Site:
    """The site of a name such as `mlp` or `random-directions:64`. Opens no file.

    Raises:
        SubjectError: there is no such site.
    """
    kind, _, detail = site.partition(":")
    plain: dict[str, type[Site]] = {"mlp": Site, "residual": Residual, "attention": Attention}
    if site in plain:
        return plain[site]()
    if kind == "random-directions" and re.fullmatch(r"[1-9][0-9]{0,5}", detail):
        return RandomDirections(int(detail))
    if kind == "directions" and detail:
        return Directions(Path(detail).expanduser())
    if kind == "sae" and detail:
        return Latents(Path(detail).expanduser())
    raise SubjectError(f"site {site!r} is not known; use one of {', '.join(KINDS)} (COUNT from 1 to 999999).")
