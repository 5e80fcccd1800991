/** What a tool server answers, in both protocols. Above: `dialled` and `link`. Below: `tool_calls` and `results`. */

import { create, fromBinary } from "@bufbuild/protobuf";
import { durationMs } from "@bufbuild/protobuf/wkt";
import { type ToolResult, ToolResultSchema } from "./gen/behest/v1/message_pb.js";
import type { Progress } from "./gen/behest/v1/tool_pb.js";
import {
  CallState,
  type CallToolResponse,
  CallToolResponseSchema,
  type GetCallStatusRequest,
  type GetCallStatusResponse,
  GetCallStatusResponseSchema,
} from "./gen/behest/v1/tool_service_pb.js";
import { cannotTell, outcomeUnknown } from "./refusals.js";
import { cut, frames } from "./results.js";
import { Running } from "./running.js";
import type { Calls } from "./tool_calls.js";

const LONGEST_WAIT_MS = 30_000;

/** Returns the answer to GetCallStatus. Throws Refused. */
export async function statusOf(calls: Calls, request: GetCallStatusRequest): Promise<GetCallStatusResponse> {
  const waitMs = Math.min(request.wait ? durationMs(request.wait) : 0, LONGEST_WAIT_MS);
  const found = await calls.status(request.idempotencyKey, request.epoch, request.attempt, Math.max(waitMs, 0));
  if (found === undefined) {
    throw cannotTell();
  }
  if (found instanceof Running) {
    return create(GetCallStatusResponseSchema, { state: CallState.RUNNING });
  }
  switch (found.state) {
    case "buried":
      return create(GetCallStatusResponseSchema, { state: CallState.NEVER_SEEN });
    case "running":
      throw outcomeUnknown();
    case "done":
      return create(GetCallStatusResponseSchema, {
        state: CallState.DONE,
        result: cut(fromBinary(ToolResultSchema, found.result)),
      });
  }
}

/** Returns the frame of progress. */
export function progressFrame(progress: Progress): CallToolResponse {
  return create(CallToolResponseSchema, { frame: { case: "progress", value: progress } });
}

/** Yields the frames of a result. */
export function* resultFrames(result: ToolResult, chunkBytes?: number): Generator<CallToolResponse, void, undefined> {
  const { chunks, rest } = frames(result, chunkBytes);
  for (const chunk of chunks) {
    yield create(CallToolResponseSchema, { frame: { case: "chunk", value: chunk } });
  }
  yield create(CallToolResponseSchema, { frame: { case: "result", value: rest } });
}
