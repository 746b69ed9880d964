"""The adapter that vLLM serves over the weights it was started with: one at a time.

Owns its way into vLLM's worker processes, a private folder that is gone when it is loaded, and the
request that samples are put with. Every version is an adapter of its own to vLLM, under one name
and path: what prompts share in the prefix cache goes by these and the salt, so that the salt alone
decides, as it does for whole weights.
"""

from __future__ import annotations

import itertools
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors.torch import save_file
from vllm.lora.request import LoRARequest

from manta.actors.engines.vllm_folder import ServedAdapter
from manta.actors.engines.vllm_weights import check_shapes, first_other, folder_for, on_every_worker
from manta.actors.models.spec import LoraSpec
from manta.actors.weight_tensors import unpack
from manta.actors.weights import Weights

if TYPE_CHECKING:
    from vllm.v1.engine.async_llm import AsyncLLM

_NAME, _LOADED = "policy", "loaded"
"""Name and path in every request: what is loaded goes by its number."""
_NUMBERS = itertools.count(1)
"""An adapter's number is used once in this process: vLLM would take another one of that number for
loaded."""


class VllmAdapter:
    """At first none: vLLM serves its weights as they are."""

    def __init__(self, llm: AsyncLLM, served: ServedAdapter) -> None:
        self._llm, self._lora, self._shapes = llm, served.lora, served.shapes
        self.request: LoRARequest | None = None
        """What every request goes with."""

    async def deliver(self, weights: Weights) -> str:
        """Loads `weights` on every worker process in place of the adapter before them; the hash
        that they took, or the first one that is not `weights.sha256`, and then nothing is loaded.

        Raises ValueError where names or shapes are not the adapter's.
        """
        with _folder(weights, self._lora) as folder:
            hashes = await on_every_worker(self._llm, "manta_hash_adapter", folder)
            found = first_other(weights.sha256, [str(each) for each in hashes])
            if found == weights.sha256:
                check_shapes(weights, self._shapes)
                number = next(_NUMBERS)
                await on_every_worker(self._llm, "manta_load_adapter", _NAME, number, folder)
                if self.request is not None:
                    await on_every_worker(self._llm, "remove_lora", self.request.lora_int_id)
                self.request = LoRARequest(_NAME, number, _LOADED)
        return found

    def forget(self) -> None:
        """vLLM has dropped the adapter, as it does when whole weights are loaded."""
        self.request = None


@contextmanager
def _folder(weights: Weights, lora: LoraSpec) -> Iterator[str]:
    """`weights` as peft would write them, for this user's processes alone."""
    parent = folder_for(len(weights.data))
    with tempfile.TemporaryDirectory(".adapter", "manta-", parent) as name:
        folder = Path(name)
        save_file(unpack(weights), folder / "adapter_model.safetensors")
        config = {
            "peft_type": "LORA",
            "r": lora.rank,
            "lora_alpha": lora.alpha,
            "target_modules": list(lora.targets),
            "bias": "none",
        }
        (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
        yield name
