/** Which experts and paths of a flow are shown: the busiest by name, all others as one. */
import type { FlowLink } from "../data/types";

export interface FlowNode {
  layer: number;
  /** null: all that are not named. */
  expert: number | null;
}

export interface FlowPath {
  from: FlowNode;
  to: FlowNode;
  share: number;
}

export const nodeId = ({ layer, expert }: FlowNode): string => `${layer}.${expert ?? "rest"}`;

/** Paths between `layers` (in their order), with the `named` busiest experts of each by name. */
export function pathsOf(links: FlowLink[], layers: number[], named: number, always: FlowNode | null = null): FlowPath[] {
  const next = new Map(layers.slice(0, -1).map((layer, i) => [layer, layers[i + 1]!]));
  const inside = links.filter((link) => next.has(link.from_layer) && link.share > 0);
  const through = new Map<number, Map<number, number>>(layers.map((layer) => [layer, new Map()]));
  const add = (layer: number, expert: number, share: number) => {
    const known = through.get(layer)!;
    known.set(expert, (known.get(expert) ?? 0) + share);
  };
  for (const link of inside) {
    add(link.from_layer, link.from_expert, link.share);
    add(next.get(link.from_layer)!, link.to_expert, link.share);
  }
  const names = new Map(
    [...through].map(([layer, experts]) => {
      const busiest = [...experts].sort(([a, x], [b, y]) => y - x || a - b).slice(0, named);
      const kept = new Set(busiest.map(([expert]) => expert));
      if (always?.layer === layer && always.expert !== null) kept.add(always.expert);
      return [layer, kept];
    }),
  );
  const node = (layer: number, expert: number): FlowNode => ({ layer, expert: names.get(layer)!.has(expert) ? expert : null });
  const found = new Map<string, FlowPath>();
  for (const link of inside) {
    const from = node(link.from_layer, link.from_expert);
    const to = node(next.get(link.from_layer)!, link.to_expert);
    const key = `${nodeId(from)} ${nodeId(to)}`;
    const path = found.get(key) ?? { from, to, share: 0 };
    path.share += link.share;
    found.set(key, path);
  }
  return [...found.values()];
}
