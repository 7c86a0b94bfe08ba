// What changed between two bundles, as fields and items. Pure.

import { Digits } from "./asking.js";

const PAIRS_MAX = 250_000;

// What became of what: {at, before, after}; undefined is not there.
export function* differences(before, after, at) {
  if (JSON.stringify(before) === JSON.stringify(after)) return;
  if (!isTree(before) || !isTree(after) || Array.isArray(before) !== Array.isArray(after)) {
    const or = at.length ? null : undefined; // of the whole bundle null says that there is none
    yield { at, before: before ?? or, after: after ?? or };
  } else if (Array.isArray(before)) {
    yield* listDifferences(before, after, at);
  } else {
    for (const name of new Set([...Object.keys(before), ...Object.keys(after)])) {
      const inside = [...at, name];
      if (!(name in before)) yield { at: inside, after: after[name] };
      else if (!(name in after)) yield { at: inside, before: before[name] };
      else yield* differences(before[name], after[name], inside);
    }
  }
}

// A list that got a new head has one new item, not another item at every place.
function* listDifferences(before, after, at) {
  let old = 0;
  let now = 0;
  for (const [oldKept, nowKept] of [...kept(before, after), [before.length, after.length]]) {
    if (oldKept - old === nowKept - now) {
      for (; old < oldKept; old += 1, now += 1) yield* differences(before[old], after[now], [...at, now + 1]);
    }
    for (; old < oldKept; old += 1) yield { at: [...at, old + 1], before: before[old] };
    for (; now < nowKept; now += 1) yield { at: [...at, now + 1], after: after[now] };
    old = oldKept + 1;
    now = nowKept + 1;
  }
}

// Pairs of places of the longest common subsequence; of long lists only what their beginnings have in common.
function kept(before, after) {
  const one = before.map((item) => JSON.stringify(item));
  const other = after.map((item) => JSON.stringify(item));
  if (one.length * other.length > PAIRS_MAX) {
    const same = one.findIndex((item, number) => item !== other[number]);
    return Array.from({ length: same < 0 ? Math.min(one.length, other.length) : same }, (_, number) => [number, number]);
  }
  const lengths = Array.from({ length: one.length + 1 }, () => new Uint16Array(other.length + 1));
  for (let i = one.length - 1; i >= 0; i -= 1) {
    for (let j = other.length - 1; j >= 0; j -= 1) {
      lengths[i][j] = one[i] === other[j] ? lengths[i + 1][j + 1] + 1 : Math.max(lengths[i + 1][j], lengths[i][j + 1]);
    }
  }
  const pairs = [];
  for (let i = 0, j = 0; i < one.length && j < other.length; ) {
    if (one[i] === other[j]) pairs.push([i++, j++]);
    else if (lengths[i + 1][j] >= lengths[i][j + 1]) i += 1;
    else j += 1;
  }
  return pairs;
}

export const isTree = (value) => typeof value === "object" && value !== null && !(value instanceof Digits);
