/** What the token inspector draws: colours of experts, a text as a picture, and a token's way as another one. */
import type { Inspection } from "../data/types";
import { csvOf, escaped, svgOf, svgText } from "./svg";

/** A token as it is read: what cannot be seen has a sign. */
export const shownToken = (text: string): string =>
  text === "" ? "\u2205" : text.replaceAll("\n", "\u21b5").replaceAll("\t", "\u21e5").replaceAll(" ", "\u00a0");

export const breaksLine = (text: string): boolean => text.includes("\n");

/** The first expert of each token in a layer; null where it has none. */
export const topExperts = (answer: Inspection, row: number): (number | null)[] =>
  answer.tokens.map((_, token) => answer.experts[row]?.[token]?.[0] ?? null);

export interface Used {
  expert: number;
  times: number;
}

/** Experts by how many tokens have them first, the most of them first. */
export function usedExperts(answer: Inspection, row: number): Used[] {
  const times = new Map<number, number>();
  for (const expert of topExperts(answer, row)) if (expert !== null) times.set(expert, (times.get(expert) ?? 0) + 1);
  return [...times].map(([expert, n]) => ({ expert, times: n })).sort((a, b) => b.times - a.times || a.expert - b.expert);
}

/** A colour for the commonest experts, and the last colour for all others: more are not told apart. */
export function colouring(used: Used[], colours: string[]): (expert: number | null) => string {
  const own = new Map(used.slice(0, colours.length - 1).map(({ expert }, i) => [expert, colours[i]!]));
  return (expert) => (expert === null ? "transparent" : (own.get(expert) ?? colours.at(-1)!));
}

export interface Stop {
  layer: number;
  expert: number;
  weight: number;
  /** Whether it is the first choice of its layer. */
  first: boolean;
}

/** Where a token goes, layer by layer. */
export const wayOf = (answer: Inspection, token: number): Stop[] =>
  answer.layers.flatMap((layer, row) =>
    (answer.experts[row]?.[token] ?? []).map((expert, choice) => ({
      layer,
      expert,
      weight: answer.weights[row]?.[token]?.[choice] ?? 0,
      first: choice === 0,
    })),
  );

export const inspectionCsv = (answer: Inspection): string =>
  csvOf(
    ["layer", "token", "text", "choice", "expert", "weight"],
    answer.layers.flatMap((layer, l) =>
      answer.tokens.flatMap((text, t) => (answer.experts[l]?.[t] ?? []).map((expert, c) => [layer, t, text, c, expert, answer.weights[l]?.[t]?.[c]])),
    ),
  );

const WIDTH = 960;
const MARGIN = 20;
const CHARACTER = 7.9;
const LINE = 42;

/** The text in the colours of its experts, with their numbers. */
export function textPicture(answer: Inspection, row: number, colours: string[], title: string): string {
  const tops = topExperts(answer, row);
  const colourOf = colouring(usedExperts(answer, row), colours);
  let [x, y, inner] = [MARGIN, 64, ""];
  answer.tokens.forEach((text, token) => {
    const shown = shownToken(text);
    const number = tops[token] === null ? "-" : String(tops[token]);
    const width = CHARACTER * Math.max([...shown].length, number.length) + 8;
    if (x > MARGIN && x + width > WIDTH - MARGIN) [x, y] = [MARGIN, y + LINE];
    const colour = escaped(colourOf(tops[token]!));
    inner +=
      `<rect x="${x}" y="${y - 15}" width="${width}" height="20" rx="2" fill="${colour}" fill-opacity="0.22"/>` +
      `<rect x="${x}" y="${y + 5}" width="${width}" height="3" fill="${colour}"/>` +
      svgText(x + 4, y, shown, 'font-family="monospace" font-size="13"') +
      svgText(x + 4, y + 19, number, 'font-size="10"');
    x += width + 3;
    if (breaksLine(text)) [x, y] = [MARGIN, y + LINE];
  });
  return svgOf(WIDTH, y + 40, svgText(MARGIN, 28, title, 'font-size="15" font-weight="600"') + inner, title);
}
