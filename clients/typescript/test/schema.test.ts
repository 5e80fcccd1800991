import assert from "node:assert/strict";
import { test } from "node:test";
import { type Infer, Mismatch, parse, reader } from "#dist/schema.js";

function problems(read: () => unknown): { path: string; message: string }[] {
  try {
    read();
  } catch (error) {
    assert.ok(error instanceof Mismatch);
    return [...error.problems];
  }
  return assert.fail("nothing is wrong");
}

test("strict JSON is read as it is", () => {
  assert.deepEqual(parse('{"a": [1, "}:{\\"", {"a": null}], "b": {}}'), { a: [1, '}:{"', { a: null }], b: {} });
});

for (const text of [
  '{"a": 1, "a": 2}',
  '{"a": 1, "\\u0061": 2}',
  '[{"b": {"a": 1, "a": 1}}]',
  "{'a': 1}",
  '{"a": NaN}',
  "{",
]) {
  test(`${text} is refused`, () => {
    assert.match(problems(() => parse(text))[0]?.message ?? "", /^no JSON/);
  });
}

test("nesting is bounded", () => {
  assert.equal(problems(() => parse("[".repeat(33) + "]".repeat(33))).length, 1);
  parse("[".repeat(32) + "]".repeat(32));
});

test("every value that does not fit is told with its place", () => {
  const read = reader({
    type: "object",
    properties: { a: { type: "integer" }, b: { type: "array", items: { type: "string" } } },
    required: ["a"],
    additionalProperties: false,
  });
  assert.deepEqual(read('{"a": 1}'), { a: 1 });
  const paths = problems(() => read('{"b": ["x", 2], "c/d": 1}')).map(({ path }) => path);
  assert.deepEqual(paths.sort(), ["", "/b/1", "/c~1d"]);
});

for (const schema of [{ type: "string" }, {}, { type: "object", properties: { a: { type: "nothing" } } }]) {
  test(`${JSON.stringify(schema)} is no schema of arguments`, () => {
    assert.throws(() => reader(schema), TypeError);
  });
}

test("the type of the arguments comes from the schema", () => {
  const schema = {
    type: "object",
    properties: {
      name: { type: "string" },
      size: { enum: ["small", "large"] },
      counts: { type: "array", items: { type: ["integer", "null"] } },
      place: { anyOf: [{ type: "boolean" }, { type: "object", properties: { at: { const: 1 } }, required: ["at"] }] },
    },
    required: ["name"],
  } as const;
  const whole: Infer<typeof schema> = { name: "x", size: "small", counts: [1, null], place: { at: 1 } };
  const least: Infer<typeof schema> = { name: "x", place: true };
  // @ts-expect-error a required property is missing
  const lacking: Infer<typeof schema> = { size: "small" };
  // @ts-expect-error no such value
  const wrong: Infer<typeof schema> = { name: "x", size: "medium" };
  const read = reader(schema);
  assert.deepEqual(read(JSON.stringify(whole)), whole);
  assert.deepEqual(read(JSON.stringify(least)), least);
  for (const value of [lacking, wrong]) {
    assert.throws(() => read(JSON.stringify(value)), Mismatch);
  }
});
