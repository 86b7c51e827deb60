"""Budget: what a run may spend on language models, which is never passed.

What is under way counts at the most that it can cost, until its reply says what it did cost. A request that does not fit
waits for those under way; if it does not fit then either, it is not sent, and nothing is sent after it.
"""

from dataclasses import dataclass, field

from pipeline.errors import LanguageModelError
from pipeline.ports import Request
from resources.prices import Price

A_MESSAGE = 16
"""Tokens around a message, at most: OpenAI's chat format takes 3 or 4 and the role."""


def most_prompt_tokens(request: Request) -> int:
    """More tokens than any tokenizer makes of a request: no token is shorter than a byte of UTF-8."""
    return sum(len(text.encode("utf-8", errors="replace")) + A_MESSAGE for _, text in request.messages) + A_MESSAGE


@dataclass
class Budget:
    """Limits of one run in US dollars and in tokens; None for no limit."""

    usd: float | None = None
    tokens: int | None = None
    spent_usd: float = 0.0
    spent_tokens: int = 0
    is_used_up: bool = False
    """Whether a request did not fit although nothing was under way."""
    _held: dict[str, tuple[float, int]] = field(default_factory=dict)
    _held_usd: float = 0.0
    _held_tokens: int = 0

    def admit(self, request_id: str, request: Request, price: Price | None) -> bool:
        """Whether a request may be sent; the most that it can cost is then held back until it is `settled`.

        If not, it may fit once what is under way is settled, unless the budget `is_used_up`.

        Raises:
            LanguageModelError: the budget is in US dollars, and the price of the model is not known.
        """
        if self.usd is None and self.tokens is None:
            return True
        if self.usd is not None and price is None:
            raise LanguageModelError(
                f"the price of `{request.model}` is not known, so a budget of ${self.usd:g} cannot be kept; name it in "
                "a file (`--prices prices.toml`), or give `--budget-tokens`"
            )
        usd, tokens = _most(request, price)
        if self.is_used_up or not self._fits(usd, tokens):
            self.is_used_up = self.is_used_up or not self._held
            return False
        self._hold(request_id, usd, tokens)
        return True

    def hold(self, request_id: str, request: Request, price: Price | None) -> None:
        """Hold back the most that a request can cost which was sent already, whether it fits or not."""
        if request_id not in self._held and (self.usd is not None or self.tokens is not None):
            self._hold(request_id, *_most(request, price))

    def settled(self, request_id: str, *, usd: float | None = None, tokens: int | None = None) -> None:
        """A request came back. What its reply does not say counts at the most that was held for it.

        One that brought no reply is settled with zeros, for a provider charges for replies.
        """
        held_usd, held_tokens = self._held.pop(request_id, (0.0, 0))
        # Rounding of many differences must not add up.
        self._held_usd = self._held_usd - held_usd if self._held else 0.0
        self._held_tokens -= held_tokens
        self.spent_usd += held_usd if usd is None else usd
        self.spent_tokens += held_tokens if tokens is None else tokens

    def spend_as(self, other: "Budget") -> None:
        """Take over what was spent of a copy of this budget."""
        self.spent_usd, self.spent_tokens, self.is_used_up = other.spent_usd, other.spent_tokens, other.is_used_up

    def lost(self, request_id: str) -> None:
        """An attempt ran out of time. It may be charged for, so it counts at the most, and the next one holds as much."""
        usd, tokens = self._held.get(request_id, (0.0, 0))
        self.spent_usd += usd
        self.spent_tokens += tokens

    def _fits(self, usd: float, tokens: int) -> bool:
        usd += self.spent_usd + self._held_usd
        tokens += self.spent_tokens + self._held_tokens
        return (self.usd is None or usd <= self.usd) and (self.tokens is None or tokens <= self.tokens)

    def _hold(self, request_id: str, usd: float, tokens: int) -> None:
        self._held[request_id] = (usd, tokens)
        self._held_usd += usd
        self._held_tokens += tokens


def _most(request: Request, price: Price | None) -> tuple[float, int]:
    """The most that a request can cost: US dollars, as far as the price is known, and tokens."""
    prompt, completion = most_prompt_tokens(request), request.max_tokens
    return (0.0 if price is None else price.cost(prompt=prompt, completion=completion)), prompt + completion
