"""What the engine generates, as OpenAI's answers: whole, or as a stream with notes for the gateway."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as Listing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from services.common import sse
from services.common.errors import ApiError
from services.common.wire import Answer, CompletionRequest, FinishReason, GenerationRequest, Kind, Usage
from services.inference.chat import prompt_text
from services.inference.engine.generation import Piece, together
from services.inference.logprobs import Logprobs

if TYPE_CHECKING:
    from services.inference.engine.generation import Generation


@dataclass(eq=False)
class Choice:
    """One of a request's answers.

    opening: text that stands before what is generated, where the client wants its prompt repeated.
    fresh: tokens that no note has carried yet.
    """

    index: int
    generation: Generation
    logprobs: Logprobs
    opening: str = ""
    fresh: list[int] = field(default_factory=list)

    def take(self, piece: Piece) -> None:
        """Takes in a piece, all but its text."""
        if piece.token is not None:
            self.fresh.append(piece.token)
            self.logprobs.add(piece)


Pieces = Iterator[tuple[Choice, Piece]]


def make_choices(
    kind: Kind, asked: GenerationRequest, generations: Listing[Generation], tokenizer: Any
) -> list[Choice]:
    """The choices of a request, in the order in which `submitted` gives their generations."""
    given = asked.resume_token_ids or ()
    before = given if asked.logprob_count is not None else ()
    choices = [
        Choice(index, generation, Logprobs(kind, tokenizer, before)) for index, generation in enumerate(generations)
    ]
    if isinstance(asked, CompletionRequest) and asked.echo and not given:
        for choice in choices:
            choice.opening = prompt_text(asked.prompts[choice.index // (asked.n or 1)], tokenizer)
    return choices


def read(choices: Listing[Choice]) -> Pieces:
    """What the steps bring, choice by choice as it comes, up to the last end.

    Raises:
        ApiError: why there will be no more.
    """
    of = {choice.generation: choice for choice in choices}
    return ((of[generation], piece) for generation, piece in together(list(of)))


def usage(asked: GenerationRequest, choices: Listing[Choice]) -> Usage:
    """What a request used; a prompt counts once, however many choices it was given."""
    sequences = [choice.generation.sequence for choice in choices]
    prompts = sequences[:: asked.n or 1]
    joules = [sequence.joules for sequence in sequences if sequence.joules is not None]
    return Usage(
        prompt_tokens=sum(sequence.prompt_length for sequence in prompts),
        completion_tokens=sum(sequence.generated for sequence in sequences),
        cached_tokens=sum(sequence.cached for sequence in prompts),
        compute_seconds=sum(sequence.seconds for sequence in sequences),
        energy_joules=sum(joules) if len(joules) == len(sequences) else None,
    )


def whole(head: Answer, asked: GenerationRequest, choices: Listing[Choice], pieces: Pieces) -> dict[str, Any]:
    """The body of an answer that is not streamed.

    Raises:
        ApiError: why there is none.
    """
    texts = [[choice.opening] for choice in choices]
    finishes: list[FinishReason] = ["stop"] * len(choices)
    for choice, piece in pieces:
        choice.take(piece)
        texts[choice.index].append(piece.text)
        finishes[choice.index] = piece.finish or "stop"
    return head.whole(
        [("".join(text), finish) for text, finish in zip(texts, finishes, strict=True)],
        usage(asked, choices),
        [choice.logprobs.take() for choice in choices],
    )


def stream(head: Answer, asked: GenerationRequest, choices: Listing[Choice], pieces: Pieces) -> Iterator[bytes]:
    """The frames of a stream, each with a note for the gateway.

    A note says how many tokens were generated so far (`completion_tokens`, in all choices), and which of this choice
    since its last note (`token_ids`); of which choice (`index`), where there are several. The first one, and the one
    of an error, also says how many the prompt has (`prompt_tokens`). Each says what the request has cost so far
    (`compute_seconds`), which nobody could tell any more if this process were killed.
    """
    resumed = len(asked.resume_token_ids or ())
    count = resumed
    first: dict[str, Any] = {"prompt_tokens": usage(asked, choices).prompt_tokens}

    def frame(body: dict[str, Any], choice: Choice, counts: dict[str, Any] | None = None) -> bytes:
        seconds = round(sum(one.generation.sequence.seconds for one in choices), 4)
        note = {"completion_tokens": count, "token_ids": choice.fresh, "compute_seconds": seconds, **first}
        note.update(counts or {})
        if len(choices) > 1:
            note["index"] = choice.index
        said = sse.note(note) + sse.event(body)
        choice.fresh.clear()
        first.clear()
        return said

    for choice in choices if not resumed else ():
        if (opening := head.first(choice.index)) is not None:
            yield frame(opening, choice)
        if choice.opening:
            yield frame(head.delta(choice.opening, choice.index), choice)
    try:
        for choice, piece in pieces:
            choice.take(piece)
            count += piece.token is not None
            if piece.text:
                yield frame(head.delta(piece.text, choice.index, choice.logprobs.take()), choice)
            if piece.finish is not None:
                yield frame(head.last(piece.finish, choice.index, choice.logprobs.take()), choice)
    except ApiError as error:
        final = usage(asked, choices)
        # Also tokens that were computed and not given out: they cost as much, but are no part of the answer.
        counts = {"prompt_tokens": final.prompt_tokens, "completion_tokens": final.completion_tokens}
        yield frame(error.envelope(), choices[0], counts)
        return
    if asked.wants_usage:
        yield frame(head.usage(usage(asked, choices)), choices[0])
    yield sse.DONE
