"""A call: one question to the door, `answer`, with all its requests, from the first look to the last reply."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from pipeline.ports import Likely, Reply, Request
from resources import answers, logprobs
from resources.desk import Kept
from resources.journal import Received


@dataclass
class Call:
    """The state of one call of `answer`."""

    run_id: str
    requests: dict[str, Request]
    replies: dict[str, Reply] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    flushes: int = 0
    failures: dict[str, int] = field(default_factory=dict)
    """Attempts at each request that brought no reply, in this run and earlier ones."""
    sent: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_usd: float | None = 0.0
    """Of what was sent; None once the cost of any of it is unknown."""
    silent: bool = True
    """Whether nothing has come from the endpoint since the last request that was given up."""
    unusable: str | None = None
    """Why the endpoint cannot be used, with the remedy. Requests under way still end, as they may be paid for."""

    def unsettled(self) -> list[str]:
        return [request_id for request_id in self.requests if request_id not in self.replies]

    def take(self, request_id: str, received: Received) -> None:
        """Settle a request by what came back."""
        answer = answers.read(received.status, received.body, received.request)
        self.settle(request_id, answer.text, answer.missing_because, answer.model_served, likely=answer.likely)

    def take_kept(self, found: Iterable[Kept]) -> None:
        """Settle requests by what the lake has."""
        for request_id, text, missing_because, model_served, likely in found:
            self.settle(request_id, text, missing_because, model_served, likely=logprobs.unpacked(likely))

    def settle(
        self,
        request_id: str,
        text: str | None,
        missing_because: str | None,
        model_served: str | None,
        *,
        likely: tuple[Likely, ...] | None = None,
    ) -> None:
        self.replies[request_id] = Reply(
            request_id=request_id,
            text=None if missing_because else text,
            missing_because=missing_because,
            model_served=model_served,
            likely=None if missing_because else likely,
        )


class Failed(Exception):  # noqa: N818 - it reads as what it is
    """An attempt that brought no answer to keep."""

    def __init__(
        self,
        reason: str,
        error: str,
        *,
        again: bool,
        heard: bool = True,
        unreachable: bool = False,
        retry_after: float = 0.0,
        unusable: str | None = None,
        status: int | None = None,
    ) -> None:
        super().__init__(error)
        self.reason = reason
        self.error = error
        self.again = again
        self.heard = heard
        self.unreachable = unreachable
        self.retry_after = retry_after
        self.unusable = unusable
        self.status = status
