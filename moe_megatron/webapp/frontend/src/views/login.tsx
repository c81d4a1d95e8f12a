/** The form in which a token is pasted; the browser gets a session for it, which no script can read. */
import { useState } from "react";
import type { DataSource } from "../data/source";
import { Panel, Problem, Words } from "../parts/panel";

export function Login({ source, entered }: { source: DataSource; entered(): void }) {
  const [token, setToken] = useState("");
  const [problem, setProblem] = useState<string | null>(null);
  const [busy, setBusy] = useState(false);
  const enter = async () => {
    setBusy(true);
    setProblem(null);
    try {
      await source.logIn?.(token);
      entered();
    } catch (error) {
      setProblem((error as Error).message);
    }
    setBusy(false);
  };
  return (
    <Panel title="Who are you?" says="This dashboard shows its runs to those who have a token." className="login">
      <form
        className="ask"
        onSubmit={(event) => {
          event.preventDefault();
          void enter();
        }}
      >
        <label className="field">
          <span>Token</span>
          <input type="password" autoComplete="current-password" autoFocus spellCheck={false} value={token} onChange={(event) => setToken(event.target.value)} />
        </label>
        <button className="primary" disabled={busy || !token}>
          {busy ? "Looking" : "Log in"}
        </button>
      </form>
      {problem && <Problem text={problem} />}
      <p>
        <Words>Whoever started the dashboard makes tokens with `moe-megatron dashboard token NAME`.</Words>
      </p>
    </Panel>
  );
}
