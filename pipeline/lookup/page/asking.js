// Asks the lookup API of this server, with the credential that a person gave in this tab.

const API = new URL("../v1/contexts", location.href).href;
const WAIT_MS_MAX = 15_000;
const KEY_NAME = "ctxpipe.key";

export class Problem extends Error {
  constructor(status, text, retryS) {
    super(text);
    this.status = status;
    this.retryS = retryS;
  }
}

export async function ask(path, { signal, body } = {}) {
  const headers = { accept: "application/json", ...credential() };
  const options = { headers, cache: "no-store", credentials: "omit", signal: within(signal) };
  if (body !== undefined) {
    Object.assign(options, { method: "POST", body: JSON.stringify(body) });
    headers["content-type"] = "application/json";
  }
  let response;
  let text;
  try {
    response = await fetch(`${API}${path}`, options);
    text = await response.text();
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new Problem(0, "The server does not answer.");
  }
  const answer = parsed(text);
  if (response.ok && answer !== null) return { answer, characters: text.length };
  const told = [...(answer?.mistakes ?? []), answer?.detail ?? `The server answered ${response.status}.`];
  throw new Problem(response.status, sentence(String(told[0])), Number(response.headers.get("retry-after")) || 0);
}

function credential() {
  const key = givenKey();
  if (key === null) return {};
  return /^[\w-]+\.[\w-]+\.[\w-]+$/.test(key) ? { authorization: `Bearer ${key}` } : { "x-api-key": key };
}

function within(signal) {
  const limit = AbortSignal.timeout(WAIT_MS_MAX);
  return signal ? AbortSignal.any([signal, limit]) : limit;
}

function parsed(text) {
  try {
    // A browser's numbers end at 2^53; larger ones are shown as they came.
    return JSON.parse(text, (_, value, at) => (exact(value, at?.source) ? value : new Digits(at.source)));
  } catch {
    return null;
  }
}

// A number as it came.
export class Digits {
  constructor(text) {
    this.text = text;
  }

  toJSON() {
    return this.text;
  }
}

function exact(value, source) {
  if (typeof value !== "number" || source === undefined) return true;
  return String(value) === source || !/^-?\d{16,}$|^-?[\d.]{17,}$/.test(source);
}

export const givenKey = () => sessionStorage.getItem(KEY_NAME);
export const giveKey = (key) => sessionStorage.setItem(KEY_NAME, key);
export const forgetKey = () => sessionStorage.removeItem(KEY_NAME);

export const sentence = (text) => (/[.!?…]$/.test(text) ? text : `${text}.`).replace(/^./u, (first) => first.toUpperCase());
