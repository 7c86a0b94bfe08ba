// Where a value came from, in words: what the spec says of its field, and the row that it was read from.

import { make, text } from "./elements.js";

export function originOf(view, path, inBundle) {
  const found = view.origins.get(path);
  if (!found) {
    const fallback = view.answer.status === "fallback" ? "the context's default bundle" : "not told by this version's spec";
    return terms([["from", fallback]]);
  }
  const aggregate = found.function && `${found.function}(${found.column ?? "rows"}${found.by ? ` by ${found.by}` : ""})`;
  const section = view.places.get(found.section);
  return terms([
    ["source", found.source],
    ["table", found.table],
    ["column", found.kind === "column" ? found.column : undefined],
    ["expression", found.value],
    ["aggregate", aggregate],
    ["grouped by", found.kind === "group" ? found.column : undefined],
    ["where", found.where],
    ["mask", found.mask ?? "none"],
    ["instead of null", found.default === undefined ? undefined : text(found.default)],
    ["composed", section?.compose && COMPOSED[section.compose]],
    ...rowOf(view.rows.get(inBundle)),
  ]);
}

function rowOf(found) {
  if (!found) return [];
  const { row } = found;
  const columns = Object.entries(row?.columns ?? {}).map(([column, value]) => `${column} = ${value}`);
  const named = columns.join(", ") || row?.key;
  const position = Object.entries(row?.position ?? {}).filter(([, value]) => value !== null);
  return [
    [row?.many ? "rows" : "row", row ? (row.many ? `all with ${named}` : named) : found.reason],
    ...position.map(([name, value]) => [name.replace("_", " "), name.endsWith("time") ? moment(value) : value]),
    ["put together", moment(found.written)],
  ];
}

const moment = (time) => time?.replace(/^(\S+)T(\S+)Z$/, "$1 $2 UTC");

const COMPOSED = {
  copy: "copy: written into each bundle",
  link: "link: kept once, put in at lookup",
  auto: "auto: copied or linked, as the worker measured",
};

export function placeOf(section) {
  const on = Object.entries(section.on ?? {}).map(([own, parents]) => `${own} = ${parents}`).join(", ");
  const more = [
    on && `where ${on}`,
    section.filters?.length && `only if ${section.filters.join(" and ")}`,
    section.order_by?.length && `by ${section.order_by.join(", ")}`,
    section.limit && `first ${section.limit}`,
  ].filter(Boolean);
  return make("p", { class: "left-out" }, `${section.source} ${section.table} ${more.join(" · ")}`);
}

function terms(pairs) {
  const given = pairs.filter(([, value]) => value !== undefined && value !== null && value !== "");
  return given.flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, String(value))]);
}
