/** What a run ended with, read from its terminal event or from its record. Pure. Above: `run` and `watch`. */

import { create } from "@bufbuild/protobuf";
import { Code } from "@connectrpc/connect";
import { RunCancelledError, RunFailedError, RunTimedOutError } from "./errors.js";
import type { Event } from "./gen/behest/v1/event_pb.js";
import type { Run as RunRecord } from "./gen/behest/v1/run_pb.js";
import { type RunOutput, RunOutputSchema, RunState } from "./gen/behest/v1/run_state_pb.js";
import { type Status, StatusSchema } from "./gen/google/rpc/status_pb.js";

/** Whether a state is terminal. */
export function hasEnded(state: RunState): boolean {
  return state >= RunState.COMPLETED && state <= RunState.TIMED_OUT;
}

/** Returns the output that a terminal event carries. Throws RunEndedError when the run did not complete. */
export function outcomeOfEvent({ runId, payload }: Event): RunOutput {
  switch (payload.case) {
    case "runFailed":
      throw new RunFailedError(runId, payload.value.error);
    case "runCancelled":
      throw new RunCancelledError(runId, cancelledStatus(runId, payload.value.error));
    case "runTimedOut":
      throw new RunTimedOutError(runId, payload.value.error);
    case "runCompleted":
      return payload.value.output ?? create(RunOutputSchema);
    default:
      throw new TypeError(`event ${payload.case} ends no run`);
  }
}

/** Returns the output of a run that has ended. Throws RunEndedError when it did not complete. */
export function outcomeOfRun(run: RunRecord): RunOutput {
  switch (run.state) {
    case RunState.FAILED:
      throw new RunFailedError(run.id, run.error);
    case RunState.CANCELLED:
      throw new RunCancelledError(run.id, cancelledStatus(run.id, run.error));
    case RunState.TIMED_OUT:
      throw new RunTimedOutError(run.id, run.error);
    default:
      return run.output ?? create(RunOutputSchema);
  }
}

function cancelledStatus(runId: string, error: Status | undefined): Status {
  return error?.code ? error : create(StatusSchema, { code: Code.Canceled, message: `run ${runId} was cancelled` });
}
