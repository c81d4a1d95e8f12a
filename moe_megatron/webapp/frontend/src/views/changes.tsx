/** What moved most since a checkpoint: experts by their rank in their layer, before and now. */
import { useRef } from "react";
import { paths } from "../data/paths";
import type { Move } from "../data/types";
import { csvOf, svgOfElement } from "../draw/svg";
import { count, ratio } from "../format";
import { Note, Panel, Ready } from "../parts/panel";
import { useWidth } from "../parts/width";
import { useMoment, useSubject } from "../state/context";
import { useLoaded } from "../state/loaded";
import { go, usePlace } from "../state/place";

const SHOWN = 40;
const ROW = 24;
const TOP = 26;
const MOST_OCTAVES = 4;

/** Octaves either side of a fair share within which all that is shown lies. */
export function octavesOf(moves: Move[]): number {
  const far = moves.flatMap((move) => [move.ratio_before, move.ratio_after]).map((value) => (value ? Math.abs(Math.log2(value)) : MOST_OCTAVES));
  return Math.min(MOST_OCTAVES, Math.max(1, Math.ceil(Math.max(...far))));
}

export function ChangesView() {
  const { source, run } = useSubject();
  const place = usePlace();
  const { step } = useMoment();
  const steps = [...new Set([run.first_step, ...run.checkpoints.map((checkpoint) => checkpoint.step)])].filter((one) => one <= step);
  const since = place.since ?? run.checkpoints.find((checkpoint) => checkpoint.step < step)?.step ?? run.first_step;
  const loaded = useLoaded(
    step > since ? paths.moves(run.id, since, step) : null,
    (signal) => source.moves(run.id, since, step, signal),
    0,
    run.id,
  );
  const picture = useRef<SVGSVGElement>(null);
  // A report may know another span than that asked for.
  const title = `What moved from step ${count(loaded.data?.since ?? since)} to ${count(loaded.data?.last ?? step)}`;
  return (
    <Panel
      title={title}
      says="Experts whose rank by load in their layer changed most. Open dot: then; full dot: now."
      savable={
        loaded.data?.moves.length
          ? {
              name: `${run.name}_moves_${since}_to_${step}`,
              svg: () => svgOfElement(picture.current!, `${run.name}: ${title}`),
              csv: () =>
                csvOf(
                  ["layer", "expert", "rank_before", "rank_after", "ratio_before", "ratio_after"],
                  loaded.data!.moves.map((m) => [m.layer, m.expert, m.rank_before, m.rank_after, m.ratio_before, m.ratio_after]),
                ),
            }
          : null
      }
      actions={
        <label className="field">
          <span>Since</span>
          <select value={since} onChange={(event) => go({ since: Number(event.target.value) })}>
            {[...new Set([...steps, since])].sort((a, b) => a - b).map((one) => (
              <option key={one} value={one}>
                {run.checkpoints.some((checkpoint) => checkpoint.step === one) ? `checkpoint ${count(one)}` : `step ${count(one)}`}
              </option>
            ))}
          </select>
        </label>
      }
    >
      {step <= since ? (
        <Note>Go to a later step than {count(since)} on the bar below: changes are those from there to the step that is shown.</Note>
      ) : (
        <Ready of={loaded} height={400}>
          {({ moves }) => (moves.length ? <Dumbbells moves={moves.slice(0, SHOWN)} picture={picture} /> : <Note>No expert changed its rank.</Note>)}
        </Ready>
      )}
    </Panel>
  );
}

function Dumbbells({ moves, picture }: { moves: Move[]; picture: React.RefObject<SVGSVGElement | null> }) {
  const [box, width] = useWidth<HTMLDivElement>();
  const left = width < 560 ? 92 : 128;
  const right = width < 560 ? 74 : 108;
  const area = Math.max(40, width - left - right);
  const octaves = octavesOf(moves);
  const x = (value: number | null) => {
    const octave = value === null || value <= 0 ? -octaves : Math.log2(value);
    return left + (area * (Math.min(octaves, Math.max(-octaves, octave)) + octaves)) / (2 * octaves);
  };
  const height = TOP + moves.length * ROW + 4;
  return (
    <div ref={box}>
      {width > 0 && (
        <svg ref={picture} className="chart" width={width} height={height} role="img" aria-label={`The ${moves.length} largest moves`}>
          {[-octaves, -octaves / 2, 0, octaves / 2, octaves].filter(Number.isInteger).map((octave) => 2 ** octave).map((value) => (
            <g key={value}>
              <line className={value === 1 ? "even" : "grid"} x1={x(value)} x2={x(value)} y1={TOP - 6} y2={height} />
              <text className="tick" x={x(value)} y={12} textAnchor="middle">
                {value < 1 ? `1/${1 / value}` : value}
                {value === 1 ? " fair share" : ""}
              </text>
            </g>
          ))}
          <text className="tick" x={width} y={12} textAnchor="end">
            rank
          </text>
          {moves.map((move, i) => {
            const y = TOP + (i + 0.5) * ROW;
            const rose = move.rank_after < move.rank_before;
            return (
              <g key={`${move.layer}.${move.expert}`} className={rose ? "rose" : "fell"}>
                <rect className="row-hit" x="0" y={y - ROW / 2} width={width} height={ROW} onClick={() => go({ view: "routing", cell: move })}>
                  <title>{`Layer ${move.layer}, expert ${move.expert}: ${ratio(move.ratio_before)} to ${ratio(move.ratio_after)}. Click to open it.`}</title>
                </rect>
                <text className="name" x="0" y={y + 4}>
                  {width < 560 ? `L${move.layer} E${move.expert}` : `layer ${move.layer}, expert ${move.expert}`}
                </text>
                <line className="bar" x1={x(move.ratio_before)} x2={x(move.ratio_after)} y1={y} y2={y} />
                <circle className="then" cx={x(move.ratio_before)} cy={y} r="4" />
                <circle className="after" cx={x(move.ratio_after)} cy={y} r="4.5" />
                <text className="name" x={width} y={y + 4} textAnchor="end">
                  {move.rank_before} {"\u2192"} {move.rank_after}
                </text>
              </g>
            );
          })}
        </svg>
      )}
    </div>
  );
}
