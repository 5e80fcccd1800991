/** Globs over names, in time that grows with the product of both lengths at most. Pure. Above: `catalog`. */

const TOKENS = /\[!?\]?[^\]]*\]|./gsu;

/** Whether a name matches a glob of `*`, `?`, `[abc]`, `[a-z]` and `[!abc]`. */
export function matches(glob: string, name: string): boolean {
  const tokens = glob.match(TOKENS) ?? [];
  const letters = [...name];
  let at = 0;
  let token = 0;
  // Where the last star stands, and how many letters it takes: it is only ever made to take more.
  let star = -1;
  let taken = 0;
  while (at < letters.length) {
    if (tokens[token] === "*") {
      star = token;
      taken = at;
      token += 1;
    } else if (token < tokens.length && fits(tokens[token] ?? "", letters[at] ?? "")) {
      token += 1;
      at += 1;
    } else if (star >= 0) {
      taken += 1;
      at = taken;
      token = star + 1;
    } else {
      return false;
    }
  }
  return tokens.slice(token).every((rest) => rest === "*");
}

function fits(token: string, letter: string): boolean {
  if (token.length < 3 || !token.startsWith("[")) {
    return token === "?" || token === letter;
  }
  const isNegated = token[1] === "!";
  const members = token.slice(isNegated ? 2 : 1, -1);
  let isMember = false;
  for (const [, from, to] of members.matchAll(/(.)(?:-(.))?/gsu)) {
    isMember ||= from !== undefined && from <= letter && letter <= (to ?? from);
  }
  return isMember !== isNegated;
}
