"""One sample on its way through vLLM, in as many requests as publishes cut it into.

Owns what is known of it between two requests and how a request is put to vLLM. Knows neither when
it is cut nor which weights are served.
"""

from __future__ import annotations

import numpy as np
from vllm import SamplingParams
from vllm.inputs import TokensPrompt
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.sampling_params import RequestOutputKind

from manta.actors.engines.vllm_weights import DRAWN
from manta.envs.records import (
    Completion,
    FinishReason,
    Float32,
    GenerateRequest,
    Int32,
    VersionSpan,
    WeightVersion,
)

STREAM_INTERVAL = 16
"""Tokens of a sample that vLLM hands over at once: every token costs the rollout worker a turn of
its event loop otherwise. What was not handed over when a worker dies is lost with it."""


class VllmSample:
    """Sample `index` of `request`."""

    def __init__(self, request: GenerateRequest, index: int) -> None:
        self._prefix: list[int] = request.prefix.tolist()
        self._seed = request.seeds[index]
        self._budget = request.budgets[index]
        self._sampling = request.sampling
        self._drawn = request.drawn
        self._tokens: list[int] = []
        self._logprobs: list[float] = []
        self._spans: list[VersionSpan] = []
        self.is_cut = False

    @property
    def is_done(self) -> bool:
        return self._is_stopped or len(self._tokens) >= self._budget

    @property
    def has_ended(self) -> bool:
        """Is it done, or was it cut by whoever runs it?"""
        return self.is_done or self.is_cut

    def prompt(self, salt: str) -> TokensPrompt:
        """What to go on from; keys and values are shared among prompts of one `salt`."""
        return tokens_prompt([*self._prefix, *self._tokens], salt)

    def parameters(self) -> SamplingParams:
        """How to go on."""
        sampling = self._sampling
        return SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            seed=self._seed % 2**63,
            extra_args={DRAWN: self._drawn + len(self._tokens)},
            stop_token_ids=list(sampling.stop_token_ids),
            # The stop tokens are those of the request and no others, as in every engine.
            ignore_eos=True,
            max_tokens=self._budget - len(self._tokens),
            logprobs=0,
            flat_logprobs=True,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
            stream_interval=STREAM_INTERVAL,
        )

    def take(self, output: CompletionOutput, version: WeightVersion) -> None:
        """Adds new tokens of a request that runs under `version` from its first to its last.

        Raises FloatingPointError where the model's log-probs were not finite.
        """
        count = len(output.token_ids)
        if count == 0:
            return
        logprobs = output.logprobs.logprobs[:count]
        if not np.isfinite(logprobs).all():
            raise FloatingPointError(
                f"weights {version} give log-probs that are not finite: look at the learner's loss "
                "and gradient norm of that step"
            )
        if not self._spans or self._spans[-1].version != version:
            self._spans.append(VersionSpan(len(self._tokens), version))
        self._tokens += output.token_ids
        self._logprobs += logprobs

    def completion(self) -> Completion:
        """What is there; `abort` is the finish reason of a sample that is not done."""
        reason: FinishReason = "length" if self.is_done else "abort"
        if self._is_stopped:
            reason = "stop"
        return Completion(
            np.array(self._tokens, np.int32),
            np.array(self._logprobs, np.float32),
            tuple(self._spans),
            reason,
        )

    @property
    def _is_stopped(self) -> bool:
        return bool(self._tokens) and self._tokens[-1] in self._sampling.stop_token_ids


def tokens_prompt(tokens: list[int], salt: str) -> TokensPrompt:
    return TokensPrompt(type="token", prompt_token_ids=tokens, cache_salt=salt)


def scoring_parameters() -> SamplingParams:
    """A request for the log-probs of its own prompt, at temperature 1; vLLM samples a token too."""
    return SamplingParams(
        max_tokens=1,
        prompt_logprobs=0,
        flat_logprobs=True,
        ignore_eos=True,
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def scores_of(output: RequestOutput, row: Int32) -> Float32:
    """float32[L]: the log-probs in `output` of the tokens of `row`, 0 first."""
    scores = np.zeros(len(row), np.float32)
    scores[1:] = output.prompt_logprobs.logprobs
    return scores
