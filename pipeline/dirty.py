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
    relation, join value, for text only) where a parent has more children than the limit: those go through the dirty
    topic. `texts` are root keys whose bundles stay as they are, but not what their texts are made from.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.keys: dict[UnitKey, None] = {}
        self.texts: dict[str, None] = {}
        self.hot: list[tuple[Node, int, str, bool]] = []
        self._seen: set[tuple[str, str, bool, bool]] = set()
        self._member_wants: dict[MemberRead, list[tuple[Node, bool]]] = {}
        self._row_wants: dict[RowKey, list[tuple[Node, bool]]] = {}

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

    def touched(self, node: Node, key: str, for_text: bool = False) -> None:
        """Something shown in the row `key` of `node` changed; `for_text`: in a fragment that its text is made from."""
        if self._known(node, key, True, for_text):
            return
        if node.parent is None:
            if for_text:
                self.texts[key] = None
            else:
                self.keys[UnitKey(ROOT_UNIT, key)] = None
        elif node.by_key:
            self._arrive(node, key, for_text)
        else:
            self._row_wants.setdefault((node.table.name, key), []).append((node, for_text))

    def _arrive(self, node: Node, link: str, for_text: bool = False) -> None:
        """Something under join value `link` of `node` changed."""
        if self._known(node, link, False, for_text):
            return
        if node.linked:
            if not for_text:
                self.keys[UnitKey(node.path, link)] = None
            if not node.traced:
                return
            for_text = True
        assert node.parent is not None
        if node.parent_relation is None:
            self.touched(node.parent, link, for_text)
        else:
            wants = self._member_wants.setdefault((node.parent_relation.index, link), [])
            wants.append((node.parent, for_text))

    def _known(self, node: Node, text: str, is_row: bool, for_text: bool) -> bool:
        mark = (node.path, text, is_row, for_text)
        if mark in self._seen:
            return True
        self._seen.add(mark)
        return False

    def needed(self) -> tuple[list[MemberRead], list[RowKey]]:
        """The reads of the next level; both empty when `keys` and `texts` are complete."""
        return list(self._member_wants), list(self._row_wants)

    def supply(self, members: Sequence[list[str] | None], rows: Sequence[StoredRow | None]) -> None:
        """Takes what was read, in the order of `needed`; members None means more than the limit."""
        member_wants, row_wants = self._member_wants, self._row_wants
        self._member_wants, self._row_wants = {}, {}
        for ((relation, link), member_nodes), keys in zip(member_wants.items(), members, strict=True):
            for node, for_text in member_nodes:
                if keys is None:
                    self.hot.append((node, relation, link, for_text))
                for key in keys or ():
                    self.touched(node, key, for_text)
        for row_nodes, row in zip(row_wants.values(), rows, strict=True):
            for node, for_text in row_nodes:
                assert node.relation is not None
                place = node.relation.join(row.values) if row is not None and row.live else None
                if place is not None:
                    self._arrive(node, place, for_text)
