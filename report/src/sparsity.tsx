// The share of zeros of each layer of each block: a map for each stage, layers down, blocks across.
import { useEffect, useMemo, useRef, useState } from "preact/hooks";
import { sparsityOf } from "./data";
import { percent, shape } from "./format";
import type { Network } from "./schema";
import { useStore } from "./state";

const NUMBERED = 26; // blocks of a stage whose cells have room for a number

interface Cell {
  weight: number;
  share: number | null;
}

interface Grid {
  name: string;
  layers: string[];
  columns: string[]; // names of blocks
  cells: (Cell | null)[][]; // by layer, then block
}

/** One map for each stage, and one for what lies around the stages. */
export function gridsOf(network: Network): Grid[] {
  const around: Grid = { name: "around the stages", layers: [], columns: ["all"], cells: [] };
  const grids: Grid[] = [];
  for (const row of network.rows) {
    if (!row.blocks.length) {
      for (const place of row.weights) {
        const weight = network.weights[place]!;
        if (!weight.prunable) continue;
        around.layers.push(weight.name);
        around.cells.push([{ weight: place, share: sparsityOf(weight) }]);
      }
      continue;
    }
    const layers = new Map<string, Map<number, Cell>>();
    row.blocks.forEach((block, column) => {
      const { path, weights } = network.blocks[block]!;
      for (const place of weights) {
        const weight = network.weights[place]!;
        if (!weight.prunable) continue;
        const inner = weight.name.startsWith(`${path}.`) ? weight.name.slice(path.length + 1) : weight.name;
        const name = inner.replace(/\.weight$/, "");
        if (!layers.has(name)) layers.set(name, new Map());
        layers.get(name)!.set(column, { weight: place, share: sparsityOf(weight) });
      }
    });
    grids.push({
      name: row.name,
      layers: [...layers.keys()],
      columns: row.blocks.map((block) => network.blocks[block]!.path),
      cells: [...layers.values()].map((cells) => row.blocks.map((_, column) => cells.get(column) ?? null)),
    });
  }
  return around.layers.length ? [...grids, around] : grids;
}

export function Sparsity() {
  const { report } = useStore();
  const known = report.networks.some((network) =>
    network.weights.some((weight) => sparsityOf(weight) !== null),
  );
  if (!known)
    return <p class="empty">No weight has a mask, and no values were read: nothing is known to be zero.</p>;
  return (
    <section class="heat">
      <div class="bar">
        <p class="hint">Each cell is the weight of one layer in one block. A click opens it.</p>
        <Scale />
      </div>
      <div class="maps">
        {report.networks.map(
          (network, number) =>
            !network.outline && (
              <div key={number}>
                {report.networks.length > 1 && (
                  <h2>
                    <span class="tag">{number ? "result" : "source"}</span> {network.label}
                  </h2>
                )}
                {gridsOf(network).map((grid) => (
                  <Map_ key={grid.name} grid={grid} network={number} />
                ))}
              </div>
            ),
        )}
      </div>
    </section>
  );
}

function Scale() {
  return (
    <p class="legend">
      0 % <span class="ramp" /> 100 % zeros
    </p>
  );
}

/** A share in as few characters as tell it: "85 %", and "99.6" where whole numbers would say all. */
export function shareText(share: number): string {
  const hundred = share * 100;
  return hundred > 99 && hundred < 100 ? Math.min(hundred, 99.9).toFixed(1) : hundred.toFixed(0);
}

/** The colour of a share as the page's theme has it, from its two ends. */
export function heatColour(share: number, dark: boolean): string {
  const eased = Math.sqrt(1 - Math.min(Math.max(share, 0), 1)); // most tickets lie above 80 %: those are told apart
  const strength = 1 - eased;
  const light = dark ? 26 + 58 * strength : 96 - 62 * strength;
  const chroma = 0.025 + 0.12 * Math.sin(Math.PI * Math.min(strength * 0.75 + 0.1, 1));
  return `oklch(${light}% ${chroma} ${dark ? 230 - 60 * strength : 215 + 50 * strength})`;
}

function Map_({ grid, network }: { grid: Grid; network: number }) {
  const { report, open } = useStore();
  const canvas = useRef<HTMLCanvasElement>(null);
  const [tip, setTip] = useState<{ x: number; y: number; row: number; column: number } | null>(null);
  const columns = grid.columns.length;
  const numbered = columns <= NUMBERED;
  const wide = numbered ? 46 : Math.min(22, Math.max(5, Math.floor(15000 / columns)));
  const high = 24;
  const size = useMemo(
    () => ({ width: grid.columns.length * wide, height: grid.layers.length * high }),
    [grid, wide],
  );
  useEffect(() => {
    const draw = () => {
      const context = canvas.current?.getContext("2d");
      if (!context || !canvas.current) return;
      const density = Math.min(devicePixelRatio || 1, 16000 / size.width);
      canvas.current.width = size.width * density;
      canvas.current.height = size.height * density;
      context.scale(density, density);
      const dark = getComputedStyle(canvas.current).colorScheme === "dark";
      grid.cells.forEach((cells, row) =>
        cells.forEach((cell, column) => {
          if (!cell) return;
          context.fillStyle =
            cell.share === null ? (dark ? "#333a44" : "#d8dde3") : heatColour(cell.share, dark);
          context.beginPath();
          context.roundRect(column * wide + 1, row * high + 1, wide - 2, high - 2, wide > 12 ? 4 : 1);
          context.fill();
          if (!numbered || cell.share === null) return;
          // ink that reads on the cell: dark cells are those of high shares by day and of low ones by night
          context.fillStyle = (dark ? cell.share < 0.93 : cell.share > 0.8) ? "#ffffff" : "#10202e";
          context.font = "11px system-ui, sans-serif";
          context.textAlign = "center";
          context.fillText(shareText(cell.share), (column + 0.5) * wide, row * high + 16);
        }),
      );
    };
    draw();
    addEventListener("themechange", draw);
    const media = matchMedia("(prefers-color-scheme: dark)");
    media.addEventListener("change", draw);
    return () => {
      removeEventListener("themechange", draw);
      media.removeEventListener("change", draw);
    };
  }, [grid, size, wide, numbered]);
  const at = (event: MouseEvent): { row: number; column: number; cell: Cell } | null => {
    const [column, row] = [Math.floor(event.offsetX / wide), Math.floor(event.offsetY / high)];
    const cell = grid.cells[row]?.[column];
    return cell ? { row, column, cell } : null;
  };
  const pointed = tip ? grid.cells[tip.row]?.[tip.column] : null;
  return (
    <figure class="map">
      <figcaption>{grid.name}</figcaption>
      <div class="map-body">
        <ol class="layers" data-under={numbered && columns > 1} style={{ lineHeight: `${high}px` }}>
          {grid.layers.map((layer) => (
            <li key={layer} class="mono" title={layer}>
              {layer}
            </li>
          ))}
        </ol>
        <div class="map-scroll">
          {numbered && columns > 1 && (
            <ol class="columns">
              {grid.columns.map((name, place) => (
                <li key={name} style={{ width: `${wide}px` }} title={name}>
                  {place}
                </li>
              ))}
            </ol>
          )}
          <canvas
            ref={canvas}
            style={{ width: `${size.width}px`, height: `${size.height}px` }}
            role="img"
            aria-label={`Sparsity of ${grid.name}`}
            onClick={(event) => {
              const found = at(event);
              if (found) open({ kind: "weight", network, place: found.cell.weight });
            }}
            onMouseMove={(event) => {
              const found = at(event);
              setTip(
                found ? { x: event.clientX, y: event.clientY, row: found.row, column: found.column } : null,
              );
            }}
            onMouseLeave={() => setTip(null)}
          />
        </div>
      </div>
      {tip && pointed && (
        <div class="tip" style={{ left: `${tip.x + 14}px`, top: `${tip.y + 14}px` }}>
          <b>{percent(pointed.share)}</b> zeros
          <br />
          <span class="mono">{report.networks[network]!.weights[pointed.weight]!.name}</span>
          <br />
          <span class="faint">{shape(report.networks[network]!.weights[pointed.weight]!.shape)}</span>
        </div>
      )}
    </figure>
  );
}
