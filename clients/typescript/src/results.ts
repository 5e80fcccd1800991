/** Results of tools as messages: made of what a function returned, and cut to what frames hold. Pure. */

import { create, isMessage, type MessageInitShape, toBinary } from "@bufbuild/protobuf";
import { PartSchema, type ToolResult, ToolResultSchema } from "./gen/behest/v1/message_pb.js";
import type { CallToolRequest } from "./gen/behest/v1/tool_service_pb.js";
import type { Mismatch } from "./schema.js";

export const CHUNK_BYTES = 1024 * 1024;
const RESULT_LIMIT_BYTES = 16 * CHUNK_BYTES;
const STATUS_LIMIT_BYTES = 3 * CHUNK_BYTES;
const ERROR_LIMIT = 2_000;

type PartInit = MessageInitShape<typeof PartSchema>;

/** Makes the result of a call that failed. */
export function errorResult(request: CallToolRequest, text: string): ToolResult {
  return ofParts(request, [textPart(text.slice(0, ERROR_LIMIT))], true);
}

/** Makes the result of a call whose arguments do not fit: JSON that lists what is wrong, and where. */
export function misfit(request: CallToolRequest, { problems }: Mismatch): ToolResult {
  const document = { error: "TOOL_ARGUMENTS_INVALID", tool: request.toolName, errors: problems };
  return ofParts(request, [jsonPart(document)], true);
}

/** Makes the result of what a function wrote and returned: strings are text, everything else JSON. Throws TypeError. */
export function resultOf(request: CallToolRequest, written: string, value: unknown): ToolResult {
  if (isMessage(value, ToolResultSchema)) {
    return value;
  }
  const parts: PartInit[] = [];
  const text = typeof value === "string" ? written + value : written;
  if (text || typeof value === "string") {
    parts.push(textPart(text));
  }
  if (isMessage(value, PartSchema)) {
    parts.push(value);
  } else if (typeof value !== "string" && !(value === undefined && written)) {
    parts.push(jsonPart(value));
  }
  const result = ofParts(request, parts, false);
  const size = sizeOf(result);
  if (size > RESULT_LIMIT_BYTES) {
    return errorResult(request, `the result of ${size} bytes exceeds the limit of ${RESULT_LIMIT_BYTES} bytes`);
  }
  return result;
}

/** Splits a result over the size of a chunk into pieces of its last part, when that is text or JSON, and the rest. */
export function frames(result: ToolResult, chunkBytes = CHUNK_BYTES): { chunks: Uint8Array[]; rest: ToolResult } {
  const last = result.parts.at(-1)?.kind;
  const content = last?.case === "text" ? last.value.text : last?.case === "json" ? last.value.json : "";
  if (!content || sizeOf(result) <= chunkBytes) {
    return { chunks: [], rest: result };
  }
  const data = new TextEncoder().encode(content);
  const chunks: Uint8Array[] = [];
  for (let start = 0; start < data.length; start += chunkBytes) {
    chunks.push(data.subarray(start, start + chunkBytes));
  }
  const empty: PartInit =
    last?.case === "text"
      ? { kind: { case: "text", value: { text: "" } } }
      : { kind: { case: "json", value: { json: "" } } };
  const rest = create(ToolResultSchema, {
    ...result,
    parts: [...result.parts.slice(0, -1), create(PartSchema, empty)],
  });
  return { chunks, rest };
}

/** Cuts a result to what one message holds: text is shortened, other parts are left out. */
export function cut(result: ToolResult): ToolResult {
  if (sizeOf(result) <= STATUS_LIMIT_BYTES) {
    return result;
  }
  let room = STATUS_LIMIT_BYTES;
  const parts: PartInit[] = [];
  for (const { kind } of result.parts) {
    if (kind.case === "text") {
      const data = new TextEncoder().encode(kind.value.text).subarray(0, room);
      room -= data.length;
      // A character that was cut in the middle is left out.
      parts.push(textPart(new TextDecoder().decode(data, { stream: true })));
    }
  }
  const { callId, name, isError } = result;
  return create(ToolResultSchema, { callId, name, isError, parts, truncated: true });
}

function sizeOf(result: ToolResult): number {
  return toBinary(ToolResultSchema, result).length;
}

function ofParts(request: CallToolRequest, parts: PartInit[], isError: boolean): ToolResult {
  return create(ToolResultSchema, { callId: request.callId, name: request.toolName, parts, isError });
}

function textPart(text: string): PartInit {
  return { kind: { case: "text", value: { text } } };
}

function jsonPart(value: unknown): PartInit {
  const json: string | undefined = JSON.stringify(value ?? null);
  if (json === undefined) {
    throw new TypeError(`${typeof value} has no form in JSON`);
  }
  return { kind: { case: "json", value: { json } } };
}
