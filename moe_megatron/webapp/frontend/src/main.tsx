/** Starts the page: on the data within it, if it is a report, else on the server's. */
import { StrictMode } from "react";
import { createRoot } from "react-dom/client";
import { App } from "./app";
import { EmbeddedSource, dataOfPage } from "./data/embedded";
import { ServerSource } from "./data/server";
import "uplot/dist/uPlot.min.css";
import "./style.css";

const data = dataOfPage();
const source = data ? new EmbeddedSource(data) : new ServerSource();

createRoot(document.getElementById("page")!).render(
  <StrictMode>
    <App source={source} />
  </StrictMode>,
);
