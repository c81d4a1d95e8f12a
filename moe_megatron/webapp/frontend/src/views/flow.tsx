/** How tokens go from the experts of a layer to those of the next (Sankey). */
import { type SankeyLink, type SankeyNode, sankey, sankeyLinkHorizontal } from "d3-sankey";
import { useMemo, useRef, useState } from "react";
import { paths } from "../data/paths";
import type { Flow } from "../data/types";
import { type FlowNode, type FlowPath, nodeId, pathsOf } from "../draw/flow";
import { csvOf, svgOfElement } from "../draw/svg";
import { percent } from "../format";
import { Note, Panel, Ready } from "../parts/panel";
import { useWidth } from "../parts/width";
import { useMoment, useSubject } from "../state/context";
import { useLoaded } from "../state/loaded";
import { go, usePlace } from "../state/place";

const NAMED = 12;
const HEIGHT = 480;

type Node = SankeyNode<FlowNode, FlowPath>;
type Link = SankeyLink<FlowNode, FlowPath>;

export function FlowView() {
  const { source, run } = useSubject();
  const { span } = useMoment();
  const { cell } = usePlace();
  const [start, setStart] = useState(0);
  const picture = useRef<SVGSVGElement>(null);
  const loaded = useLoaded(paths.flow(run.id, span), (signal) => source.flow(run.id, span, signal), 0, run.id);
  const layers = loaded.data?.layers ?? [];
  const shown = Math.min(4, layers.length);
  const from = Math.max(0, Math.min(start, layers.length - shown));
  const some = !!loaded.data?.links.length;
  return (
    <Panel
      title="From layer to layer"
      says={loaded.data?.note || "The busiest experts by name; a path is as thick as its share of tokens."}
      savable={
        some
          ? {
              name: `${run.name}_flow`,
              svg: () => svgOfElement(picture.current!, `${run.name}: flow of tokens`),
              csv: () => csvOf(["from_layer", "from_expert", "to_expert", "share"], loaded.data!.links.map((l) => [l.from_layer, l.from_expert, l.to_expert, l.share])),
            }
          : null
      }
      actions={
        layers.length > shown && (
          <label className="field">
            <span>From layer</span>
            <select value={from} onChange={(event) => setStart(Number(event.target.value))}>
              {layers.slice(0, layers.length - shown + 1).map((layer, i) => (
                <option key={layer} value={i}>
                  {layer}
                </option>
              ))}
            </select>
          </label>
        )
      }
    >
      <Ready of={loaded} height={HEIGHT}>
        {(flow) =>
          some ? (
            <Sankey flow={flow} layers={layers.slice(from, from + shown)} chosen={cell} picture={picture} />
          ) : (
            <Note>
              {flow.note || "This run has not recorded how tokens go from layer to layer."}
            </Note>
          )
        }
      </Ready>
    </Panel>
  );
}

function Sankey(props: { flow: Flow; layers: number[]; chosen: FlowNode | null; picture: React.RefObject<SVGSVGElement | null> }) {
  const { flow, layers, chosen, picture } = props;
  const [box, width] = useWidth<HTMLDivElement>();
  const [over, setOver] = useState<string | null>(null);
  const laid = useMemo(() => (width ? layout(pathsOf(flow.links, layers, NAMED, chosen), layers, width) : null), [flow, layers.join(), chosen, width]);
  const lit = over ?? (chosen && nodeId(chosen));
  const draw = sankeyLinkHorizontal<FlowNode, FlowPath>();
  return (
    <div ref={box} className="scroll">
      {laid && (
        <svg ref={picture} className="chart sankey" width={width} height={HEIGHT} role="img" aria-label={`Paths of tokens through layers ${layers.join(", ")}`} onPointerLeave={() => setOver(null)}>
          {laid.links.map((link, i) => {
            const on = lit !== null && [link.from, link.to].some((end) => nodeId(end) === lit);
            return (
              <path key={i} className={lit === null ? "path" : on ? "path lit" : "path faint"} d={draw(link) ?? ""} strokeWidth={Math.max(0.75, link.width ?? 0)}>
                <title>{`${named(link.from)} to ${named(link.to)}: ${percent(link.share)}`}</title>
              </path>
            );
          })}
          {laid.nodes.map((node) => {
            const id = nodeId(node);
            const last = node.x1! > width - 40;
            const high = node.y1! - node.y0!;
            return (
              <g key={id} onPointerEnter={() => setOver(id)} onClick={() => node.expert !== null && go({ cell: { layer: node.layer, expert: node.expert } })}>
                <rect className={node.expert === null ? "rest" : id === lit ? "node lit" : "node"} x={node.x0} y={node.y0} width={10} height={Math.max(1, high)} rx="2">
                  <title>{`${named(node)}: ${percent(node.value)}`}</title>
                </rect>
                {high > 9 && (
                  <text className="tick" x={last ? node.x0! - 6 : node.x1! + 6} y={(node.y0! + node.y1!) / 2 + 4} textAnchor={last ? "end" : "start"}>
                    {node.expert ?? "others"}
                  </text>
                )}
              </g>
            );
          })}
          {layers.map((layer, i) => (
            <text key={layer} className="name" x={i === layers.length - 1 ? width : (i * (width - 10)) / Math.max(1, layers.length - 1)} y={12} textAnchor={i === 0 ? "start" : i === layers.length - 1 ? "end" : "middle"}>
              layer {layer}
            </text>
          ))}
        </svg>
      )}
    </div>
  );
}

const named = (node: FlowNode) => `layer ${node.layer}, ${node.expert === null ? "other experts" : `expert ${node.expert}`}`;

function layout(found: FlowPath[], layers: number[], width: number): { nodes: Node[]; links: Link[] } | null {
  if (!found.length) return null;
  const nodes = new Map<string, FlowNode>();
  for (const path of found) for (const end of [path.from, path.to]) nodes.set(nodeId(end), end);
  const make = sankey<FlowNode, FlowPath>()
    .nodeId((node) => nodeId(node))
    // An expert that no path leads to still stands in its own layer.
    .nodeAlign((node) => layers.indexOf(node.layer))
    .nodeWidth(10)
    .nodePadding(7)
    .nodeSort((a, b) => (a.expert === null ? 1 : b.expert === null ? -1 : (b.value ?? 0) - (a.value ?? 0)))
    .extent([
      [0, 26],
      [width, HEIGHT - 6],
    ]);
  return make({
    nodes: [...nodes.values()].map((node) => ({ ...node })),
    links: found.map((path) => ({ ...path, source: nodeId(path.from), target: nodeId(path.to), value: path.share })),
  });
}
