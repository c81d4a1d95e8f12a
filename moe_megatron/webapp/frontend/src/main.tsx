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
if (data) void import("./data/embedded").then(({ EmbeddedSource }) => draw(new EmbeddedSource(JSON.parse(data))));
else draw(new ServerSource());
