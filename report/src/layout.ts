// Where rows and blocks of the architecture stand: stages of the same place side by side, each block one line.
import type { Network, Report } from "./schema";

export interface Item {
  kind: "row" | "block";
  network: number;
  place: number; // in the network's rows or blocks
  y: number;
  height: number;
}

export interface Layout {
  columns: Item[][];
  height: number;
  middle: Map<number, number>[]; // of each network, the y of each block's middle
}

export const HEADER = 44;
export const ZOOMS = [4, 8, 14, 22, 30, 38];
const GAP = 18;

/** Rows of equal names stand at one height where both networks have the same rows. */
export function layOut(report: Report, line: number): Layout {
  const networks = report.networks;
  const aligned = networks.length === 2 && sameRows(networks[0]!, networks[1]!);
  const columns: Item[][] = networks.map(() => []);
  const middle = networks.map(() => new Map<number, number>());
  const tops = networks.map(() => 0);
  const most = Math.max(...networks.map((network) => network.rows.length));
  for (let place = 0; place < most; place++) {
    if (aligned) tops.fill(Math.max(...tops));
    networks.forEach((network, number) => {
      const row = network.rows[place];
      if (!row) return;
      let y = tops[number]!;
      columns[number]!.push({ kind: "row", network: number, place, y, height: HEADER });
      y += HEADER;
      for (const block of row.blocks) {
        columns[number]!.push({ kind: "block", network: number, place: block, y, height: line });
        middle[number]!.set(block, y + line / 2);
        y += line;
      }
      tops[number] = y + GAP;
    });
  }
  return { columns, height: Math.max(...tops), middle };
}

function sameRows(one: Network, other: Network): boolean {
  return (
    one.rows.length === other.rows.length &&
    one.rows.every((row, place) => row.name === other.rows[place]!.name)
  );
}

/** Those of a column's items that lie between two heights; items are sorted by y. */
export function between(items: Item[], top: number, bottom: number): Item[] {
  let low = 0;
  let high = items.length;
  while (low < high) {
    const at = (low + high) >> 1;
    if (items[at]!.y + items[at]!.height < top) low = at + 1;
    else high = at;
  }
  let end = low;
  while (end < items.length && items[end]!.y < bottom) end++;
  return items.slice(low, end);
}
