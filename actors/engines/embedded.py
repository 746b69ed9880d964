"""The embedded engine: continuous batching with torch and transformers, in the caller's process.

Owns the queue, the decoding thread and the served version. One thread runs everything that touches
the model, one job after the other: a decoding step, a pause, a load, a scoring. A step puts the
next step behind whatever was asked for meanwhile, so every request of the caller lands between two
steps and nothing needs a lock.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from manta.actors.cores import available_cores
from manta.actors.engines.causal_forward import PREFILL_CELLS, CausalForward
from manta.actors.engines.decode_batch import DecodeBatch
from manta.actors.engines.limits import check_request, check_row
from manta.actors.engines.merged_adapter import MergedAdapter
from manta.actors.engines.occupancy import Occupancy
from manta.actors.engines.padding import padded_batches
from manta.actors.engines.pending import Pending, Prefix
from manta.actors.engines.progress import Progress
from manta.actors.engines.residence import Residence
from manta.actors.models.causal import model_state
from manta.actors.models.spec import LoraSpec
from manta.actors.weight_tensors import unpack
from manta.actors.weights import Receipt, Weights, content_hash
from manta.envs.records import Completion, Float32, GenerateRequest, Int32, WeightVersion

P = ParamSpec("P")
T = TypeVar("T")


class EmbeddedEngine:
    """Serves `model` (a transformers causal language model), which it owns from here on.

    `context` bounds prefix plus budget, `max_rows` the samples decoded side by side; `threads` are
    torch threads (0: all cores that it may use), `version` names the weights that the model has
    now. Rows start in the order of their requests, and one that finishes makes room at once. After
    a load, keys and values of the rows under way are computed anew, unless `keeps_kv` and they are
    still there: asleep it holds neither them nor weights. With `lora` it takes adapters too. With
    `deterministic` one request is one batch, alone from its prefill on, so that its completions
    depend on nothing but the request and the weights, bit for bit.

    A failing step fails every request under way with its exception; later requests are served.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        context: int,
        max_rows: int,
        threads: int,
        deterministic: bool,
        version: WeightVersion,
        occupancy: Occupancy | None = None,
        keeps_kv: bool = False,
        lora: LoraSpec | None = None,
    ) -> None:
        self._adapter = None if lora is None else MergedAdapter(model, lora)
        self._occupancy = occupancy or Occupancy(max_rows)
        self.version = version
        self._keeps_kv = keeps_kv
        self._context = context
        self._max_rows = max_rows
        self._is_deterministic = deterministic
        threads = threads or available_cores()
        self._forward = CausalForward(model, context, threads)
        self._batch = DecodeBatch(self._forward, max_rows, context)
        self._waiting: deque[Pending] = deque()
        self._residence = Residence()
        self._is_stepping = False
        self._is_stale = self._has_slept = False
        self._is_closed = False
        self._thread = ThreadPoolExecutor(1, "decode", torch.set_num_threads, (threads,))

    async def generate(
        self, requests: Sequence[GenerateRequest], progress: Progress | None = None
    ) -> list[list[Completion]]:
        """All samples of every request, in order; a cancelled call frees its rows."""
        for request in requests:
            check_request(request, self._context)
        pendings = [Pending(request) for request in requests]
        if progress is not None:
            progress.bind(
                lambda: self._do(self._so_far, pendings),
                lambda: sum(pending.num_ended for pending in pendings),
            )
        try:
            await self._do(self._enqueue, pendings)
            return list(await asyncio.gather(*(asyncio.wrap_future(p.future) for p in pendings)))
        except asyncio.CancelledError:
            if not self._is_closed:
                self._thread.submit(self._abandon, set(pendings))
            raise

    async def logprobs(self, rows: Sequence[Int32]) -> list[Float32]:
        """float32[L] per row at temperature 1; waits for the step under way, not for requests.

        Raises ValueError for a row that is empty or longer than the context.
        """
        for row in rows:
            check_row(row, self._context)
        tensors = [torch.from_numpy(row.astype("int64")) for row in rows]
        scored = await self._do(self._score, tensors)
        return [tensor.numpy() for tensor in scored]

    async def pause(self) -> None:
        await self._do(self._residence.say, "pause")

    async def resume(self) -> None:
        await self._do(self._resume)

    async def sleep(self) -> None:
        await self._do(self._sleep)

    async def wake(self) -> None:
        await self._do(self._wake)

    async def held_bytes(self) -> int:
        return await self._do(self._held_bytes)

    async def load(self, weights: Weights) -> Receipt:
        """Hashes `weights` and takes them over; bytes that do not match their hash are refused.

        The receipt carries the hash found, so a refusal shows as a mismatch. Raises WrongState
        while serving or asleep, ValueError where names or shapes are not the model's.
        """
        return await self._do(self._load, weights)

    def close(self) -> None:
        """Ends the decoding thread; requests under way fail, later calls too."""
        if self._is_closed:
            return
        self._is_closed = True
        self._thread.submit(self._fail, RuntimeError("the engine was closed"))
        self._thread.shutdown(wait=True)

    async def _do(self, job: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        def run() -> T:
            with torch.inference_mode():
                return job(*args, **kwargs)

        return await asyncio.wrap_future(self._thread.submit(run))

    # Everything below runs in the decoding thread.

    def _enqueue(self, pendings: list[Pending]) -> None:
        self._waiting.extend(pendings)
        self._go_on()

    def _resume(self) -> None:
        self._residence.say("resume")
        self._go_on()

    def _score(self, rows: Sequence[Tensor]) -> list[Tensor]:
        self._residence.check("score")
        return self._forward.logprobs(rows, self._is_deterministic)

    def _sleep(self) -> None:
        is_asleep = self._residence.state == "asleep"
        self._residence.say("sleep")
        if is_asleep:
            return
        self._has_slept = True
        self._batch.forget_kv()
        for pending in self._waiting:
            pending.prefix = None
        self._forward.drop_weights()

    def _wake(self) -> None:
        is_asleep = self._residence.state == "asleep"
        self._residence.say("wake")
        if is_asleep:
            self._forward.make_room()

    def _held_bytes(self) -> int:
        prefixes = [pending.prefix for pending in self._waiting if pending.prefix is not None]
        prefilled = {id(prefix.prefilled): prefix.prefilled for prefix in prefixes}.values()
        caches = self._batch.kv_bytes + sum(each.num_bytes for each in prefilled)
        return self._forward.weight_bytes + caches

    def _abandon(self, pendings: set[Pending]) -> None:
        with torch.inference_mode():
            self._waiting = deque(p for p in self._waiting if p not in pendings)
            self._batch.abandon(pendings)
        self._occupancy.set(self._batch.num_rows)

    def _so_far(self, pendings: list[Pending]) -> list[list[Completion]]:
        live = self._batch.so_far(set(pendings))
        return [pending.so_far(live[pending]) for pending in pendings]

    def _go_on(self) -> None:
        """Puts a step in the queue where there is work and none is queued yet."""
        has_work = bool(self._waiting or self._batch.num_rows)
        is_free = self._residence.is_serving and not (self._is_stepping or self._is_closed)
        if has_work and is_free:
            self._is_stepping = True
            self._thread.submit(self._step).add_done_callback(self._after_step)

    def _after_step(self, step: Future[None]) -> None:
        self._is_stepping = False
        error = step.exception()
        if error is not None:
            self._fail(error)
        self._go_on()

    def _fail(self, error: BaseException) -> None:
        pendings = {*self._waiting, *self._batch.pendings()}
        self._waiting.clear()
        self._batch.clear()
        self._occupancy.set(0)
        for pending in pendings:
            pending.future.set_exception(error)

    @torch.inference_mode()
    def _step(self) -> None:
        if not self._residence.is_serving:
            return
        if self._is_stale:
            self._batch.renew(self.version, self._keeps_kv and not self._has_slept)
            self._is_stale = self._has_slept = False
        began = time.perf_counter()
        prefilled = self._start_waiting()
        started = time.perf_counter()
        if prefilled:
            self._occupancy.prefilled(prefilled, started - began)
        rows = self._batch.num_rows
        self._occupancy.set(rows)
        if rows:
            self._batch.step()
            self._forget_started()
            self._occupancy.decoded(rows, time.perf_counter() - started)
            self._occupancy.set(self._batch.num_rows)

    def _start_waiting(self) -> int:
        """Starts as many waiting samples as there are free rows, oldest request first; the tokens
        of prefixes that were run for it."""
        free = self._max_rows - self._batch.num_rows
        chosen: list[tuple[Pending, int]] = []
        for pending in self._startable():
            if free == 0:
                break
            count = min(free, pending.num_waiting)
            chosen.append((pending, count))
            free -= count
        if not chosen:
            return 0
        prefilled = self._prefill([pending for pending, _ in chosen])
        self._batch.start(chosen, self.version)
        self._forget_started()
        return prefilled

    def _forget_started(self) -> None:
        """Requests of which nothing is to start any more wait no longer."""
        while self._waiting and self._waiting[0].num_waiting == 0:
            self._waiting.popleft().prefix = None

    def _startable(self) -> Iterable[Pending]:
        """The waiting requests that may have a row now, oldest first."""
        if not self._is_deterministic:
            return self._waiting
        head = list(islice(self._waiting, 1))
        if self._batch.num_rows == 0:
            # Fresh memory for every request, so that not even its layout depends on earlier ones
            self._batch.clear()
            return head
        return [pending for pending in head if pending.num_started]

    def _prefill(self, pendings: Sequence[Pending]) -> int:
        """Runs the prefixes that have not been run, each once, several to a batch; their tokens."""
        missing = [pending for pending in pendings if pending.prefix is None]
        if missing and not self._is_deterministic:
            missing += self._next_in_line(missing)
        lengths = [len(pending.tokens) for pending in missing]
        for batch in padded_batches(lengths, PREFILL_CELLS):
            prefilled, logits_PV = self._forward.prefill([missing[i].tokens for i in batch])
            for place, index in enumerate(batch):
                missing[index].prefix = Prefix(prefilled, place, logits_PV[place])
        return sum(lengths)

    def _next_in_line(self, missing: Sequence[Pending]) -> list[Pending]:
        """Waiting requests beyond `missing` that share its prefill: a prefix costs far less in a
        batch than alone. At most half a batch, since their keys and values are held until then."""
        room = PREFILL_CELLS // 2 - sum(len(pending.tokens) for pending in missing)
        taken = set(missing)
        chosen: list[Pending] = []
        for pending in self._waiting:
            if pending.prefix is None and pending not in taken:
                room -= len(pending.tokens)
                if room < 0:
                    break
                chosen.append(pending)
        return chosen

    def _load(self, weights: Weights) -> Receipt:
        self._residence.check("load")
        receipt = Receipt(weights.version, content_hash(weights.specs, weights.data))
        if receipt.sha256 != weights.sha256:
            return receipt
        own = model_state(self._forward.model)
        given: Mapping[str, Tensor] = unpack(weights)
        if self._adapter is not None:
            given = self._adapter.whole(own, given)
        wanted = {name: tensor.shape for name, tensor in own.items()}
        found = {name: tensor.shape for name, tensor in given.items()}
        if wanted != found:
            differing = sorted(n for n in wanted | found if wanted.get(n) != found.get(n))
            raise ValueError(
                f"weights {weights.version} do not fit the engine's model at {differing[:5]} "
                f"({len(differing)} in all): learner and engine must build the same model"
            )
        for name, tensor in own.items():
            tensor.copy_(given[name])
        self._residence.say("load")
        self.version = weights.version
        self._is_stale = True
        for pending in self._waiting:
            pending.prefix = None
        return receipt
