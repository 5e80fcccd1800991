/** The tools of a server, by name. Pure. Above: `tools`, `dialled` and `attached`. */

import { createHash } from "node:crypto";
import { timestampMs } from "@bufbuild/protobuf/wkt";
import { Code } from "@connectrpc/connect";
import type { Tool } from "./gen/behest/v1/tool_pb.js";
import type { CallToolRequest, ListToolsRequest, ListToolsResponse } from "./gen/behest/v1/tool_service_pb.js";
import { matches } from "./glob.js";
import { Refused } from "./running.js";
import type { Registered } from "./tool_calls.js";

const NAME = /^[A-Za-z0-9_-]{1,64}$/;

/** What is registered. */
export class Catalog {
  readonly #registered = new Map<string, Registered>();

  /** The tools, by ascending name. */
  get tools(): Tool[] {
    return [...this.#registered.keys()].sort().map((name) => this.get(name).tool);
  }

  /** Adds a tool and sets its hash. Throws TypeError for a name that is taken or not allowed. */
  add(registered: Registered): void {
    const { tool } = registered;
    if (!NAME.test(tool.name)) {
      throw new TypeError(`${JSON.stringify(tool.name)} is not [A-Za-z0-9_-]{1,64}`);
    }
    if (this.#registered.has(tool.name)) {
      throw new TypeError(`tool ${tool.name} is registered already`);
    }
    tool.hash = hashOf(tool);
    this.#registered.set(tool.name, registered);
  }

  /** Returns what is registered under a name. Throws Refused. */
  get(name: string): Registered {
    const found = this.#registered.get(name);
    if (found === undefined) {
      throw new Refused(Code.NotFound, "TOOL_NOT_FOUND", `tool ${name.slice(0, 64)} not found`);
    }
    return found;
  }

  /** Finds the function of a request that may begin now. Throws Refused, with proof. */
  find(request: CallToolRequest): Registered {
    const found = this.get(request.toolName);
    const pinned = request.toolHash;
    if (pinned.length > 0 && Buffer.compare(pinned, found.tool.hash) !== 0) {
      const text = `tool ${request.toolName} is not what the caller pinned`;
      throw new Refused(Code.FailedPrecondition, "TOOL_CHANGED", text);
    }
    if (request.startBy !== undefined && timestampMs(request.startBy) < Date.now()) {
      throw new Refused(Code.FailedPrecondition, "TOOL_START_EXPIRED", "the time to begin is over");
    }
    return found;
  }

  /** Returns one page of the tools. Throws Refused. */
  page({ pageSize, pageToken, nameGlob }: ListToolsRequest): Pick<ListToolsResponse, "tools" | "nextPageToken"> {
    if (pageSize < 0) {
      throw new Refused(Code.InvalidArgument, "REQUEST_INVALID", `page_size of ${pageSize} is negative`);
    }
    const size = Math.min(pageSize || 50, 1_000);
    const rest = this.tools.filter(({ name }) => name > pageToken && (!nameGlob || matches(nameGlob, name)));
    const tools = rest.slice(0, size);
    return { tools, nextPageToken: rest.length > size ? (tools.at(-1)?.name ?? "") : "" };
  }
}

/** SHA-256 over name, description, input schema and output schema, each as its length in 8 bytes and its UTF-8. */
function hashOf(tool: Tool): Uint8Array<ArrayBuffer> {
  const digest = createHash("sha256");
  for (const text of [tool.name, tool.description, tool.inputSchemaJson, tool.outputSchemaJson]) {
    const data = Buffer.from(text);
    const length = Buffer.alloc(8);
    length.writeBigUInt64BE(BigInt(data.length));
    digest.update(length).update(data);
  }
  return new Uint8Array(digest.digest());
}
