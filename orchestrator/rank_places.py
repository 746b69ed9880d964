"""Places for learner ranks, held on the cluster until a group of them starts.

Each is a placement group of one bundle: a rank that has one has room on a node for certain, nobody
else takes it, and those that are not found yet are what Ray's autoscaler starts nodes for. Owns
asking and counting. When ranks take their places is decided elsewhere.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Mapping

from ray.util.placement_group import (
    PlacementGroup,
    placement_group,
    placement_group_table,
    remove_placement_group,
)


class RankPlaces:
    def __init__(self, resources: Mapping[str, float]) -> None:
        """`resources` are what each rank asks for."""
        self._bundle = {name: value for name, value in resources.items() if value > 0}
        self._sought: list[PlacementGroup] = []

    async def seek(self, number: int, leaving: Collection[str] = ()) -> int:
        """Asks for so many places in all; how many of them are there, on other nodes than those
        that are `leaving`."""
        while len(self._sought) < number:
            self._sought.append(placement_group([self._bundle]))
        # Meanwhile another may seek or release
        nodes = await asyncio.to_thread(_nodes, tuple(self._sought))
        for group in self._spare(nodes, len(self._sought) - number):
            self._give_up(group)
        found = [nodes.get(group) for group in self._sought]
        return sum(node is not None and node not in leaving for node in found)

    def release(self) -> None:
        """Gives all of them back, for whoever asks next."""
        for group in list(self._sought):
            self._give_up(group)

    def _spare(
        self, nodes: Mapping[PlacementGroup, str | None], number: int
    ) -> list[PlacementGroup]:
        """`number` of them, those that were not found first."""
        unfound_first = sorted(self._sought, key=lambda group: nodes.get(group) is not None)
        return unfound_first[: max(0, number)]

    def _give_up(self, group: PlacementGroup) -> None:
        self._sought.remove(group)
        remove_placement_group(group)


def _nodes(groups: Iterable[PlacementGroup]) -> dict[PlacementGroup, str | None]:
    """By place the node that it is on, if it was found."""
    found: dict[PlacementGroup, str | None] = {}
    for group in groups:
        told = placement_group_table(group)
        is_there = told.get("state") == "CREATED"
        found[group] = told["bundles_to_node_id"].get(0) if is_there else None
    return found
