// Reading the document out of the page, and what views ask of it.
import type { Block, MaskImage, Network, Report, Row, Weight } from "./schema";

/** Bytes of deflated (zlib) data in base64. */
export async function unpacked(text: string): Promise<Uint8Array> {
  const packed = Uint8Array.from(atob(text.trim()), (char) => char.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

export async function readReport(text: string): Promise<Report> {
  return JSON.parse(new TextDecoder().decode(await unpacked(text))) as Report;
}

/** The share of zeros: by the mask, else by exact zeros where values were read; null where nothing is known. */
export function sparsityOf(weight: Weight): number | null {
  const size = sizeOf(weight.shape);
  if (!size || !weight.prunable) return null;
  if (weight.zeros !== null) return weight.zeros / size;
  return weight.values ? weight.values.zeros / size : null;
}

export function sizeOf(shape: number[]): number {
  return shape.reduce((product, extent) => product * extent, 1);
}

/** The share of masks' zeros in a block, a row or a network; null where no weight of it is prunable. */
export function pruned(sums: { prunable: number; zeros: number }): number | null {
  return sums.prunable ? sums.zeros / sums.prunable : null;
}

const hueTables = new WeakMap<Report, (number | null)[][]>();

/** The hue of a block: its place, or its source's, among the blocks of a stage; null for those that are kept. */
export function hueOf(report: Report, network: number, place: number): number | null {
  let tables = hueTables.get(report);
  if (!tables) {
    tables = report.networks.map((each) => {
      const hues: (number | null)[] = [];
      for (const { blocks } of each.rows)
        blocks.forEach((block, order) => {
          hues[block] = (262 + (290 * order) / Math.max(blocks.length - 1, 1)) % 360;
        });
      return hues;
    });
    report.networks[1]?.blocks.forEach(({ source }, block) => {
      if (source !== null) tables![1]![block] = tables![0]![source]!;
    });
    report.networks.forEach(({ blocks }, number) =>
      blocks.forEach(({ role }, block) => {
        if (role !== "free") tables![number]![block] = null;
      }),
    );
    hueTables.set(report, tables);
  }
  return tables[network]?.[place] ?? null;
}

const rowTables = new WeakMap<Network, Map<Block, Row>>();

export function rowOfBlock(network: Network, block: Block): Row | undefined {
  let table = rowTables.get(network);
  if (!table) {
    table = new Map();
    for (const row of network.rows) for (const place of row.blocks) table.set(network.blocks[place]!, row);
    rowTables.set(network, table);
  }
  return table.get(block);
}

const copyTables = new WeakMap<Report, Map<number, number[]>>();

/** For each block of the first network those of the second that are made of it. */
export function copiesOf(report: Report): Map<number, number[]> {
  const known = copyTables.get(report);
  if (known) return known;
  const found = new Map<number, number[]>();
  copyTables.set(report, found);
  report.networks[1]?.blocks.forEach((block, place) => {
    if (block.source === null) return;
    const list = found.get(block.source);
    if (list) list.push(place);
    else found.set(block.source, [place]);
  });
  return found;
}

export interface Found {
  kind: "weight" | "block";
  network: number;
  place: number;
  name: string;
}

/** Weights and blocks whose names contain all words of a query; those that begin with it first. */
export function search(report: Report, query: string, limit = 60): Found[] {
  const words = query.toLowerCase().split(/\s+/).filter(Boolean);
  if (!words.length) return [];
  const found: Found[] = [];
  for (let network = report.networks.length - 1; network >= 0; network--) {
    const { blocks, weights } = report.networks[network]!;
    blocks.forEach((block, place) => found.push({ kind: "block", network, place, name: block.path }));
    weights.forEach((weight, place) => found.push({ kind: "weight", network, place, name: weight.name }));
  }
  const rank = (name: string) => (name.toLowerCase().startsWith(words[0]!) ? 0 : 1);
  return found
    .filter(({ name }) => words.every((word) => name.toLowerCase().includes(word)))
    .sort((one, other) => rank(one.name) - rank(other.name) || one.name.length - other.name.length)
    .slice(0, limit);
}

/** How much of a pixel of a mask is kept, 0 to 1. */
export function maskReader(image: MaskImage, data: Uint8Array): (row: number, column: number) => number {
  const part = data.subarray(image.offset, image.offset + image.size);
  const [high, wide] = image.tile;
  if (high === 1 && wide === 1) {
    return (row, column) => {
      const bit = row * image.columns + column;
      return (part[bit >> 3]! >> (7 - (bit & 7))) & 1;
    };
  }
  const across = Math.ceil(image.columns / wide);
  return (row, column) => part[Math.floor(row / high) * across + Math.floor(column / wide)]! / 255;
}
