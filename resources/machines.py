"""Machines: this one alone, or those of a Ray cluster.

On a cluster a piece of a forward pass is one task. A task whose machine is lost runs again on another, and what was
found there is made again if it is still needed. Results stay where they were made, and are joined two by two there,
in a tree, so that what comes to this machine is one result of each layer.

A piece of what a language model is asked is one task too. All of them ask at one desk (`resources.desk`), which stands
beside the journal on the machine of the command: a reply is kept there before anyone reads it, so that what a lost machine
had asked is not paid for again, and the pace and the budget are those of all machines together.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

from pipeline.errors import MachinesError, NeuronLedgerError
from pipeline.ports import Answer, LanguageModel
from resources.desk import FarDesk, Keeper
from resources.language import OpenAICompatible

TRIES = 5
"""Times that a piece is begun before its machines count as lost."""

AT_THE_DESK = 10_000
"""Questions that may wait at the desk of all machines at once."""
AT_THE_END = 90.0
"""Seconds that what is under way has to end, where a run ends early."""

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

    def ask(
        self,
        work: Callable[[Any, Any, Answer], Any],
        shared: object,
        pieces: Iterable[Any],
        language: LanguageModel,
        *,
        run_id: str,
    ) -> Iterator[Any]:
        """One piece after another, here."""
        for piece in pieces:
            yield work(shared, piece, partial(language.answer, run_id=run_id))


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

    def ask(
        self,
        work: Callable[[Any, Any, Answer], Any],
        shared: object,
        pieces: Iterable[Any],
        language: LanguageModel,
        *,
        run_id: str,
    ) -> Iterator[Any]:
        """As `pipeline.ports.Machines.ask` says. The desk stands on this machine, beside the journal."""
        if not isinstance(language, OpenAICompatible) or not language.may_be_spread():
            yield from ThisMachine().ask(work, shared, pieces, language, run_id=run_id)
            return
        ray, _ = self._connected()
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        keeper = ray.remote(num_cpus=0, max_concurrency=AT_THE_DESK, scheduling_strategy=here)(Keeper).remote(
            *language.keeper()
        )
        run = ray.remote(num_cpus=1, max_retries=0)(_asked)
        told = [ray.put(each) for each in (language, shared)]
        places = max(1, int(sum(node["Resources"].get("CPU", 0) for node in _alive(ray))))
        running: dict[Any, tuple[int, Any, int, str]] = {}
        results: dict[int, Any] = {}
        left, first = enumerate(pieces), 0

        def begin(index: int, piece: Any, tries: int) -> None:
            name = f"{index}.{tries}"
            running[run.remote(work, (keeper, name, run_id), *told, piece)] = index, piece, tries, name

        try:
            while True:
                # Not far ahead of what was taken, so that only some pieces are in memory.
                while len(running) + len(results) < 2 * places and (following := next(left, None)) is not None:
                    begin(*following, 1)
                if not running:
                    break
                (ended,), _ = ray.wait(list(running), num_returns=1)
                index, piece, tries, name = running.pop(ended)
                try:
                    results[index] = ray.get(ended)
                except ray.exceptions.RayTaskError:
                    _got(ray, ended)
                except ray.exceptions.RayError:
                    _got(ray, keeper.lost.remote(name))
                    if tries == TRIES:
                        _got(ray, ended)
                    begin(index, piece, tries + 1)
                    continue
                language.flush(run_id=run_id)
                while first in results:
                    yield results.pop(first)
                    first += 1
        finally:
            if running:
                _got(ray, keeper.stop.remote("another piece of the work failed"))
                ray.wait(list(running), num_returns=len(running), timeout=AT_THE_END)
            language.budget.spend_as(_got(ray, keeper.spent.remote()))
            ray.kill(keeper)
            language.flush(run_id=run_id)

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


_doors: dict[str, OpenAICompatible] = {}
"""The door of the run that this process last worked for: a model that it has loaded is there for the next piece."""


def _asked(
    work: Callable[[Any, Any, Answer], Any], asking: tuple[Any, str, str], language: Any, shared: Any, piece: Any
) -> Any:
    """Work on one piece, on any machine; `asking` is the keeper, the name of the piece, and the run."""
    keeper, name, run_id = asking
    if run_id not in _doors:
        _doors.clear()
        _doors[run_id] = language
    desk = FarDesk(keeper, name)
    return work(shared, piece, lambda requests: _doors[run_id].answer_far(requests, desk, run_id=run_id))


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
