/** A card with a title, what it says, what can be done with it, and its states: loading, empty, broken. */
import { Children, type ReactNode, useState } from "react";
import { pngOf, save } from "../draw/svg";

export interface Savable {
  /** Becomes the file's name. */
  name: string;
  csv?: () => string;
  svg?: () => string;
}

export function Panel(props: {
  title: string;
  says?: ReactNode;
  actions?: ReactNode;
  savable?: Savable | null;
  className?: string;
  children: ReactNode;
}) {
  return (
    <section className={`panel ${props.className ?? ""}`} aria-label={props.title}>
      <header>
        <div>
          <h2>{props.title}</h2>
          {props.says && (
            <p>
              <Words>{props.says}</Words>
            </p>
          )}
        </div>
        <div className="actions">
          {props.actions}
          {props.savable && <SaveMenu {...props.savable} />}
        </div>
      </header>
      {props.children}
    </section>
  );
}

function SaveMenu({ name, csv, svg }: Savable) {
  const [problem, setProblem] = useState("");
  const doing = (what: () => void | Promise<void>) => () => {
    setProblem("");
    Promise.resolve()
      .then(what)
      .catch((error: Error) => setProblem(error.message));
  };
  return (
    <div className="save" role="group" aria-label={`Save ${name}`}>
      {svg && (
        <>
          <button onClick={doing(async () => save(await pngOf(svg()), `${name}.png`))}>PNG</button>
          <button onClick={doing(() => save(new Blob([svg()], { type: "image/svg+xml" }), `${name}.svg`))}>SVG</button>
        </>
      )}
      {csv && <button onClick={doing(() => save(new Blob([csv()], { type: "text/csv" }), `${name}.csv`))}>CSV</button>}
      {problem && <span role="alert">{problem}</span>}
    </div>
  );
}

/** What stands between backticks is to be typed, and looks so. */
export function Words({ children }: { children: ReactNode }) {
  return Children.map(children, (child) =>
    typeof child === "string" ? child.split("`").map((part, i) => (i % 2 ? <code key={i}>{part}</code> : part)) : child,
  );
}

export function Note({ children, title }: { title?: string; children: ReactNode }) {
  return (
    <div className="note">
      {title && <strong>{title}</strong>}
      <p>
        <Words>{children}</Words>
      </p>
    </div>
  );
}

export function Problem({ text, again }: { text: string; again?: () => void }) {
  return (
    <div className="note problem" role="alert">
      <p>
        <Words>{text}</Words>
      </p>
      {again && <button onClick={again}>Try again</button>}
    </div>
  );
}

/** What stands where data will be. */
export const Waiting = ({ height = 160 }: { height?: number }) => (
  <div className="waiting" style={{ height }} role="status" aria-label="Loading" />
);

/** Data if it is there, else why not. */
export function Ready<T>(props: {
  of: { data: T | null; error: string | null; again(): void };
  height?: number;
  children: (data: T) => ReactNode;
}) {
  const { data, error, again } = props.of;
  return (
    <>
      {error && <Problem text={error} again={again} />}
      {data === null ? !error && <Waiting height={props.height} /> : props.children(data)}
    </>
  );
}

export function Choice<T extends string | number>(props: {
  label: string;
  value: T;
  options: readonly { value: T; text: string; hint?: string; off?: boolean }[];
  pick(value: T): void;
}) {
  return (
    <div className="choice" role="group" aria-label={props.label}>
      <span aria-hidden="true">{props.label}</span>
      {props.options.map((option) => (
        <button
          key={option.value}
          aria-pressed={option.value === props.value}
          disabled={option.off}
          title={option.hint}
          onClick={() => props.pick(option.value)}
        >
          {option.text}
        </button>
      ))}
    </div>
  );
}
