/** The processes that share the experts: who carries how much, and who waits. */
import { useRef } from "react";
import { paths } from "../data/paths";
import type { Ranks } from "../data/types";
import { csvOf, svgOfElement } from "../draw/svg";
import { ratio, short, spanText } from "../format";
import { Note, Panel, Ready } from "../parts/panel";
import { useWidth } from "../parts/width";
import { useMoment, useSubject } from "../state/context";
import { useLoaded } from "../state/loaded";

const ROW = 30;
const TOP = 26;

export function RanksView() {
  const { source, run } = useSubject();
  const { span } = useMoment();
  const loaded = useLoaded(paths.ranks(run.id, span), (signal) => source.ranks(run.id, span, signal), 0, run.id);
  const picture = useRef<SVGSVGElement>(null);
  const many = (loaded.data?.ranks.length ?? 0) > 1;
  return (
    <Panel
      title="Expert-parallel ranks"
      says={`Tokens that each rank's experts got, over the mean of ranks, ${spanText(span)}. The slowest rank sets the pace: the others wait for it.`}
      savable={
        many
          ? {
              name: `${run.name}_ranks_step_${span[1]}`,
              svg: () => svgOfElement(picture.current!, `${run.name}: load of EP ranks, ${spanText(span)}`),
              csv: () => csvOf(["rank", "load_over_mean", "wait_seconds"], loaded.data!.ranks.map((rank) => [rank.rank, rank.load, rank.wait_seconds])),
            }
          : null
      }
    >
      <Ready of={loaded} height={240}>
        {(ranks) => (many ? <RankBars ranks={ranks} picture={picture} /> : <Note>All experts of this run are in one process; with `--expert-model-parallel-size 2` or more, this compares them.</Note>)}
      </Ready>
    </Panel>
  );
}

function RankBars({ ranks: { ranks }, picture }: { ranks: Ranks; picture: React.RefObject<SVGSVGElement | null> }) {
  const [box, width] = useWidth<HTMLDivElement>();
  const waits = ranks.some((rank) => rank.wait_seconds !== null);
  const left = 58;
  const room = Math.max(80, width - left - 64);
  const forLoad = waits ? room * 0.64 : room;
  const forWait = waits ? room - forLoad - 70 : 0;
  const most = Math.max(1.2, ...ranks.map((rank) => rank.load ?? 0));
  const longest = Math.max(...ranks.map((rank) => rank.wait_seconds ?? 0)) || 1;
  const mean = left + forLoad / most;
  const height = TOP + ranks.length * ROW;
  const waitAt = left + forLoad + 70;
  return (
    <div ref={box}>
      {width > 0 && (
        <svg ref={picture} className="chart" width={width} height={height} role="img" aria-label={`Load of ${ranks.length} ranks`}>
          <text className="tick" x={mean} y={12} textAnchor="middle">
            mean
          </text>
          {waits && (
            <text className="tick" x={waitAt} y={12}>
              waits in a forward pass, at least
            </text>
          )}
          {ranks.map((rank, i) => {
            const y = TOP + i * ROW;
            const wide = (forLoad * (rank.load ?? 0)) / most;
            return (
              <g key={rank.rank}>
                <text className="name" x="0" y={y + 15}>
                  rank {rank.rank}
                </text>
                <rect className={(rank.load ?? 0) > 1 ? "load over" : "load under"} x={left} y={y + 3} width={wide} height={ROW - 12} rx="3" />
                <text className="value" x={left + wide + 8} y={y + 16}>
                  {ratio(rank.load)}
                </text>
                {rank.wait_seconds !== null && (
                  <>
                    <rect className="wait" x={waitAt} y={y + 3} width={(forWait * rank.wait_seconds) / longest} height={ROW - 12} rx="3" />
                    <text className="value" x={waitAt + (forWait * rank.wait_seconds) / longest + 8} y={y + 16}>
                      {short(1000 * rank.wait_seconds)} ms
                    </text>
                  </>
                )}
              </g>
            );
          })}
          <line className="even" x1={mean} x2={mean} y1={TOP - 8} y2={height} />
        </svg>
      )}
    </div>
  );
}
