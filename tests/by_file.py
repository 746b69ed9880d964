"""How tests are dealt to several processes: by file, in the order of collection, in which the long
files come first. Those that share the session's vLLM go to one process, which starts it once."""

from __future__ import annotations

from xdist.scheduler import LoadScopeScheduling

SHARE_VLLM = ("tests/contract/test_engine.py", "tests/unit/actors/engines/test_vllm_engine.py")


class ByFile(LoadScopeScheduling):
    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return "vllm" if file in SHARE_VLLM else file
