"""Machines: this one alone, or those of a Ray cluster.

On a cluster a piece of a forward pass is one task. A task whose machine is lost runs again on another, and what was
found there is made again if it is still needed. Results stay where they were made, and are joined two by two there,
in a tree, so that what comes to this machine is one result of each layer.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from pipeline.errors import MachinesError, NeuronLedgerError

TRIES = 5
"""Times that a piece is begun before its machines count as lost."""

Work = Callable[[Any, Any], tuple[int, Sequence[Any]]]
Join = Callable[[Any, Any], Any]
Finished = Callable[[Sequence[int], Sequence[int], Callable[[], Iterator[Any]]], None]


class ThisMachine:
    """No other machine."""

    def count(self) -> int:
        return 0

    def reduce(
        self, work: Work, shared: object, pieces: Sequence[Any], join: Join, *, n_results: int, finished: Finished
    ) -> Iterator[Any]:
        """One piece after another, here."""
        results: list[Any] = []
        numbers: list[int] = []
        for index, piece in enumerate(pieces):
            number, found = work(shared, piece)
            numbers.append(number)
            results = [join(one, other) for one, other in zip(results, found, strict=True)] if results else list(found)
            finished(range(index + 1), numbers, partial(iter, results))
        yield from results[:n_results]


class RayMachines:
    """The machines of the Ray cluster that `RAY_ADDRESS` names, or one started here for this process.

    Each has this package installed, in the same version, and reaches the subject under the same name. `device` is the
    subject's: with `auto` or `cuda` a piece takes a GPU if the cluster has any, else all cores of the smallest machine.

    Raises:
        MachinesError: from a method, when Ray is not installed or the cluster cannot be reached.
    """

    def __init__(self, *, device: str) -> None:
        self._may_use_gpus = not device.startswith(("cpu", "mps"))

    def count(self) -> int:
        ray, needs = self._connected()
        each = {"GPU": needs["num_gpus"]} if needs["num_gpus"] else {"CPU": needs["num_cpus"]}
        return max(
            1, sum(int(node["Resources"].get(kind, 0) // of) for node in _alive(ray) for kind, of in each.items())
        )

    def reduce(
        self, work: Work, shared: object, pieces: Sequence[Any], join: Join, *, n_results: int, finished: Finished
    ) -> Iterator[Any]:
        """As `pipeline.ports.Machines.reduce` says."""
        ray, needs = self._connected()
        run = ray.remote(max_retries=TRIES - 1, num_returns=n_results + 1, **needs)(_flat(work))
        joined = ray.remote(max_retries=TRIES - 1, num_cpus=1)(join)

        def in_a_tree(found: list[Any]) -> Any:
            while len(found) > 1:
                found = [joined.remote(*two) if len(two) > 1 else two[0] for two in _pairs(found)]
            return found[0]

        told = ray.put(shared)
        running = {}
        for index, piece in enumerate(pieces):
            number, *results = run.remote(told, piece)
            running[number] = index, results
        done: dict[int, int] = {}
        found: list[list[Any]] = []

        def so_far() -> Iterator[Any]:
            # What was joined once is not joined again, and takes the memory of one.
            found[:] = [[in_a_tree([results[place] for results in found]) for place in range(n_results)]]
            return (_got(ray, result) for result in found[0])

        while running:
            (number,), _ = ray.wait(list(running), num_returns=1)
            index, results = running.pop(number)
            done[index] = _got(ray, number)
            found.append(results)
            finished(list(done), list(done.values()), so_far)
        yield from so_far()

    def _connected(self) -> tuple[Any, dict[str, float]]:
        """Ray, connected, and what one piece needs of a machine."""
        try:
            import ray
        except ImportError as error:
            raise MachinesError("Ray is not installed: pip install 'neuronledger[scale]'") from error
        if not ray.is_initialized():
            try:
                ray.init(log_to_driver=False, logging_level=logging.ERROR, include_dashboard=False)
            except (ConnectionError, RuntimeError, TimeoutError, ValueError) as error:
                raise MachinesError(f"the Ray cluster cannot be reached: {error}; see to RAY_ADDRESS") from error
        nodes = _alive(ray)
        if self._may_use_gpus and any(node["Resources"].get("GPU") for node in nodes):
            return ray, {"num_gpus": 1, "num_cpus": 1}
        cores = [int(node["Resources"]["CPU"]) for node in nodes if node["Resources"].get("CPU", 0) >= 1]
        if not cores:
            raise MachinesError("the Ray cluster has no machine with a core to spare; add one with `ray start`")
        return ray, {"num_gpus": 0, "num_cpus": min(cores)}


def _alive(ray: Any) -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"]]


def _flat(work: Work) -> Callable[[Any, Any], list[Any]]:
    def flat(shared: Any, piece: Any) -> list[Any]:
        number, results = work(shared, piece)
        return [number, *results]

    return flat


def _pairs(found: list[Any]) -> list[list[Any]]:
    return [found[at : at + 2] for at in range(0, len(found), 2)]


def _got(ray: Any, result: Any) -> Any:
    """A result, or the error of whoever made it, as one of ours."""
    try:
        return ray.get(result)
    except ray.exceptions.RayTaskError as error:
        cause = getattr(error, "cause", None)
        if isinstance(cause, NeuronLedgerError):
            raise cause from None
        raise MachinesError(f"a piece of the pass failed on another machine: {cause or error}") from error
    except ray.exceptions.RayError as error:
        said = " ".join(str(error).split())
        raise MachinesError(
            f"machines of the Ray cluster were lost {TRIES} times at one piece, and it is given up ({said[:300]}); "
            "what was finished is kept, so run again when they are back"
        ) from error
