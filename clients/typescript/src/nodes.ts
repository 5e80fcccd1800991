/** What became of the nodes of a run's graph, read from its events. Above: `run`. No I/O. */

import type { Event } from "./gen/behest/v1/event_pb.js";
import { NodeState } from "./gen/behest/v1/run_pb.js";

/** A node of a run's graph has another state now. The rest is in the event. */
export interface NodeChange {
  /** The node, with the subgraphs that it is in: "solve" or "inner/solve". */
  readonly node: string;
  /** The visit, counted from 1 within the run; 0 for a node that is left out before it began. */
  readonly visit: number;
  readonly state: NodeState;
  readonly event: Event;
}

const STATES = {
  nodeStarted: NodeState.RUNNING,
  nodeCompleted: NodeState.COMPLETED,
  nodeFailed: NodeState.FAILED,
  nodeSkipped: NodeState.SKIPPED,
} as const;

/** Returns what an event says of a node; undefined when it says nothing of one. */
export function changeOf(event: Event): NodeChange | undefined {
  const { payload } = event;
  switch (payload.case) {
    case "nodeStarted":
    case "nodeCompleted":
    case "nodeFailed":
    case "nodeSkipped":
      return { node: payload.value.node, visit: payload.value.visit, state: STATES[payload.case], event };
    default:
      return undefined;
  }
}
