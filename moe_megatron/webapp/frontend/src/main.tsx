/** Starts the page: on the data within it, if it is a report, else on the server's. */
import { StrictMode } from "react";
import { createRoot } from "react-dom/client";
import { App } from "./app";
import { ServerSource } from "./data/server";
import type { DataSource } from "./data/source";
import "uplot/dist/uPlot.min.css";
import "./style.css";

const draw = (source: DataSource) =>
  createRoot(document.getElementById("page")!).render(
    <StrictMode>
      <App source={source} />
    </StrictMode>,
  );

const data = document.getElementById("run-data")?.textContent;
if (data) {
  void import("./data/embedded").then(({ EmbeddedSource }) => {
    const held = JSON.parse(data);
    if (held.runs.length > 1 && !location.hash) location.hash = "#view=compare";
    draw(new EmbeddedSource(held));
  });
}
else draw(new ServerSource());
