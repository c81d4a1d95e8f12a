/** The token inspector: a text, each token in the colour of its expert, and a token's way through the layers. */
import { useState } from "react";
import type { Inspection } from "../data/types";
import { LINES } from "../draw/colours";
import { csvOf } from "../draw/svg";
import { count, percent } from "../format";
import { Note, Panel, Problem } from "../parts/panel";
import { useSubject } from "../state/context";
import { go } from "../state/place";
import { useTheme } from "../state/theme";

const EXAMPLE = "def mean(values):\n    return sum(values) / len(values)";

export function TokensView() {
  const { source, run } = useSubject();
  const [text, setText] = useState(EXAMPLE);
  const [checkpoint, setCheckpoint] = useState<number | null>(run.checkpoints.at(-1)?.step ?? null);
  const [answer, setAnswer] = useState<Inspection | null>(null);
  const [problem, setProblem] = useState<string | null>(null);
  const [busy, setBusy] = useState(false);
  const ask = async () => {
    setBusy(true);
    setProblem(null);
    try {
      setAnswer(await source.inspect(run.id, checkpoint, text));
    } catch (error) {
      setProblem((error as Error).message);
    }
    setBusy(false);
  };
  if (!source.live || !run.checkpoints.length) {
    return (
      <Panel title="Token by token">
        <Note>
          {source.live
            ? "The inspector asks a checkpoint, and this run has none yet. `--save-interval N` writes one every N steps."
            : "A report cannot ask a model. Open the run with `moe-megatron dashboard RUN_DIR` for that."}
        </Note>
      </Panel>
    );
  }
  return (
    <Panel
      title="Token by token"
      says="Which experts a checkpoint chooses for each token of a text of yours."
      savable={answer ? { name: `${run.name}_tokens`, csv: () => inspectionCsv(answer) } : null}
    >
      <div className="ask">
        <label className="field">
          <span>Text</span>
          <textarea rows={4} value={text} spellCheck={false} onChange={(event) => setText(event.target.value)} />
        </label>
        <label className="field">
          <span>Checkpoint</span>
          <select value={checkpoint ?? ""} onChange={(event) => setCheckpoint(Number(event.target.value))}>
            {run.checkpoints.map((one) => (
              <option key={one.step} value={one.step}>
                step {count(one.step)}
                {one.best ? ", best" : ""}
              </option>
            ))}
          </select>
        </label>
        <button className="primary" disabled={busy || !text} onClick={ask}>
          {busy ? "Asking the model" : "Show its experts"}
        </button>
      </div>
      {problem && <Problem text={problem} again={ask} />}
      {answer && <Answer key={answer.tokens.join()} answer={answer} />}
    </Panel>
  );
}

function Answer({ answer }: { answer: Inspection }) {
  const theme = useTheme();
  const [row, setRow] = useState(0);
  const [token, setToken] = useState<number | null>(null);
  const colours = LINES[theme];
  const top = (at: number, of: number) => answer.experts[at]?.[of]?.[0];
  // The commonest experts of a text get the colours; the rest are grey, as more than seven are not told apart.
  const uses = new Map<number, number>();
  for (let i = 0; i < answer.tokens.length; i++) {
    const expert = top(row, i);
    if (expert !== undefined) uses.set(expert, (uses.get(expert) ?? 0) + 1);
  }
  const common = [...uses].sort(([a, x], [b, y]) => y - x || a - b).slice(0, colours.length - 1);
  const colourOf = (expert: number | undefined) => colours[common.findIndex(([each]) => each === expert)] ?? "transparent";
  return (
    <>
      <div className="token-layers">
        <label className="field">
          <span>Layer {answer.layers[row]}</span>
          <input type="range" min={0} max={answer.layers.length - 1} value={row} onChange={(event) => setRow(Number(event.target.value))} />
        </label>
        <ul>
          {common.map(([expert, times]) => (
            <li key={expert}>
              <i style={{ background: colourOf(expert) }} /> expert {expert} <small>{times}</small>
            </li>
          ))}
        </ul>
      </div>
      <div className="tokens">
        {answer.tokens.map((text, i) => (
          <button key={i} aria-pressed={i === token} onClick={() => setToken(i === token ? null : i)} style={{ borderBottomColor: colourOf(top(row, i)) }} title={`expert ${top(row, i)}`}>
            {text.replaceAll("\n", "\u21b5").replaceAll(" ", "\u00a0")}
          </button>
        ))}
      </div>
      {token !== null && (
        <div className="table" tabIndex={0} role="region" aria-label="Way of the token">
          <table>
            <thead>
              <tr>
                <th>Layer</th>
                <th className="words">Experts of {JSON.stringify(answer.tokens[token])}, by weight</th>
              </tr>
            </thead>
            <tbody>
              {answer.layers.map((layer, at) => (
                <tr key={layer}>
                  <td>{layer}</td>
                  <td className="words">
                    {(answer.experts[at]?.[token] ?? []).map((expert, choice) => (
                      <button key={expert} onClick={() => go({ view: "routing", cell: { layer, expert } })}>
                        {expert} <small>{percent(answer.weights[at]?.[token]?.[choice])}</small>
                      </button>
                    ))}
                  </td>
                </tr>
              ))}
            </tbody>
          </table>
        </div>
      )}
    </>
  );
}

const inspectionCsv = (answer: Inspection): string =>
  csvOf(
    ["layer", "token", "text", "choice", "expert", "weight"],
    answer.layers.flatMap((layer, l) =>
      answer.tokens.flatMap((text, t) => (answer.experts[l]?.[t] ?? []).map((expert, c) => [layer, t, text, c, expert, answer.weights[l]?.[t]?.[c]])),
    ),
  );
