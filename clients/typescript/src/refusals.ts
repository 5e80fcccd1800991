/** Refusals of a tool server, as errors of a call and as ends of an attached one. Above: `dialled` and `attached`. */

import { create, type MessageInitShape } from "@bufbuild/protobuf";
import { anyPack } from "@bufbuild/protobuf/wkt";
import { Code, ConnectError } from "@connectrpc/connect";
import { type AttachEnd, AttachEndSchema } from "./gen/behest/v1/registry_service_pb.js";
import { ErrorInfoSchema } from "./gen/google/rpc/error_details_pb.js";
import { Refused } from "./running.js";

const PROOF = { "behest-not-executed": "1" };

/** Returns the error of the RPC, with the reason, and in the trailers the proof if there is any. */
export function asError({ code, reason, message, isProof }: Refused): ConnectError {
  return new ConnectError(message, code, isProof ? PROOF : undefined, [{ desc: ErrorInfoSchema, value: info(reason) }]);
}

/** Returns the end of a call on an attached stream. */
export function asEnd({ code, reason, message, isProof }: Refused): AttachEnd {
  const detail = anyPack(ErrorInfoSchema, create(ErrorInfoSchema, info(reason)));
  return create(AttachEndSchema, { error: { code, message, details: [detail] }, notExecuted: isProof });
}

/** The refusal of a key of which the server cannot tell whether it was executed. */
export function cannotTell(): Refused {
  const text = "this server forgets its calls when it stops, and does not know this one";
  return new Refused(Code.Unimplemented, "REQUEST_UNSUPPORTED", text, { isProof: false });
}

/** The refusal of a key whose call was running when the server stopped. */
export function outcomeUnknown(): Refused {
  const text = "the server stopped while the call ran; whether it took effect is not known";
  return new Refused(Code.Aborted, "TOOL_OUTCOME_UNKNOWN", text, { isProof: false });
}

function info(reason: string): MessageInitShape<typeof ErrorInfoSchema> {
  return { reason, domain: "behest" };
}
