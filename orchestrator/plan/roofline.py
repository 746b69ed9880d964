"""Assumed speeds: from a model's sizes and a device's figures to seconds.

Owns the formulas, after the roofline model (Williams, Waterman, Patterson, "Roofline", CACM 52(4),
2009): a part takes as long as the slower of moving its bytes and making its products.

With P parameters of e bytes, N of them in products (all but the input embeddings), K bytes of keys
and values a token, S layers, Q query width, C mean tokens of a row, over T devices of an engine:

- decode step of r rows with c tokens of context: the longer of (e P + K c) / (T bandwidth) and
  2 N r / (T peak), each by its share, plus the host's overhead;
- prefill: 2 N / (T peak) a token;
- training: 6 N + 6 S Q C operations a token and pass (PaLM, arXiv 2204.02311, appendix B, halved in
  attention, which is causal); 8 N where activations are computed again. A reference scores at a
  third of that;
- gradients: 2 * 4 P (R - 1) / R bytes a rank, of R, each update (a ring);
- publish: e P bytes, through Ray's object store or from GPU to GPU.
"""

from __future__ import annotations

from dataclasses import dataclass

from manta.actors.transports.settings import DIRECT
from manta.algorithms.settings import AlgorithmSettings
from manta.orchestrator.config import RunFile, StageConfig
from manta.orchestrator.memory import kv_shape, learner_parts
from manta.orchestrator.model_sizes import ModelSizes, num_parameters
from manta.orchestrator.plan import devices
from manta.orchestrator.plan.devices import Device
from manta.orchestrator.simulation.speeds import EngineSpeed, LearnerSpeed, Overheads, Speeds


@dataclass(frozen=True, slots=True)
class Roofline:
    """`model` on `device`; `row` is the mean length of a row in tokens, prompt counted."""

    device: Device
    sizes: ModelSizes
    run_file: RunFile
    stage: StageConfig
    row: float

    def speeds(self, ranks: int) -> Speeds:
        """Of the run with `ranks` learner ranks, a device each."""
        learner = self._learner(ranks)
        overheads = Overheads(
            group=devices.GROUP_SECONDS,
            reference_per_token=self._training_flops() / 3 / self._training_rate,
            publish=self._publish(),
            step=devices.DRIVER_SECONDS,
        )
        return Speeds(self.engine(), learner, overheads)

    def engine(self) -> EngineSpeed:
        """One engine of the run."""
        width, device = self._engine_width, self.device
        bandwidth = device.memory_bandwidth * devices.DECODE_SHARE * width
        flops = 2 * self._in_products / (device.flops * devices.PREFILL_SHARE * width)
        return EngineSpeed(
            base=self._weight_bytes / bandwidth,
            per_context=self._token_bytes / bandwidth,
            compute_per_row=flops,
            overhead=devices.STEP_OVERHEAD,
            prefill_per_token=flops,
        )

    def rows_that_fit(self) -> int | None:
        """Rows of `row` tokens whose keys and values one engine holds; None: not bounded.

        Raises ValueError where not even the weights fit.
        """
        if self.device.memory is None:
            return None
        share = self.run_file.rollout.vllm.gpu_memory_utilization
        room = self.device.memory * share * self._engine_width - self._weight_bytes
        rows = int(room // (self._token_bytes * self.row))
        if rows < 1:
            raise ValueError(
                f"an engine's weights ({self._weight_bytes / devices.GIB:,.0f} GiB) and one row do "
                f"not fit {self._engine_width} x {self.device.name}: raise "
                "rollout.vllm.tensor_parallel, or choose another --device"
            )
        return rows

    def learner_bytes(self, run_file: RunFile) -> int:
        """What each rank of `run_file` holds on its device, at most."""
        parts = learner_parts(run_file, self.sizes)
        return sum(part.bytes for part in parts if not part.on_host)

    def _learner(self, ranks: int) -> LearnerSpeed:
        device = self.device
        link = device.link if ranks <= device.neighbours else device.far_link
        moved = 2 * 4 * num_parameters(self.sizes) * (ranks - 1) / ranks
        updates = self.stage.updates_per_step * self.stage.epochs_per_step
        per_token = self._training_flops() * passes(self.stage) / self._training_rate
        return LearnerSpeed(moved / link * updates, per_token, ranks)

    def _training_flops(self) -> float:
        again = self.run_file.learner.fsdp.checkpoint_activations
        again &= self.run_file.learner.backend == "fsdp"
        attention = 6 * self.sizes.layers * self.sizes.query_width * self.row
        return (8 if again else 6) * self._in_products + attention

    @property
    def _training_rate(self) -> float:
        return self.device.flops * devices.TRAINING_SHARE

    def _publish(self) -> float:
        is_direct = self.run_file.publish.transport in DIRECT
        bandwidth = self.device.far_link if is_direct else devices.STORE_BANDWIDTH
        return devices.PUBLISH_FIXED + self._weight_bytes / bandwidth

    @property
    def _engine_width(self) -> int:
        own = self.run_file.rollout.vllm
        return own.tensor_parallel if self.run_file.rollout.engine == "vllm" else 1

    @property
    def _element(self) -> int:
        return 4 if self.run_file.model.dtype == "float32" else 2

    @property
    def _weight_bytes(self) -> float:
        return float(self._element * num_parameters(self.sizes))

    @property
    def _token_bytes(self) -> int:
        return kv_shape(self.sizes, self.run_file.model.dtype).token_bytes(1)

    @property
    def _in_products(self) -> int:
        embeddings = 0 if self.sizes.tied else self.sizes.vocabulary * self.sizes.width
        return num_parameters(self.sizes) - embeddings


def passes(stage: StageConfig) -> float:
    """Forward and backward passes over a step's tokens; a pass without gradients is a third."""
    algorithm: AlgorithmSettings | None = stage.algorithm
    assert algorithm is not None
    updates = stage.updates_per_step * stage.epochs_per_step
    critic = 2.0 if algorithm.critic is not None and algorithm.critic.model == "own" else 1.0
    needs_start = updates > 1 or algorithm.chooses_tokens
    looks = (algorithm.proximal == "learner" and needs_start) or algorithm.critic is not None
    # An implicit reward model scores a step, and makes one pass over it
    process = 4 / 3 if algorithm.implicit_reward is not None else 0.0
    return critic * (stage.epochs_per_step + (1 / 3 if looks else 0.0)) + process
