"""What an engine accepts: the checks of a request before it may wait, and of a row to score."""

from __future__ import annotations

from manta.envs.records import GenerateRequest, Int32


def check_request(request: GenerateRequest, context: int) -> None:
    """Raises ValueError where `request` cannot be sampled within `context` tokens."""
    length, sampling = len(request.prefix), request.sampling
    if length == 0:
        raise ValueError("a request has an empty prefix: give at least one token to continue")
    if not request.seeds or len(request.seeds) != len(request.budgets):
        raise ValueError(
            f"a request has {len(request.seeds)} seeds and {len(request.budgets)} budgets: "
            "give one of each per sample, and at least one sample"
        )
    if request.enough is not None and not 1 <= request.enough <= len(request.seeds):
        raise ValueError(
            f"a request is to end after {request.enough} of its {len(request.seeds)} samples: give "
            "1 to all of them"
        )
    if min(request.budgets) < 1:
        raise ValueError(f"a request has a budget of {min(request.budgets)} tokens: give 1 or more")
    if not 0 <= request.drawn <= length:
        raise ValueError(
            f"a request says that {request.drawn} of its prefix's {length} tokens were drawn: give "
            "0 to all of them"
        )
    longest = max(request.budgets)
    if length + longest > context:
        raise ValueError(
            f"a prefix of {length} tokens and a budget of {longest} make {length + longest}, over "
            f"the model's context of {context}: shorten the prompt, lower max_new_tokens, or raise "
            "the context"
        )
    if sampling.temperature < 0.0 or not 0.0 < sampling.top_p <= 1.0 or sampling.top_k < 0:
        raise ValueError(
            f"sampling wants temperature >= 0, 0 < top_p <= 1 and top_k >= 0, got temperature "
            f"{sampling.temperature}, top_p {sampling.top_p}, top_k {sampling.top_k}"
        )


def check_row(row: Int32, context: int) -> None:
    """Raises ValueError where `row` cannot be scored within `context` tokens."""
    if not 0 < len(row) <= context:
        raise ValueError(f"a row to score has {len(row)} tokens: give 1 to {context} (the context)")
