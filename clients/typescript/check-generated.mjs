/** Generates the contract beside src/gen and compares, or with --write puts it in its place. */

import { execFileSync } from "node:child_process";
import { cpSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

const here = fileURLToPath(new URL(".", import.meta.url));
const committed = join(here, "src/gen");
const buf = process.env.BUF ?? join(here, "../../.venv/bin/buf");
const scratch = mkdtempSync(join(tmpdir(), "behest-gen-"));

/** Reads every file below a folder, by its path there. */
function read(folder) {
  const names = readdirSync(folder, { recursive: true }).map(String);
  const files = names.filter((name) => statSync(join(folder, name)).isFile());
  return new Map(files.map((name) => [name, readFileSync(join(folder, name), "utf8")]));
}

try {
  execFileSync(buf, ["generate", "--template", "buf.gen.yaml", "--output", scratch], { cwd: here, stdio: "inherit" });
  const fresh = join(scratch, "src/gen");
  if (process.argv.includes("--write")) {
    rmSync(committed, { recursive: true, force: true });
    cpSync(fresh, committed, { recursive: true });
  } else {
    const [now, then] = [read(fresh), read(committed)];
    const stale = [...new Set([...now.keys(), ...then.keys()])].filter((name) => now.get(name) !== then.get(name));
    for (const name of stale.sort()) {
      process.stderr.write(`not current: src/gen/${name} (run make clients-typescript-proto)\n`);
    }
    process.exitCode = stale.length > 0 ? 1 : 0;
  }
} finally {
  rmSync(scratch, { recursive: true, force: true });
}
