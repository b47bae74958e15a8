import "uplot/dist/uPlot.min.css";
import "./style.css";
import { render } from "preact";
import { App } from "./app";
import { readReport, unpacked } from "./data";

const held = document.getElementById("document");
const app = document.getElementById("app");
if (app && held) {
  readReport(held.textContent ?? "")
    .then((report) => {
      render(<App report={report} masks={unpacked(report.mask_data)} />, app);
      document.documentElement.dataset.ready = "true";
    })
    .catch((error: unknown) => {
      app.textContent = `The report cannot be read: ${String(error)}`;
    });
}
