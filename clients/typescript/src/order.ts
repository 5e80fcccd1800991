/** Builds the order of a run from what a caller finds natural to write. No I/O. Above: `client` and `run`. */

import { create, type MessageInitShape } from "@bufbuild/protobuf";
import { type Duration, DurationSchema } from "@bufbuild/protobuf/wkt";
import { type Part, PartSchema } from "./gen/behest/v1/message_pb.js";
import { type RunSpec, RunSpecSchema } from "./gen/behest/v1/run_spec_pb.js";

/** What is said to a run: a text, a part of a message, or several of both. */
export type Input = string | Part | readonly (string | Part)[];

/** The fields of RunSpec that a caller may set. What each means, set and unset, is said there. */
export type Order = Omit<
  Exclude<MessageInitShape<typeof RunSpecSchema>, RunSpec>,
  "$typeName" | "input" | "timeout"
> & {
  readonly timeoutSeconds?: number;
  /** Makes the order repeatable: the same id is the same run. One is made when it is left out. */
  readonly requestId?: string;
};

/** Returns the parts of a message. */
export function parts(said: Input): Part[] {
  const every = Array.isArray(said) ? said : [said];
  return every.map((each: string | Part) =>
    typeof each === "string" ? create(PartSchema, { kind: { case: "text", value: { text: each } } }) : each,
  );
}

/** Returns the order. */
export function runSpec(said: Input, order: Order): RunSpec {
  const { timeoutSeconds, requestId: _, ...fields } = order;
  const spec = create(RunSpecSchema, { ...fields, input: parts(said) });
  if (timeoutSeconds !== undefined) {
    spec.timeout = duration(timeoutSeconds);
  }
  return spec;
}

/** Returns a duration, exact to the nanosecond of the float. */
export function duration(seconds: number): Duration {
  const whole = Math.trunc(seconds);
  return create(DurationSchema, { seconds: BigInt(whole), nanos: Math.round((seconds - whole) * 1e9) });
}
