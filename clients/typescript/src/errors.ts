/**
 * What a call or a run can end with, decoded once from the wire into one tree.
 *
 *     BehestError               a call failed; `reason` says why
 *     ├── UnreachableError      the daemon could not be reached, or went away, for longer than the client's patience
 *     ├── ClientClosedError     the client was closed while the call was open
 *     ├── WatchOrderError       the daemon broke the order of a watch: a gap, a repeat, an event after the end
 *     └── RunEndedError         the run ended, and not well
 *         ├── RunFailedError
 *         ├── RunCancelledError
 *         └── RunTimedOutError
 *
 * Reasons are names of `ErrorReason` without their prefix: compare them, never texts. What the transport answers by
 * itself, without our details, gets a reason that begins with TRANSPORT_. Above: every module of the client.
 */

import { anyUnpack } from "@bufbuild/protobuf/wkt";
import { Code, ConnectError } from "@connectrpc/connect";
import { BadRequestSchema, ErrorInfoSchema, RetryInfoSchema } from "./gen/google/rpc/error_details_pb.js";
import type { Status } from "./gen/google/rpc/status_pb.js";

const DOMAIN = "behest";
const TRANSPORT_REASONS: ReadonlyMap<Code, string> = new Map([
  [Code.Unavailable, "TRANSPORT_UNAVAILABLE"],
  [Code.DeadlineExceeded, "TRANSPORT_DEADLINE"],
  [Code.Canceled, "TRANSPORT_CANCELLED"],
  [Code.ResourceExhausted, "TRANSPORT_TOO_LARGE"],
  [Code.Unimplemented, "TRANSPORT_UNIMPLEMENTED"],
  // What becomes of a connection that dies at the wrong moment.
  [Code.Aborted, "TRANSPORT_STREAM_BROKEN"],
  [Code.Internal, "TRANSPORT_STREAM_BROKEN"],
  [Code.Unknown, "TRANSPORT_STREAM_BROKEN"],
]);
/** Nothing was decided about the request: it may be sent again, if it carries a request_id or has no effect. */
const UNDECIDED_REASONS: ReadonlySet<string> = new Set([
  "TRANSPORT_UNAVAILABLE",
  "TRANSPORT_DEADLINE",
  "TRANSPORT_STREAM_BROKEN",
  "TRANSPORT_CANCELLED",
  "RUNTIME_DRAINING",
  "STORAGE_FAILED",
  "STORAGE_BUSY",
  "WATCH_STALLED",
]);

/** What the details of an error say beyond its reason. */
export interface ErrorFields {
  /** Every value that the message names. */
  readonly metadata?: Readonly<Record<string, string>>;
  /** When trying again makes sense, in seconds. */
  readonly retrySeconds?: number | undefined;
  /** Each wrong field, and what is wrong with it. */
  readonly violations?: readonly Violation[];
}

/** A field of the request that is wrong. */
export interface Violation {
  readonly field: string;
  readonly description: string;
}

/** Thrown when a call failed. `reason` is stable, and empty when the other side is no behestd and gave none. */
export class BehestError extends Error {
  override readonly name: string = "BehestError";
  readonly code: Code;
  readonly reason: string;
  readonly metadata: Readonly<Record<string, string>>;
  readonly retrySeconds: number | undefined;
  readonly violations: readonly Violation[];

  constructor(code: Code, reason: string, message: string, fields: ErrorFields = {}, cause?: unknown) {
    super(`${reason || Code[code]}: ${message}`, { cause });
    this.code = code;
    this.reason = reason;
    this.metadata = fields.metadata ?? {};
    this.retrySeconds = fields.retrySeconds;
    this.violations = fields.violations ?? [];
  }

  /** Whether another attempt cannot help, whatever the reason. */
  get isFinal(): boolean {
    return false;
  }

  /** Whether it is not known if the call took effect, so that only a repeatable one may be sent again. */
  get isUndecided(): boolean {
    return !this.isFinal && UNDECIDED_REASONS.has(this.reason);
  }

  /** Whether a watch that ended so can be resumed. */
  get isResumable(): boolean {
    const isShed = this.code === Code.ResourceExhausted && this.retrySeconds !== undefined;
    return !this.isFinal && (this.code === Code.Unavailable || this.isUndecided || isShed);
  }
}

/** Thrown when the daemon cannot be reached, or the connection broke and did not come back in time. */
export class UnreachableError extends BehestError {
  override readonly name = "UnreachableError";
}

/** Thrown when the client was closed while the call was open. */
export class ClientClosedError extends BehestError {
  override readonly name = "ClientClosedError";

  constructor() {
    super(Code.Canceled, "TRANSPORT_CANCELLED", "the client was closed");
  }

  override get isFinal(): boolean {
    return true;
  }
}

/** Thrown when a watch brings an event other than the next one: the client stops rather than guess. */
export class WatchOrderError extends BehestError {
  override readonly name = "WatchOrderError";

  constructor(runId: string, expected: bigint, received: bigint) {
    super(
      Code.DataLoss,
      "TRANSPORT_STREAM_BROKEN",
      `watch of run ${runId} brought event ${received} where ${expected} is next`,
      { metadata: { runId, expected: String(expected), received: String(received) } },
    );
  }

  override get isFinal(): boolean {
    return true;
  }
}

/** Thrown when a run whose result is asked for ended, and not well. `status` is the run's own error. */
export class RunEndedError extends BehestError {
  override readonly name: string = "RunEndedError";
  readonly runId: string;
  readonly status: Status | undefined;

  constructor(runId: string, status: Status | undefined) {
    const read = status === undefined ? undefined : readStatus(status);
    const text = status?.message || `run ${runId} ended without a word`;
    super(read?.code ?? Code.Unknown, read?.reason ?? "", text, read?.fields);
    this.runId = runId;
    this.status = status;
  }

  override get isFinal(): boolean {
    return true;
  }
}

/** Thrown when the run failed; `reason` says why. */
export class RunFailedError extends RunEndedError {
  override readonly name = "RunFailedError";
}

/** Thrown when the run was cancelled. `reason` is empty unless a failure forced the end. */
export class RunCancelledError extends RunEndedError {
  override readonly name = "RunCancelledError";
}

/** Thrown when the run ran out of time, working or queueing. */
export class RunTimedOutError extends RunEndedError {
  override readonly name = "RunTimedOutError";
}

/** Returns our error for whatever a raw stub threw. A code without our details was given by the transport itself. */
export function fromRpc(error: unknown): BehestError {
  if (error instanceof BehestError) {
    return error;
  }
  const known = ConnectError.from(error);
  const [info] = known.findDetails(ErrorInfoSchema);
  if (info === undefined || info.domain !== DOMAIN) {
    return transportError(known.code, known.rawMessage, known);
  }
  const [retry] = known.findDetails(RetryInfoSchema);
  const bad = known.findDetails(BadRequestSchema);
  const fields = {
    metadata: info.metadata,
    retrySeconds: seconds(retry?.retryDelay),
    violations: bad.flatMap((each) => each.fieldViolations),
  };
  return new BehestError(known.code, info.reason, known.rawMessage, fields, known);
}

/** Returns the error of a stream that ended without its last word. */
export function brokenStream(message: string): UnreachableError {
  return new UnreachableError(Code.Unavailable, "TRANSPORT_STREAM_BROKEN", message);
}

function transportError(code: Code, message: string, cause: unknown): BehestError {
  const Kind = code === Code.Unavailable ? UnreachableError : BehestError;
  return new Kind(code, TRANSPORT_REASONS.get(code) ?? "", message, {}, cause);
}

/** Reads the details of a status; those of unknown types are passed over. */
function readStatus(status: Status): { code: Code; reason: string; fields: ErrorFields } {
  let reason = "";
  let metadata: Record<string, string> = {};
  let retrySeconds: number | undefined;
  for (const detail of status.details) {
    const info = anyUnpack(detail, ErrorInfoSchema);
    if (info?.domain === DOMAIN) {
      reason = info.reason;
      metadata = info.metadata;
    }
    retrySeconds ??= seconds(anyUnpack(detail, RetryInfoSchema)?.retryDelay);
  }
  const code = status.code in Code ? (status.code as Code) : Code.Unknown;
  return { code, reason, fields: { metadata, retrySeconds } };
}

function seconds(duration: { seconds: bigint; nanos: number } | undefined): number | undefined {
  return duration && Number(duration.seconds) + duration.nanos / 1e9;
}
