/**
 * Arguments of tools: a JSON Schema as the type of what a function gets, and as the check of what is sent.
 *
 * Above: `tools` and `tool_calls`. Below: Ajv. Guarantees: what reaches a function is strict JSON without duplicate keys,
 * at most 32 levels deep, and keeps the schema; what does not is told with the place of each problem.
 */

import type { ErrorObject } from "ajv";
import { Ajv2020 } from "ajv/dist/2020.js";

const MAX_DEPTH = 32;
const MAX_ERRORS = 20;
const TOKENS = /"(?:[^"\\]|\\.)*"|[[\]{}:]/g;

/** A JSON Schema. */
export type Schema = { readonly [keyword: string]: unknown };

/** The type of the values that keep a schema, as far as types can tell; `unknown` where they cannot. */
export type Infer<S> = S extends { readonly const: infer C }
  ? C
  : S extends { readonly enum: readonly (infer E)[] }
    ? E
    : S extends { readonly anyOf: readonly (infer A)[] } | { readonly oneOf: readonly (infer A)[] }
      ? Infer<A>
      : S extends { readonly type: readonly (infer T)[] }
        ? OfType<S, T>
        : S extends { readonly type: infer T }
          ? OfType<S, T>
          : unknown;

type OfType<S, T> = T extends "string"
  ? string
  : T extends "number" | "integer"
    ? number
    : T extends "boolean"
      ? boolean
      : T extends "null"
        ? null
        : T extends "array"
          ? S extends { readonly items: infer I }
            ? Infer<I>[]
            : unknown[]
          : T extends "object"
            ? OfProperties<S>
            : unknown;

type OfProperties<S> = S extends { readonly properties: infer P }
  ? { [K in Extract<keyof P, RequiredOf<S>>]: Infer<P[K]> } & { [K in Exclude<keyof P, RequiredOf<S>>]?: Infer<P[K]> }
  : Record<string, unknown>;

type RequiredOf<S> = S extends { readonly required: readonly (infer R)[] } ? R : never;

/** What is wrong with a value, and where: a JSON pointer. */
export interface Problem {
  readonly path: string;
  readonly message: string;
}

/** Thrown when arguments do not fit. */
export class Mismatch extends Error {
  readonly problems: readonly Problem[];

  constructor(problems: readonly Problem[]) {
    super(`${problems.length} values do not fit`);
    this.problems = problems.slice(0, MAX_ERRORS);
  }
}

/** Reads arguments from JSON. Throws Mismatch. */
export type Read = (argumentsJson: string) => unknown;

/** Compiles a schema. Throws TypeError when it is none, or not one of objects. */
export function reader(schema: Schema): Read {
  if (schema.type !== "object") {
    throw new TypeError('the schema of arguments must be of type "object"');
  }
  const ajv = new Ajv2020({ strict: false, allErrors: true, validateFormats: false });
  let validate: ReturnType<typeof ajv.compile>;
  try {
    validate = ajv.compile(schema);
  } catch (error) {
    throw new TypeError(`the schema cannot be compiled: ${error instanceof Error ? error.message : error}`);
  }
  return (argumentsJson) => {
    const value = parse(argumentsJson || "{}");
    if (!validate(value)) {
      throw new Mismatch((validate.errors ?? []).map(problem));
    }
    return value;
  };
}

/** Parses strict JSON, at most 32 levels deep, without duplicate keys. Throws Mismatch. */
export function parse(text: string): unknown {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (error) {
    throw new Mismatch([
      { path: "", message: `no JSON: ${error instanceof Error ? error.message : error}`.slice(0, 300) },
    ]);
  }
  checkForm(text);
  return value;
}

/** Goes over JSON that is known to parse. A string before a colon is a key. */
function checkForm(text: string): void {
  const open: Set<string>[] = [];
  let last = "";
  for (const [token] of text.matchAll(TOKENS)) {
    if (token === "{" || token === "[") {
      open.push(new Set());
      if (open.length > MAX_DEPTH) {
        throw new Mismatch([{ path: "", message: `nesting exceeds the limit of ${MAX_DEPTH} levels` }]);
      }
    } else if (token === "}" || token === "]") {
      open.pop();
    } else if (token === ":") {
      const key: string = JSON.parse(last);
      const keys = open.at(-1);
      if (keys?.has(key)) {
        throw new Mismatch([{ path: "", message: `no JSON: duplicate key ${last.slice(0, 80)}` }]);
      }
      keys?.add(key);
    }
    last = token;
  }
}

function problem({ instancePath, keyword, params, message }: ErrorObject): Problem {
  const extra = keyword === "additionalProperties" ? String(params.additionalProperty) : "";
  const path = extra ? `${instancePath}/${extra.replaceAll("~", "~0").replaceAll("/", "~1")}` : instancePath;
  return { path, message: extra ? "there is no such field" : (message ?? keyword) };
}
