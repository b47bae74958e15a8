// Kept and pruned numbers of a weight, as bars over their values.
import { useEffect, useRef, useState } from "preact/hooks";
import uPlot from "uplot";
import { number } from "./format";
import type { Values } from "./schema";

/** Middles of the bins that are not empty at both ends, and their counts; null where there is none, as plots want it. */
export function seriesOf(values: Values): [number[], (number | null)[], (number | null)[]] {
  const width = (values.high - values.low) / values.kept.length;
  const all = values.kept.map((kept, place) => kept + (values.pruned?.[place] ?? 0));
  const first = Math.max(
    0,
    all.findIndex((each) => each > 0),
  );
  const last = all.findLastIndex((each) => each > 0);
  const places = Array.from({ length: last - first + 1 }, (_, place) => first + place);
  return [
    places.map((place) => values.low + (place + 0.5) * width),
    places.map((place) => values.kept[place]! || null),
    places.map((place) => values.pruned?.[place] || null),
  ];
}

/** How many pruned numbers are stored as exact zeros, if all are: they would be one bar beside which all others vanish. */
export function zeroed(values: Values): number {
  const pruned = values.pruned?.reduce((sum, count) => sum + count, 0) ?? 0;
  const middle = values.kept.length / 2;
  return pruned > 0 && values.pruned![middle] === pruned && values.zeros >= pruned ? pruned : 0;
}

export function Histogram({ values }: { values: Values }) {
  const box = useRef<HTMLDivElement>(null);
  const [log, setLog] = useState(false);
  const [theme, setTheme] = useState(0);
  useEffect(() => {
    const changed = () => setTheme((old) => old + 1);
    addEventListener("themechange", changed);
    const media = matchMedia("(prefers-color-scheme: dark)");
    media.addEventListener("change", changed);
    return () => {
      removeEventListener("themechange", changed);
      media.removeEventListener("change", changed);
    };
  }, []);
  useEffect(() => {
    const parent = box.current;
    if (!parent) return;
    const colour = (name: string) => getComputedStyle(parent).getPropertyValue(name).trim();
    const data = seriesOf(zeroed(values) ? { ...values, pruned: null } : values);
    const bars = uPlot.paths.bars!({ size: [0.92, 40], align: 0 });
    const axis = {
      stroke: colour("--faint"),
      grid: { stroke: colour("--line"), width: 1 },
      ticks: { show: false },
      font: "11px system-ui",
    };
    const plot = new uPlot(
      {
        width: parent.clientWidth,
        height: 190,
        legend: { show: false },
        cursor: { drag: { x: true, y: false }, points: { show: false } },
        scales: {
          x: { time: false },
          y: log ? { distr: 3, log: 10 } : { range: (_, __, most) => [0, most * 1.05] },
        },
        axes: [
          { ...axis, size: 28, values: (_, ticks) => ticks.map((tick) => number(tick)) },
          {
            ...axis,
            size: 52,
            values: (_, ticks) => ticks.map((tick) => (tick === null ? "" : tick.toLocaleString("en-US"))),
          },
        ],
        series: [
          {},
          {
            label: "pruned",
            paths: bars,
            fill: colour("--pruned"),
            stroke: "transparent",
            points: { show: false },
          },
          {
            label: "kept",
            paths: bars,
            fill: colour("--kept"),
            stroke: "transparent",
            points: { show: false },
          },
        ],
      },
      [data[0], data[2], data[1]] as uPlot.AlignedData,
      parent,
    );
    return () => plot.destroy();
  }, [values, log, theme]);
  return (
    <div class="histogram">
      <div class="bar">
        <p class="legend">
          <i class="key kept" /> kept{" "}
          {zeroed(values) ? (
            <span class="faint">{zeroed(values).toLocaleString("en-US")} pruned, all stored as zero</span>
          ) : (
            values.pruned && (
              <>
                <i class="key pruned" /> pruned
              </>
            )
          )}
        </p>
        <label>
          <input type="checkbox" checked={log} onChange={(event) => setLog(event.currentTarget.checked)} />{" "}
          logarithmic
        </label>
      </div>
      <div ref={box} role="img" aria-label="Histogram of the values" />
    </div>
  );
}
