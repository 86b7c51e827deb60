"""The explorer's server: addresses, what is read for each, and the only socket that a person's browser is answered on.

    /                   the lake                    /5                  one layer
    /5/131              one neuron                  /5/131/0123abcd     every token of one of its texts
    /5/131/history      what changed of it          /5/131/compare      one neuron at two times, or in two lakes
    /compare            two times, or two lakes
    /search             explanations by words       /random             a neuron by chance
    /reviews            verdicts beside scores      /help               keys and words
    /imported           what other systems say      /5/131/imported     the same of one neuron
    /text               a text of one's own, read by the subject
    /5/131/similar      neurons that are like it
    /static/NAME        style, script

    POST /5/131/review          a verdict on an explanation becomes a row of `reviews`
    POST /5/131/verify          its numbers are computed again, in the background
    POST /5/131/explanation     an explanation of one's own becomes a line of a file, which a run reads

With `.json` behind its path a page is what it shows, as JSON; with `?v=`, how it was (see `explorer.moments`). A GET changes
nothing.
"""

import hashlib
import json
import re
import socket
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from threading import Lock
from typing import Any
from urllib.parse import parse_qs

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from explorer import compared, history, imported, lists, neuron_page, own_text, similar
from explorer.answers import LEVEL, Answer, Answers
from explorer.guard import EMBEDDED, MOST_BYTES, Guard, check_address
from explorer.index import FilterError, Filters, Index, best_words, index
from explorer.kept import Kept
from explorer.live import PATIENCE as PATIENCE_WITH_MODEL
from explorer.live import Live
from explorer.meaning import Meaning
from explorer.moments import LakeThen, Moment, moment
from explorer.neuron_page import NotThereError
from explorer.pages import Here, dressed, page
from explorer.people import People, Verdicts
from explorer.staleness import PATIENCE, Staleness
from explorer.verifying import Verifying
from explorer.words import LANGUAGES, preferred, speaker
from pipeline.errors import NeuronLedgerError, SettingsError
from pipeline.ports import SubjectModel
from pipeline.reviews import ReviewError
from resources.delta import DeltaLake

STATIC = {"explorer.css": "text/css", "explorer.js": "text/javascript", "icon.svg": "image/svg+xml"}
LARGEST_INDEX = 2**31 - 1
MOMENTS_KEPT = 4
AGAINST = "against"
"""What the other lake is called in an address."""
LONGEST = {"text": own_text.MOST_LETTERS}
"""Letters of a field of an address that links take along, where it is not 300."""


class MomentError(NeuronLedgerError):
    """An address names no moment of the lake."""


class ElsewhereError(Exception):
    """What was asked for has an address of its own: a path, and what stands in its query."""

    def __init__(self, path: str, **query: str) -> None:
        super().__init__(path)
        self.path, self.query = path, query


@dataclass
class Explorer:
    """The pages of one lake. `flags` are the settings that were typed, so that commands on pages mean the same lake."""

    kept: Kept
    staleness: Staleness
    home: Path
    """The project's folder, where lists of neurons may be."""
    files: Path
    """A folder for what is derived from the lake to answer faster; it can be deleted at any time."""
    flags: Mapping[str, str] = field(default_factory=dict)
    written: Path | None = None
    """The file with explanations of people that the settings name."""
    live: Live[SubjectModel] = field(default_factory=Live)
    """The subject, to read texts with."""
    answers: Answers = field(default_factory=Answers)
    verifying: Verifying = field(default_factory=Verifying)
    """Verifications that were asked for on pages."""
    meaning: Meaning | None = None
    """Search by meaning; without it, similar explanations are found by the vectors alone."""
    against: Kept | None = None
    """Another lake, to compare with."""
    moment: Moment | None = None
    """When the lake was as these pages show it; None for today's."""
    base: "Explorer | None" = None
    """Today's pages, on those of a moment."""
    _moments: "OrderedDict[tuple[str, int | None], Explorer]" = field(default_factory=OrderedDict)
    _lock: Lock = field(default_factory=Lock)

    def __post_init__(self) -> None:
        self._meaning = Meaning(self.files) if self.meaning is None else self.meaning.beside(self.files)

    @property
    def people(self) -> People:
        """The file that explanations of people are noted in."""
        return People(self.written, self.home, self.flags)

    def app(self, *, names: Sequence[str] = (), token: str | None = None) -> Guard:
        """The server as an ASGI application, behind the guard."""
        routes = [
            *self._both("/", "home", Explorer.first),
            *self._both("/search", "search", Explorer.search),
            *self._both("/reviews", "reviews", Explorer.reviews),
            *self._both("/imported", "imported", Explorer.imported),
            *self._both("/text", "own", Explorer.own),
            Route("/random", self._random),
            Route("/static/{name}", self._static),
            *self._both("/help", "help", lambda _, __: {}),
            Route("/{layer}/{neuron}/review", self._review, methods=["POST"]),
            Route("/{layer}/{neuron}/explanation", self._explained, methods=["POST"]),
            Route("/{layer}/{neuron}/verify", self._verify, methods=["POST"]),
            *self._both("/{layer}/{neuron}/similar", "similar", Explorer.similar),
            *self._both(
                "/{layer}/{neuron}/imported", "imported_neuron", Explorer.imported_neuron, state=Explorer._state
            ),
            *self._both("/compare", "compare", Explorer.compare, state=Explorer._states),
            *self._both("/{layer}/{neuron}/compare", "compare_neuron", Explorer.compare_neuron, state=Explorer._states),
            *self._both("/{layer}/{neuron}/history", "history", Explorer.history, state=Explorer._state),
            *self._both("/{layer}/{neuron}/{sequence}", "text", Explorer.text, state=Explorer._state),
            *self._both("/{layer}/{neuron}", "neuron", Explorer.neuron, state=Explorer._state),
            *self._both("/{layer}", "layer", Explorer.layer),
        ]
        handlers: Mapping[Any, Callable[[Request, Exception], Response]] = {
            ElsewhereError: self._elsewhere, 404: self._missing, 405: self._missing, NeuronLedgerError: self._failed, OSError: self._failed,
        }  # fmt: skip
        inner = Starlette(
            routes=routes,
            middleware=[Middleware(GZipMiddleware, minimum_size=500, compresslevel=LEVEL)],
            exception_handlers=dict(handlers),
        )
        return Guard(inner, names=names, token=token)

    # ---- how it was

    def at(self, request: Request) -> "Explorer":
        """The pages of the lake as it was at the moment that an address names; of today's without one.

        Raises:
            MomentError: it names none.
        """
        said = request.query_params.get("v", "").strip()[:100]
        return self.then(said) if said else self

    def then(self, said: str) -> "Explorer":
        """The pages of the lake as it was at a moment.

        Raises:
            MomentError: it names none.
        """
        if self.base is not None:
            return self.base.then(said)
        key = said, self.kept.version("materializations")
        with self._lock:
            known = self._moments.get(key)
        if known is None:
            if not isinstance(self.kept.lake, DeltaLake):
                raise MomentError("this lake keeps no older versions")
            try:
                found = moment(self.kept.lake, said)
            except SettingsError as error:
                raise MomentError(str(error)) from error
            lake = LakeThen(self.kept.lake, found)
            folder = self.files / f"then-{hashlib.sha256(said.encode()).hexdigest()[:16]}"
            known = replace(
                self, kept=Kept(lake, self.kept), staleness=Staleness(lake, None), files=folder, moment=found, base=self
            )
        with self._lock:
            self._moments[key] = known
            self._moments.move_to_end(key)
            while len(self._moments) > MOMENTS_KEPT:
                self._moments.popitem(last=False)
        return known

    def as_of(self) -> dict[str, Any]:
        """What a page says of the moment that it shows; nothing on today's."""
        return {} if self.moment is None else {"then": self.moment.as_dict()}

    def history(self, request: Request) -> dict[str, Any]:
        """What changed of one neuron, and when."""
        layer, neuron = (_index(request.path_params[name]) for name in ("layer", "neuron"))
        neuron_page.must_be_there(self.kept, layer, neuron)
        lake = self.kept.lake
        live = lake.today if isinstance(lake, LakeThen) else lake
        if not isinstance(live, DeltaLake):
            raise NotThereError("This lake keeps no older versions.")
        until = None if self.moment is None else self.moment.versions
        return history.changes(live, layer, neuron, until=until)

    def sides(self, request: Request) -> tuple[Kept, Kept, dict[str, Any]]:
        """The two that an address compares, and what they are called.

        `a` and `b` are moments; empty is today's lake, and `against` the other lake that the server was started with.

        Raises:
            MomentError: a side names no moment, or there is no other lake.
        """
        today = self.base or self
        found: list[Kept] = []
        named: dict[str, Any] = {"against": None if self.against is None else self.against.lake.uri}
        for side in ("a", "b"):
            said = request.query_params.get(side, "").strip()[:100]
            if said == AGAINST:
                if self.against is None:
                    raise MomentError("there is no other lake; start with `neuronledger explore --against LAKE`")
                found.append(self.against)
                named[side] = {"said": said, "uri": self.against.lake.uri, "moment": None}
            else:
                chosen = today.then(said) if said else today
                found.append(chosen.kept)
                named[side] = {"said": said, "uri": chosen.kept.lake.uri,
                               "moment": None if chosen.moment is None else chosen.moment.as_dict()}  # fmt: skip
        return found[0], found[1], named

    def compare(self, request: Request) -> dict[str, Any]:
        """Two moments, or two lakes; before two are chosen, only what there is to choose from."""
        a, b, named = self.sides(request)
        found = {"sides": named, "runs": history.runs((self.base or self).kept)}
        if a is b:
            return found | {"found": None}
        return found | {"found": compared.summary(a, b, request.query_params)}

    def compare_neuron(self, request: Request) -> dict[str, Any]:
        """One neuron at two moments, or in two lakes."""
        layer, neuron = (_index(request.path_params[name]) for name in ("layer", "neuron"))
        a, b, named = self.sides(request)
        return {"sides": named, "runs": history.runs((self.base or self).kept), **compared.neuron(a, b, layer, neuron)}

    # ---- what each page shows

    def index(self) -> Index:
        """The lists of the lake as it is now."""
        return index(self.kept, self.files)

    def first(self, _: Request) -> dict[str, Any]:
        """The lake at a glance."""
        return self.at_a_glance()

    def at_a_glance(self, *, patience: float = 0) -> dict[str, Any]:
        """The lake at a glance; staleness is waited for at most `patience` seconds for each layer."""
        found = lists.home(self.kept, self.index(), self.home)
        fresh = {row["layer"]: asdict(self.staleness.of(row["layer"], patience=patience)) for row in found["layers"]}
        return found | {"fresh": fresh}

    def layer(self, request: Request) -> dict[str, Any]:
        """One layer."""
        number = _index(request.path_params["layer"])
        try:
            found = lists.layer(self.kept, self.index(), number, Filters.of(request.query_params))
        except NotThereError:
            if not imported.has(self.kept, number):
                raise
            raise ElsewhereError("/imported", layer=str(number)) from None
        return found | {"fresh": asdict(self.staleness.of(number))}

    def search(self, request: Request) -> dict[str, Any]:
        """Explanations by words, or a neuron by its name."""
        asked = request.query_params.get("q", "").strip()
        if re.fullmatch(r"[0-9]{1,9}[:/][0-9]{1,9}", asked, re.ASCII):
            raise ElsewhereError("/" + asked.replace(":", "/"))
        return lists.search(self.kept, self.index(), Filters.of(request.query_params), self._meaning)

    def neuron(self, request: Request) -> dict[str, Any]:
        """One neuron."""
        layer, neuron = (_index(request.path_params[name]) for name in ("layer", "neuron"))
        query = request.query_params
        try:
            return self.one(layer, neuron, explanation=query.get("x") or None, simulator=query.get("by") or None)
        except NotThereError:
            is_ours = neuron < self.kept.n_neurons().get(layer, 0)
            if is_ours or not imported.has(self.kept, layer, neuron):
                raise
            raise ElsewhereError(f"/{layer}/{neuron}/imported") from None

    def imported(self, request: Request) -> dict[str, Any]:
        """What other systems say, as it was imported."""
        query = request.query_params
        return imported.listed(self.kept, Filters.of(query), query.get("source", "")[:200])

    def imported_neuron(self, request: Request) -> dict[str, Any]:
        """What other systems say of one neuron."""
        layer, neuron = (_index(request.path_params[name]) for name in ("layer", "neuron"))
        return imported.gather(self.kept, layer, neuron)

    def one(
        self,
        layer: int,
        neuron: int,
        *,
        explanation: str | None = None,
        simulator: str | None = None,
        patience: float = PATIENCE,
    ) -> dict[str, Any]:
        """One neuron, with what people say of it, and whether it is fresh."""
        found = neuron_page.gather(self.kept, layer, neuron, explanation=explanation, simulator=simulator)
        verdicts = self.verdicts().said_of(layer, neuron)
        for one in found["explanations"]:
            one["reviews"] = verdicts.get(one["explanation_id"], [])
        joined = [one for kind in (found["connections"] or {}).values() for one in kind or () if "layer" in one]
        said = best_words(self.kept, [(one["layer"], one["neuron"]) for one in joined])
        for one in joined:
            one["text"] = said.get((one["layer"], one["neuron"]))
        people = self.people.of(layer, neuron, known=found["explanations"])
        return (
            found
            | {"history": history.writes(self.kept, layer, neuron), "revised_from": history.tree(found["explanations"])}
            | {"people": people, "fresh": asdict(self.staleness.of(layer, patience=patience))}
            | {"verified": self.verifying.of(layer, neuron), "imported": imported.said(self.kept, layer, neuron)}
            | self._around(found)
        )

    def verdicts(self) -> Verdicts:
        """What people think of explanations."""
        return Verdicts(self.kept)

    def reviews(self, _: Request) -> dict[str, Any]:
        """All verdicts, beside the scores."""
        return self.verdicts().beside(self.index())

    async def _review(self, request: Request) -> Response:
        """Keep a verdict, and go back to the page."""
        given = await _form(request)
        layer, neuron = (_index(request.path_params[name]) for name in ("layer", "neuron"))
        await run_in_threadpool(self.verdicts().add, layer, neuron, given)
        place = self._here(request).url(f"/{layer}/{neuron}", lang=given.get("lang"))
        return RedirectResponse(f"{place}#x-{given.get('explanation', '')}", status_code=303)

    async def _explained(self, request: Request) -> Response:
        """Note an explanation of one's own, and go back to the page, which says how it is scored."""
        given = await _form(request)
        layer, neuron = (_index(request.path_params[name]) for name in ("layer", "neuron"))
        await run_in_threadpool(neuron_page.gather, self.kept, layer, neuron)  # the lake must have it
        await run_in_threadpool(self.people.add, layer, neuron, given)
        place = self._here(request).url(f"/{layer}/{neuron}", lang=given.get("lang"))
        return RedirectResponse(f"{place}#yours", status_code=303)

    async def _verify(self, request: Request) -> Response:
        """Begin to verify, and go back to the page, which says how far it is."""
        given = await _form(request)
        layer, neuron = (_index(request.path_params[name]) for name in ("layer", "neuron"))
        await run_in_threadpool(neuron_page.gather, self.kept, layer, neuron)  # the lake must have it
        self.verifying.begin(layer, neuron)
        place = self._here(request).url(f"/{layer}/{neuron}", lang=given.get("lang"))
        return RedirectResponse(f"{place}#verified", status_code=303)

    def _around(self, found: Mapping[str, Any]) -> dict[str, Any]:
        layer, neuron = found["layer"], found["neuron"]
        known = self.kept.n_neurons()
        name = f"{layer}:{neuron}"
        return {
            "previous": neuron - 1 if neuron else None,
            "next": neuron + 1 if neuron + 1 < (found["n_neurons"] or 0) else None,
            "below": layer - 1 if known.get(layer - 1, 0) > neuron else None,
            "above": layer + 1 if known.get(layer + 1, 0) > neuron else None,
            "uri": self.kept.lake.uri,
            "commands": {
                "recompute": neuron_page.command(f"run --neurons {name}", self.flags),
                "verify": neuron_page.command(f"verify {name}", self.flags),
                "show": neuron_page.command(f"show {name}", self.flags),
                "read": neuron_page.snippet(
                    self.kept.lake.uri, layer, neuron, None if self.moment is None else self.moment.versions
                ),
            },
        }

    def text(self, request: Request) -> dict[str, Any]:
        """Every token of one text of one neuron."""
        layer, neuron = (_index(request.path_params[name]) for name in ("layer", "neuron"))
        return neuron_page.text(self.kept, layer, neuron, _hexadecimal(request.path_params["sequence"]))

    def own(self, request: Request) -> dict[str, Any]:
        """A text of one's own, and what the neurons do on it."""
        asked = own_text.Asked.of(request.query_params)
        found = own_text.gather(self.kept, self.live, asked, patience=PATIENCE_WITH_MODEL)
        return own_text.explained(found, self.index)

    def similar(self, request: Request) -> dict[str, Any]:
        """The neurons that are like one."""
        layer, neuron = (_index(request.path_params[name]) for name in ("layer", "neuron"))
        return similar.gather(self.kept, self.index(), layer, neuron, self._meaning)

    # ---- answers

    def _both(
        self,
        path: str,
        template: str,
        shown: "Callable[[Explorer, Request], dict[str, Any]]",
        *,
        state: "Callable[[Explorer, Request], Hashable] | None" = None,
    ) -> list[Route]:
        """A page, and the same as JSON. With a `state`, what it depends on besides its address, it is kept."""

        def as_json(request: Request) -> Answer:
            then = self.at(request)
            return Answer.of(_json_of(shown(then, request) | then.as_of()), "application/json")

        def as_html(request: Request) -> Answer:
            then = self.at(request)
            here, found = self._here(request), shown(then, request) | then.as_of()
            embedded = request.query_params.get("embed") == "1" and template == "neuron"
            body = dressed(template, here, found, embedded=embedded)
            headers = (
                {"Content-Security-Policy": EMBEDDED, "Cross-Origin-Resource-Policy": "cross-origin"}
                if embedded
                else {}
            )
            return Answer.of(body.encode("utf-8", errors="replace"), "text/html", headers)

        def kept(make: Callable[[Request], Answer]) -> Callable[[Request], Response]:
            def answer(request: Request) -> Response:
                if state is None:
                    return make(request).response(request)
                here = self._here(request)
                key = (
                    make.__name__,
                    here.path,
                    tuple(sorted(here.query.items())),
                    here.language,
                    state(self.at(request), request),
                )
                return self.answers.answer(key, lambda: make(request)).response(request)

            return answer

        return [Route(f"{path.rstrip('/') or '/index'}.json", kept(as_json)), Route(path, kept(as_html))]

    def _states(self, _: Request) -> Hashable:
        """What the pages that compare depend on besides their address."""
        today = self.base or self
        return today.kept.state(), None if self.against is None else self.against.state()

    def _state(self, request: Request) -> Hashable:
        """What the pages of a neuron depend on besides their address."""
        layer, neuron = (_index(request.path_params[name]) for name in ("layer", "neuron"))
        fresh, verified = self.staleness.of(layer), self.verifying.of(layer, neuron)
        return self.kept.state(), repr(fresh), self.kept.ready("index") is None, self.people.state(), repr(verified)

    def _here(self, request: Request) -> Here:
        asked = request.query_params.get("lang", "")
        language = asked if asked in LANGUAGES else preferred(request.headers.get("accept-language", ""))
        return Here(
            request.url.path,
            {name: value[: LONGEST.get(name, 300)] for name, value in request.query_params.items()},
            language,
        )

    def _random(self, request: Request) -> Response:
        """To a neuron by chance, among those that pass the filters."""
        found = lists.chance(self.at(request).index(), Filters.of(request.query_params))
        address = self._here(request).url(f"/{found['layer']}/{found['neuron']}")
        return RedirectResponse(address, status_code=302, headers={"Cache-Control": "no-store"})

    def _static(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name not in STATIC:
            raise NotThereError(f"There is no file {name}.")
        return FileResponse(Path(__file__).parent / "static" / name, media_type=STATIC[name])

    def _elsewhere(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, ElsewhereError)  # noqa: S101 - for the type checker
        path = f"{error.path}.json" if request.url.path.endswith(".json") else error.path
        return RedirectResponse(self._here(request).url(path, **error.query), status_code=302)

    def _missing(self, request: Request, error: Exception) -> Response:
        status = getattr(error, "status_code", 404)
        return self._sorry(
            request, status, "There is no such page." if status == 404 else "This address is not asked so."
        )

    def _failed(self, request: Request, error: Exception) -> Response:
        # What is wrong with a form is the visitor's; a file of the project that cannot be read is not.
        is_asked_wrongly = isinstance(error, FilterError | ReviewError | MomentError) or (
            isinstance(error, SettingsError) and request.method == "POST"
        )
        status = 404 if isinstance(error, NotThereError) else 400 if is_asked_wrongly else 500
        return self._sorry(request, status, str(error))

    def _sorry(self, request: Request, status: int, said: str) -> Response:
        if request.url.path.endswith(".json"):
            return _json({"error": said}, status=status)
        # A moment that is none must not follow the visitor to the next page.
        here = replace(self._here(request), kept=("lang",))
        t = speaker(here.language)
        title, said = t("Not found") if status in (404, 405) else t("This cannot be shown"), t(said)
        body = page("error", here, title=title, said=said, embedded=False)
        return HTMLResponse(body.encode("utf-8", errors="replace"), status_code=status)


def _index(text: str) -> int:
    """A layer or a neuron in a path.

    Raises:
        NotThereError: it is no whole number, or none that can be an index.
    """
    if not (text.isascii() and text.isdigit() and len(text) <= 10 and int(text) <= LARGEST_INDEX):
        raise NotThereError(f"{text[:40]!r} is no index of a layer or a neuron; write a whole number, as in /5/131.")
    return int(text)


async def _form(request: Request) -> dict[str, str]:
    """The fields of a form, each once."""
    found = bytearray()
    async for piece in request.stream():
        found += piece
        if len(found) > MOST_BYTES:
            break
    try:
        fields = parse_qs(found[:MOST_BYTES].decode("utf-8", errors="replace"), max_num_fields=20)
    except ValueError:
        raise ReviewError("a form of this server has at most 20 fields; load the page again") from None
    return {name: values[-1] for name, values in fields.items()}


def _hexadecimal(text: str) -> str:
    if not (len(text) <= 64 and text.isascii() and text.isalnum()):
        raise NotThereError(f"{text[:40]!r} is no name of a text.")
    return text


def _json_of(shown: Any) -> bytes:
    # In ASCII: no character of a text can be taken for anything else, and no half of one fails to be encoded.
    return json.dumps(shown, default=str, allow_nan=False).encode("ascii")


def _json(shown: Any, *, status: int = 200) -> Response:
    return Response(_json_of(shown), status_code=status, media_type="application/json")


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens there; port 0 takes any that is free.

    Raises:
        SettingsError: the address cannot be used.
    """
    try:
        family, kind, _, _, address = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        # So that whoever is told the address can go there at once.
        listening.listen(128)
    except OSError as error:
        raise SettingsError(
            f"port {port} of {host} cannot be used ({error.strerror or error}); give another --port"
        ) from None
    return listening


def serve(explorer: Explorer, *, host: str, port: int, token: str | None, said: Callable[[str], None]) -> None:
    """Answer until stopped. `said` is told the address.

    Raises:
        SettingsError: others could reach the address and there is no token, or the address cannot be used.
    """
    import uvicorn

    check_address(host, token)
    with listen(host, port) as listening:
        name = f"[{host.strip('[]')}]" if ":" in host else host
        said(f"http://{name}:{listening.getsockname()[1]}")
        app = explorer.app(names=[name], token=token)
        config = uvicorn.Config(app, log_level="critical", server_header=False, lifespan="off", access_log=False)
        uvicorn.Server(config).run(sockets=[listening])
