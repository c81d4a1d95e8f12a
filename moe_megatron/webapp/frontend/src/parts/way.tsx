/** The way of one token through the layers: each stop as large as the weight of its expert. */
import type { RefObject } from "react";
import { type Stop } from "../draw/tokens";
import { percent } from "../format";
import { useWidth } from "./width";

const LEFT = 40;
const HEIGHT = 230;
const FOOT = 30;
const MOST_ROWS_NAMED = 16;

export function Way(props: { stops: Stop[]; layers: number[]; experts: number; at: number; picture: RefObject<SVGSVGElement | null>; name: string; pick(row: number): void }) {
  const { stops, layers, experts, at, picture, name, pick } = props;
  const [box, width] = useWidth<HTMLDivElement>();
  const column = (width - LEFT - 16) / Math.max(1, layers.length);
  const x = (row: number) => LEFT + column * (row + 0.5);
  const y = (expert: number) => 10 + ((HEIGHT - FOOT - 10) * (expert + 0.5)) / experts;
  const largest = Math.max(3, Math.min(9, column / 2, (HEIGHT - FOOT) / experts));
  const each = Math.ceil(experts / MOST_ROWS_NAMED);
  const every = Math.ceil(22 / Math.max(1, column));
  const place = new Map(layers.map((layer, row) => [layer, row]));
  const line = stops
    .filter((stop) => stop.first)
    .map((stop) => `${x(place.get(stop.layer)!).toFixed(1)},${y(stop.expert).toFixed(1)}`)
    .join(" ");
  return (
    <div ref={box} className="scroll">
      {width > 0 && (
        <svg ref={picture} className="chart way" width={width} height={HEIGHT} role="img" aria-label={`Way of ${name} through ${layers.length} layers; the table below says it in numbers`}>
          {Array.from({ length: Math.ceil(experts / each) }, (_, i) => i * each).map((expert) => (
            <g key={expert}>
              <line className="grid" x1={LEFT} x2={width - 8} y1={y(expert)} y2={y(expert)} />
              <text className="tick" x={LEFT - 8} y={y(expert) + 4} textAnchor="end">
                {expert}
              </text>
            </g>
          ))}
          <rect className="at" x={x(at) - column / 2} y={4} width={column} height={HEIGHT - FOOT} rx="3" />
          <polyline className="first" points={line} />
          {stops.map((stop) => (
            <circle key={`${stop.layer} ${stop.expert}`} className={stop.first ? "after" : "then"} cx={x(place.get(stop.layer)!)} cy={y(stop.expert)} r={Math.max(1.5, largest * Math.sqrt(Math.min(1, Math.max(0, stop.weight))))}>
              <title>{`layer ${stop.layer}, expert ${stop.expert}: ${percent(stop.weight)}`}</title>
            </circle>
          ))}
          {layers.map((layer, row) => (
            <g key={layer} onClick={() => pick(row)}>
              <rect className="row-hit" x={x(row) - column / 2} y={HEIGHT - FOOT} width={column} height={FOOT - 8} />
              {row % every === 0 && (
                <text className="tick" x={x(row)} y={HEIGHT - 12} textAnchor="middle">
                  {layer}
                </text>
              )}
            </g>
          ))}
        </svg>
      )}
    </div>
  );
}
