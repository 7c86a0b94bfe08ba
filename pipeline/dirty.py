"""Changed rows → dirty unit keys: climbs from each changed row to every bundle or fragment that shows it. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.plan import Node, Plan, TablePlan
from pipeline.relations import Links
from pipeline.stores.store import StoredRow
from schemas.bundle import ROOT_UNIT, UnitKey

MemberRead = tuple[int, str]
RowKey = tuple[str, str]


class Climb:
    """Collects `keys` for many changes together, level by level.

    Call `changed` for each, then `needed`, read, `supply`, until `needed` gives nothing. `hot` holds the (node,
    relation, join value) where a parent has more children than the limit: those go through the dirty topic.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.keys: dict[UnitKey, None] = {}
        self.hot: list[tuple[Node, int, str]] = []
        self._seen: set[tuple[str, str, bool]] = set()
        self._member_wants: dict[MemberRead, list[Node]] = {}
        self._row_wants: dict[RowKey, list[Node]] = {}

    def changed(self, table: TablePlan, key: str, links: Links, former_links: Sequence[Links]) -> None:
        """A row of `table` changed: it stands at `links` now (empty: deleted) and stood at `former_links`."""
        for node in table.nodes:
            if node.parent is None or node.by_key:
                self.touched(node, key)
                continue
            assert node.relation is not None
            places = {former[node.relation.place] for former in former_links}
            if links:
                places.add(links[node.relation.place])
            for place in sorted(place for place in places if place is not None):
                self._arrive(node, place)

    def touched(self, node: Node, key: str) -> None:
        """Something shown in the row `key` of `node` changed."""
        if self._known(node, key, True):
            return
        if node.parent is None:
            self.keys[UnitKey(ROOT_UNIT, key)] = None
        elif node.by_key:
            self._arrive(node, key)
        else:
            self._row_wants.setdefault((node.table.name, key), []).append(node)

    def _arrive(self, node: Node, link: str) -> None:
        """Something under join value `link` of `node` changed."""
        if self._known(node, link, False):
            return
        if node.linked:
            self.keys[UnitKey(node.path, link)] = None
            return
        assert node.parent is not None
        if node.parent_relation is None:
            self.touched(node.parent, link)
        else:
            self._member_wants.setdefault((node.parent_relation.index, link), []).append(node.parent)

    def _known(self, node: Node, text: str, is_row: bool) -> bool:
        mark = (node.path, text, is_row)
        if mark in self._seen:
            return True
        self._seen.add(mark)
        return False

    def needed(self) -> tuple[list[MemberRead], list[RowKey]]:
        """The reads of the next level; both empty when `keys` is complete."""
        return list(self._member_wants), list(self._row_wants)

    def supply(self, members: Sequence[list[str] | None], rows: Sequence[StoredRow | None]) -> None:
        """Takes what was read, in the order of `needed`; members None means more than the limit."""
        member_wants, row_wants = self._member_wants, self._row_wants
        self._member_wants, self._row_wants = {}, {}
        for ((relation, link), nodes), keys in zip(member_wants.items(), members, strict=True):
            for node in nodes:
                if keys is None:
                    self.hot.append((node, relation, link))
                for key in keys or ():
                    self.touched(node, key)
        for nodes, row in zip(row_wants.values(), rows, strict=True):
            for node in nodes:
                assert node.relation is not None
                place = node.relation.join(row.values) if row is not None and row.live else None
                if place is not None:
                    self._arrive(node, place)
