/** Data from the server that the page came from: HTTP for what was, a WebSocket for what comes. */
import { type Frame, decodeFrame } from "./frame";
import { paths } from "./paths";
import { type DataSource, LOG_IN, SourceError, type Watcher } from "./source";
import type { Span } from "./types";

/** Scrubbing back and forth asks for the same frames again: 512 of 61 x 256 are 8 MB. */
const FRAMES_KEPT = 512;
const FIRST_RETRY_S = 0.5;
const LAST_RETRY_S = 15;

export const NO_ANSWER =
  "The server does not answer. It may have been stopped: start it again with `moe-megatron dashboard RUN_DIR`; the page goes on by itself.";

/** How long to wait before the given attempt (0 is the first), so that a server that restarts is not flooded. */
export const retrySeconds = (attempt: number): number => Math.min(LAST_RETRY_S, FIRST_RETRY_S * 2 ** attempt);

async function answerOf(path: string, options: RequestInit): Promise<Response> {
  let answer: Response;
  try {
    answer = await fetch(path, { credentials: "same-origin", ...options });
  } catch (problem) {
    if (options.signal?.aborted) throw problem;
    throw new SourceError(NO_ANSWER);
  }
  if (answer.ok) return answer;
  if (answer.status === 401 && path !== paths.logIn()) throw new SourceError(LOG_IN);
  const said = await answer.json().catch(() => null);
  throw new SourceError(said?.error ?? `The server answered ${answer.status} to ${path}; its log says why.`);
}

export class ServerSource implements DataSource {
  readonly live = true;
  private readonly frames = new Map<string, Frame>();

  private async get<T>(path: string, signal?: AbortSignal): Promise<T> {
    return (await answerOf(path, { signal })).json();
  }

  private async post<T>(path: string, body: unknown, signal?: AbortSignal): Promise<T> {
    const headers = { "Content-Type": "application/json", "X-Requested-With": "moe-megatron" };
    return (await answerOf(path, { method: "POST", headers, body: JSON.stringify(body), signal })).json();
  }

  async matrix(id: string, span: Span, signal?: AbortSignal): Promise<Frame> {
    const path = paths.matrix(id, span);
    const kept = this.frames.get(path);
    if (kept) return kept;
    const frame = decodeFrame(await (await answerOf(path, { signal })).arrayBuffer());
    this.frames.set(path, frame);
    if (this.frames.size > FRAMES_KEPT) this.frames.delete(this.frames.keys().next().value!);
    return frame;
  }

  runs: DataSource["runs"] = (signal) => this.get(paths.runs(), signal);
  run: DataSource["run"] = (id, signal) => this.get(paths.run(id), signal);
  layers: DataSource["layers"] = (id, columns, signal) => this.get(paths.layers(id, columns), signal);
  summary: DataSource["summary"] = (id, signal) => this.get(paths.summary(id), signal);
  series: DataSource["series"] = (id, columns, signal) => this.get(paths.series(id, columns), signal);
  expert: DataSource["expert"] = (id, layer, expert, columns, signal) =>
    this.get(paths.expert(id, layer, expert, columns), signal);
  flow: DataSource["flow"] = (id, span, signal) => this.get(paths.flow(id, span), signal);
  moves: DataSource["moves"] = (id, since, last, signal) => this.get(paths.moves(id, since, last), signal);
  ranks: DataSource["ranks"] = (id, span, signal) => this.get(paths.ranks(id, span), signal);
  cost: DataSource["cost"] = (id, columns, signal) => this.get(paths.cost(id, columns), signal);
  expertCost: DataSource["expertCost"] = (id, span, signal) => this.get(paths.expertCost(id, span), signal);
  views: DataSource["views"] = (signal) => this.get(paths.views(), signal);
  own: DataSource["own"] = (id, name, span, signal) => this.get(paths.own(id, name, span), signal);
  events: DataSource["events"] = (id, after, signal) => this.get(paths.events(id, after), signal);
  log: DataSource["log"] = (id, after, signal) => this.get(paths.log(id, after), signal);
  logIn: DataSource["logIn"] = (token) => this.post(paths.logIn(), { token });
  logOut: DataSource["logOut"] = () => this.post(paths.logOut(), {});
  models: DataSource["models"] = (signal) => this.get(paths.models(), signal);
  inspect: DataSource["inspect"] = (asked, text, signal) => this.post(paths.inspect(), { ...asked, text }, signal);
  ask = async (id: string, what: "checkpoint" | "stop"): Promise<void> => void (await this.post(paths.ask(id), { what }));

  watch(id: string, watcher: Watcher): () => void {
    let socket: WebSocket | null = null;
    let timer = 0;
    let attempt = 0;
    let over = false;
    const connect = () => {
      watcher.connection("connecting");
      const address = new URL(paths.live(id), location.href);
      address.protocol = address.protocol.replace("http", "ws");
      socket = new WebSocket(address);
      socket.binaryType = "arraybuffer";
      socket.onopen = () => {
        attempt = 0;
        watcher.connection("open");
      };
      socket.onmessage = (message: MessageEvent<ArrayBuffer | string>) => {
        if (!over) hear(message.data, watcher);
      };
      socket.onclose = () => {
        if (over) return;
        const seconds = retrySeconds(attempt++);
        watcher.connection("lost", seconds);
        timer = window.setTimeout(connect, seconds * 1000);
      };
    };
    // A page that nobody sees asks for nothing.
    const seen = () => {
      if (socket?.readyState === WebSocket.OPEN) {
        socket.send(JSON.stringify({ type: document.hidden ? "pause" : "resume" }));
      }
    };
    document.addEventListener("visibilitychange", seen);
    connect();
    return () => {
      over = true;
      clearTimeout(timer);
      document.removeEventListener("visibilitychange", seen);
      socket?.close();
    };
  }
}

function hear(data: ArrayBuffer | string, watcher: Watcher): void {
  if (typeof data !== "string") return watcher.frame(decodeFrame(data));
  const message = JSON.parse(data);
  if (message.type === "step") watcher.step(message);
  else if (message.type === "event") watcher.event(message);
  else if (message.type === "state") watcher.state(message.state);
}
