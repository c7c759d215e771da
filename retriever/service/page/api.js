// Requests to the service. Every failure becomes a Problem with the service's own code and sentence.

const KEY = "two-tower-search key";

export class Problem extends Error {
  constructor(status, code, message, retryAfterS) {
    super(message);
    Object.assign(this, { status, code, retryAfterS });
  }
}

export const rememberKey = (key) => sessionStorage.setItem(KEY, key);
export const describe = (signal) => ask("collection", undefined, signal);
export const values = (field) => ask(`fields?${new URLSearchParams({ field, k: 50 })}`);
export const search = (body, signal) => ask("search", body, signal);
export const report = (body) => ask("events", body, undefined, true);
export const similar = (body, signal) => ask("similar", body, signal);

async function ask(path, body, signal, keepalive = false) {
  const key = sessionStorage.getItem(KEY);
  const headers = key ? { Authorization: `Bearer ${key}` } : {};
  const options = { headers, signal, keepalive };
  if (body !== undefined) {
    headers["Content-Type"] = "application/json";
    Object.assign(options, { method: "POST", body: JSON.stringify(body) });
  }
  const response = await fetch(path, options).catch((error) => {
    if (error.name === "AbortError") throw error;
    throw new Problem(0, "offline", "the search service does not answer", 2);
  });
  const answer = await response.json().catch((error) => {
    if (error.name === "AbortError") throw error;
    return {};
  });
  if (response.ok) return answer;
  const { code = "failed", message = `the service answered HTTP ${response.status}` } = answer.error ?? {};
  throw new Problem(response.status, code, message, Number(response.headers.get("Retry-After")) || 0);
}
