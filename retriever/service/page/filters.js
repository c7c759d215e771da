// What a person types into the filter and what the service takes.

const NUMBER = /^-?\d+(\.\d+)?$/;

export const FORMS = {
  keyword: "exact value; add more for any of them",
  uuid: "exact value; add more for any of them",
  integer: "2010, 2010..2020 or >=2010",
  float: "0.5, 0.5..1 or >=0.5",
  datetime: "2024-01-31, or from..to",
  bool: "true or false",
  text: "words",
};

// Returns the condition, or null where the text is none.
export function parse(type, text) {
  const value = text.trim();
  if (!value) return null;
  if (type === "text") return { text: value };
  if (type === "bool") return { true: true, false: false }[value.toLowerCase()] ?? null;
  if (type === "integer" || type === "float") return parseRange(value, parseNumber);
  if (type === "datetime") return parseRange(value, (part) => part || null);
  return [value];
}

function parseNumber(text) {
  return NUMBER.test(text) ? Number(text) : null;
}

function parseRange(value, parsePart) {
  const compared = /^(>=|<=|>|<)\s*(.+)$/.exec(value);
  if (compared) {
    const bound = parsePart(compared[2]);
    return bound === null ? null : { [{ ">=": "gte", "<=": "lte", ">": "gt", "<": "lt" }[compared[1]]]: bound };
  }
  const ends = value.split("..");
  if (ends.length > 2) return null;
  const parts = ends.map((end) => parsePart(end.trim()));
  if (parts.some((part) => part === null)) return null;
  return parts.length === 2 ? { gte: parts[0], lte: parts[1] } : parts[0];
}

// Returns the filter with one more condition; values of a keyword field add up.
export function add(filter, field, condition) {
  const before = filter[field];
  if (!Array.isArray(condition) || !Array.isArray(before)) return { ...filter, [field]: condition };
  return { ...filter, [field]: [...new Set([...before, ...condition])] };
}

export function remove(filter, field) {
  const { [field]: _, ...rest } = filter;
  return rest;
}

export function show(condition) {
  if (Array.isArray(condition)) return condition.join(" or ");
  if (condition === null || typeof condition !== "object") return String(condition);
  if ("text" in condition) return `“${condition.text}”`;
  const signs = { gte: "≥", gt: ">", lte: "≤", lt: "<" };
  return Object.entries(condition).map(([bound, value]) => `${signs[bound] ?? bound} ${value}`).join(", ");
}
