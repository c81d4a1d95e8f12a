/** The token inspector: a text, each token in the colour of its expert, and a token's way through the layers. */
import { type KeyboardEvent, useContext, useEffect, useMemo, useRef, useState } from "react";
import { paths } from "../data/paths";
import type { Asked, DataSource } from "../data/source";
import type { Inspection, Run } from "../data/types";
import { LINES } from "../draw/colours";
import { stacked, svgOfElement } from "../draw/svg";
import { breaksLine, colouring, inspectionCsv, shownToken, textPicture, topExperts, usedExperts, wayOf } from "../draw/tokens";
import { count, percent } from "../format";
import { Note, Panel, Problem, Waiting } from "../parts/panel";
import { Way } from "../parts/way";
import { SubjectContext } from "../state/context";
import { useLoaded } from "../state/loaded";
import { go } from "../state/place";
import { useTheme } from "../state/theme";

const EXAMPLE = "def mean(values):\n    return sum(values) / len(values)";

interface Choice {
  key: string;
  name: string;
  asked: Asked;
}

function choicesOf(run: Run | null, models: { id: string; name: string }[]): Choice[] {
  const steps = (run?.checkpoints ?? []).map(({ step, best }) => ({
    key: `step ${step}`,
    name: `step ${count(step)}${best ? ", best" : ""}`,
    asked: { run: run!.id, checkpoint: step },
  }));
  return [...steps.reverse(), ...models.map(({ id, name }) => ({ key: `model ${id}`, name, asked: { model: id } }))];
}

/** `source` is given where there is no run. */
export function TokensView(props: { source?: DataSource }) {
  const subject = useContext(SubjectContext);
  const source = subject?.source ?? props.source!;
  const run = subject?.run ?? null;
  const models = useLoaded(source.live ? paths.models() : null, (signal) => source.models(signal));
  const choices = choicesOf(run, models.data ?? []);
  if (!source.live) return <Nothing>A report cannot ask a model. Open the run with `moe-megatron dashboard RUN_DIR` for that.</Nothing>;
  if (models.error) return <Problem text={models.error} again={models.again} />;
  if (!models.data) return <Waiting height={420} />;
  if (!choices.length) {
    return (
      <Nothing>
        The inspector asks a checkpoint, and this run has none yet: `--save-interval N` writes one every N steps. `moe-megatron dashboard --model FOLDER`
        asks any other model.
      </Nothing>
    );
  }
  return <Inspector source={source} choices={choices} name={run?.name ?? "model"} run={run} />;
}

const TITLE = "Token by token";

const Nothing = ({ children }: { children: string }) => (
  <Panel title={TITLE}>
    <Note>{children}</Note>
  </Panel>
);

function Inspector({ source, choices, name, run }: { source: DataSource; choices: Choice[]; name: string; run: Run | null }) {
  const theme = useTheme();
  const [text, setText] = useState(EXAMPLE);
  const [key, setKey] = useState(choices[0]!.key);
  const [answer, setAnswer] = useState<{ of: Inspection; by: string } | null>(null);
  const [problem, setProblem] = useState<string | null>(null);
  const [busy, setBusy] = useState(false);
  const [row, setRow] = useState(0);
  const [token, setToken] = useState<number | null>(null);
  const picture = useRef<SVGSVGElement>(null);
  const asking = useRef<AbortController | null>(null);
  useEffect(() => () => asking.current?.abort(), []);
  const choice = choices.find((one) => one.key === key) ?? choices[0]!;
  const ask = async () => {
    if (busy || !text) return;
    const mine = new AbortController();
    asking.current = mine;
    setBusy(true);
    setProblem(null);
    try {
      const found = await source.inspect(choice.asked, text, mine.signal);
      setAnswer({ of: found, by: choice.name });
      setRow((old) => Math.min(old, found.layers.length - 1));
      setToken(null);
    } catch (error) {
      if (mine.signal.aborted) return;
      setProblem((error as Error).message);
    }
    setBusy(false);
  };
  const title = answer && `${name}, ${answer.by}: experts of layer ${answer.of.layers[row]}`;
  const saved = () => {
    const whole = textPicture(answer!.of, row, LINES.light, title!);
    if (token === null || !picture.current) return whole;
    return stacked([whole, svgOfElement(picture.current, `Way of ${JSON.stringify(answer!.of.tokens[token])} through the layers`)]);
  };
  return (
    <Panel
      title={TITLE}
      says="Which experts a model chooses for each token of a text of yours. The text goes to this server alone, and is not kept."
      savable={answer ? { name: `${name}_tokens`, csv: () => inspectionCsv(answer.of), svg: saved } : null}
    >
      <div className="ask">
        <label className="field">
          <span>Text</span>
          <textarea
            rows={4}
            value={text}
            spellCheck={false}
            aria-keyshortcuts="Control+Enter"
            onChange={(event) => setText(event.target.value)}
            onKeyDown={(event) => {
              if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) void ask();
            }}
          />
        </label>
        <label className="field">
          <span>Model</span>
          <select value={choice.key} onChange={(event) => setKey(event.target.value)}>
            {choices.map((one) => (
              <option key={one.key} value={one.key}>
                {one.name}
              </option>
            ))}
          </select>
        </label>
        <button className="primary" disabled={busy || !text} title="Ctrl+Enter" onClick={ask}>
          {busy ? "Asking the model" : "Show its experts"}
        </button>
      </div>
      <p className="unseen" role="status">
        {answer && !busy ? `${answer.of.tokens.length} tokens, by ${answer.by}` : ""}
      </p>
      {busy && <p className="asking">The first question to a model takes as long as loading it.</p>}
      {problem && <Problem text={problem} again={ask} />}
      {answer && (
        <Answer
          answer={answer.of}
          colours={LINES[theme]}
          experts={expertsOf(answer.of, run)}
          place={{ row, token, setRow, setToken }}
          picture={picture}
          // Cells of the matrix are those of the run.
          linked={!("model" in choice.asked)}
        />
      )}
    </Panel>
  );
}

/** How many experts a layer has, as far as one can know. */
const expertsOf = (answer: Inspection, run: Run | null): number =>
  answer.experts.reduce((most, layer) => layer.reduce((so, chosen) => Math.max(so, ...chosen.map((expert) => expert + 1)), most), run?.experts ?? 1);

interface At {
  row: number;
  token: number | null;
  setRow(row: number): void;
  setToken(token: number | null): void;
}

function Answer(props: { answer: Inspection; colours: string[]; experts: number; place: At; picture: React.RefObject<SVGSVGElement | null>; linked: boolean }) {
  const { answer, colours, experts, place, picture, linked } = props;
  const { row, token, setRow, setToken } = place;
  const tops = useMemo(() => topExperts(answer, row), [answer, row]);
  const used = useMemo(() => usedExperts(answer, row), [answer, row]);
  const colourOf = colouring(used, colours);
  const named = used.slice(0, colours.length - 1);
  const rest = used.slice(colours.length - 1).reduce((sum, one) => sum + one.times, 0);
  return (
    <>
      <div className="token-layers">
        <label className="field">
          <span>
            Layer <b>{answer.layers[row]}</b>
          </span>
          <input
            type="range"
            min={0}
            max={answer.layers.length - 1}
            value={row}
            aria-valuetext={`layer ${answer.layers[row]}`}
            onChange={(event) => setRow(Number(event.target.value))}
          />
        </label>
        <ul aria-label="How many tokens have an expert first">
          {named.map(({ expert, times }) => (
            <li key={expert}>
              <i style={{ background: colourOf(expert) }} /> expert {expert} <small>{times}</small>
            </li>
          ))}
          {rest > 0 && (
            <li>
              <i style={{ background: colours.at(-1) }} /> others <small>{rest}</small>
            </li>
          )}
        </ul>
      </div>
      <Tokens answer={answer} tops={tops} colourOf={colourOf} token={token} pick={setToken} />
      {token === null ? (
        <p className="asking">A click on a token shows its way through the layers; arrow keys go from token to token.</p>
      ) : (
        <>
          <h3>
            Way of <code>{shownToken(answer.tokens[token]!)}</code>: first choices are joined, and as large as their weight
          </h3>
          <Way stops={wayOf(answer, token)} layers={answer.layers} experts={experts} at={row} picture={picture} name={JSON.stringify(answer.tokens[token])} pick={setRow} />
          <WayTable answer={answer} token={token} linked={linked} />
        </>
      )}
    </>
  );
}

function Tokens(props: { answer: Inspection; tops: (number | null)[]; colourOf(expert: number | null): string; token: number | null; pick(token: number | null): void }) {
  const { answer, tops, colourOf, token, pick } = props;
  const [focus, setFocus] = useState(0);
  const list = useRef<HTMLDivElement>(null);
  const last = answer.tokens.length - 1;
  const reached = Math.min(focus, last);
  const key = (event: KeyboardEvent) => {
    const to = { ArrowRight: reached + 1, ArrowLeft: reached - 1, Home: 0, End: last }[event.key];
    if (event.key === "Escape") pick(null);
    if (to === undefined) return;
    event.preventDefault();
    event.stopPropagation();
    const next = Math.min(last, Math.max(0, to));
    setFocus(next);
    list.current?.querySelectorAll("button")[next]?.focus();
    if (token !== null) pick(next);
  };
  return (
    <div className="tokens" role="toolbar" aria-label="Tokens of the text" ref={list} onKeyDown={key}>
      {answer.tokens.map((text, i) => (
        <span key={i} className={breaksLine(text) ? "ends-line" : undefined}>
          <button
            tabIndex={i === reached ? 0 : -1}
            aria-pressed={i === token}
            onFocus={() => setFocus(i)}
            onClick={() => pick(i === token ? null : i)}
            style={{ borderBottomColor: colourOf(tops[i]!), backgroundColor: `color-mix(in srgb, ${colourOf(tops[i]!)} 18%, transparent)` }}
          >
            {shownToken(text)}
            <span className="unseen">, expert </span>
            <small>{tops[i] ?? "-"}</small>
          </button>
        </span>
      ))}
    </div>
  );
}

function WayTable({ answer, token, linked }: { answer: Inspection; token: number; linked: boolean }) {
  return (
    <div className="table" tabIndex={0} role="region" aria-label="Way of the token">
      <table>
        <thead>
          <tr>
            <th>Layer</th>
            <th className="words">Experts, best first, and their weights</th>
          </tr>
        </thead>
        <tbody>
          {answer.layers.map((layer, at) => (
            <tr key={layer}>
              <td>{layer}</td>
              <td className="words">
                {(answer.experts[at]?.[token] ?? []).map((expert, choice) => {
                  const said = (
                    <>
                      {expert} <small>{percent(answer.weights[at]?.[token]?.[choice])}</small>
                    </>
                  );
                  return linked ? (
                    <button key={expert} aria-label={`Layer ${layer}, expert ${expert}`} onClick={() => go({ view: "routing", cell: { layer, expert } })}>
                      {said}
                    </button>
                  ) : (
                    <span key={expert}>{said}</span>
                  );
                })}
              </td>
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  );
}
