/** What an operator may ask of a run that trains: a checkpoint, or an end. Each is asked for twice. */
import { useState } from "react";
import { Note, Panel, Problem } from "../parts/panel";
import { useSubject } from "../state/context";

type What = "checkpoint" | "stop";

const WORDS: Record<What, { button: string; really: string; asked: string }> = {
  checkpoint: {
    button: "Write a checkpoint",
    really: "Write a checkpoint after the step under way? Training waits for it as for any other.",
    asked: "Asked for a checkpoint. The events say when it is saved.",
  },
  stop: {
    button: "Stop the run",
    really: "Stop the run after the step under way? It ends as by Ctrl-C, and saves if it writes checkpoints; only where it was started can it be resumed.",
    asked: "Asked to stop. The run ends after its step.",
  },
};

export function AskPanel() {
  const { source, run } = useSubject();
  const [sure, setSure] = useState<What | null>(null);
  const [said, setSaid] = useState("");
  const [problem, setProblem] = useState("");
  const ask = async (what: What) => {
    setSure(null);
    setProblem("");
    setSaid("");
    try {
      await source.ask(run.id, what);
      setSaid(WORDS[what].asked);
    } catch (error) {
      setProblem((error as Error).message);
    }
  };
  return (
    <Panel title="Ask the run" says="What you ask is kept with your name.">
      {sure === null ? (
        <div className="ask">
          {(Object.keys(WORDS) as What[]).map((what) => (
            <button key={what} className="primary" onClick={() => setSure(what)}>
              {WORDS[what].button}
            </button>
          ))}
        </div>
      ) : (
        <div className="ask" role="alertdialog" aria-label={WORDS[sure].button}>
          <p>{WORDS[sure].really}</p>
          <button className="primary" autoFocus onClick={() => setSure(null)}>
            No
          </button>
          <button className="primary" onClick={() => void ask(sure)}>
            {`Yes, ${sure === "stop" ? "stop it" : "write one"}`}
          </button>
        </div>
      )}
      <div role="status">{said && <Note>{said}</Note>}</div>
      {problem && <Problem text={problem} />}
    </Panel>
  );
}
