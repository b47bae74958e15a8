import { describe, expect, it } from "vitest";
import { bytes, count, number, percent, ratio, shape, short } from "../src/format";
import { seriesOf, zeroed } from "../src/histogram";
import { between, HEADER, layOut } from "../src/layout";
import { place } from "../src/nodegraph";
import { gridsOf, heatColour, shareText } from "../src/sparsity";
import { sorted, type Column } from "../src/table";
import { report, weight } from "./sample";

describe("numbers", () => {
  it("have three digits and a unit", () => {
    expect([0, 999, 999.6, 855_770, 1_100_000_000, 9_995].map(short)).toEqual([
      "0",
      "999",
      "1.00 K",
      "856 K",
      "1.10 G",
      "10.0 K",
    ]);
    expect([bytes(3_440_560), bytes(12), bytes(null)]).toEqual(["3.44 MB", "12 B", "–"]);
    expect([count(1234567), percent(0.806), percent(null)]).toEqual(["1,234,567", "80.6 %", "–"]);
    expect([shape([64, 3]), shape([]), shape(null)]).toEqual(["64 × 3", "scalar", "–"]);
    expect([number(0), number(0.12345), number(0.0000123), number(123456)]).toEqual([
      "0",
      "0.1235",
      "1.23e-5",
      "1.23e+5",
    ]);
  });
  it("are compared only where they differ", () => {
    expect([ratio(32, 56), ratio(1, 12), ratio(5, 5), ratio(null, 5), ratio(0, 5)]).toEqual([
      "× 1.75",
      "× 12",
      "",
      "",
      "",
    ]);
  });
  it("of sparsity do not say all where some are left", () => {
    expect([0.85, 0.996, 0.99999, 1, 0].map(shareText)).toEqual(["85", "99.6", "99.9", "100", "0"]);
  });
});

describe("the architecture", () => {
  it("has stages of the two networks at one height, and a line for each block", () => {
    const { columns, height, middle } = layOut(report(), 30);
    expect(columns.map((items) => items.length)).toEqual([4, 5]);
    expect(middle[1]!.get(3)! - middle[1]!.get(0)!).toBe(90);
    expect(middle[0]!.get(0)).toBe(HEADER + 15);
    expect(height).toBeGreaterThan(HEADER + 4 * 30);
  });
  it("draws what is in sight, and nothing else", () => {
    const items = Array.from({ length: 1000 }, (_, at) => ({
      kind: "block" as const,
      network: 0,
      place: at,
      y: at * 30,
      height: 30,
    }));
    const seen = between(items, 600, 900).map((item) => item.place);
    expect([seen[0], seen.at(-1)]).toEqual([19, 29]);
    expect(between(items, -500, -100)).toEqual([]);
    expect(between(items, 40_000, 50_000)).toEqual([]);
  });
});

describe("tables", () => {
  const column: Column<{ name: string; size: number | null }> = { name: "size", value: ({ size }) => size };
  const items = [
    { name: "a10", size: 2 },
    { name: "a2", size: null },
    { name: "a1", size: 30 },
  ];
  it("sort by numbers, what is not known last", () => {
    expect(sorted(items, column, false).map(({ name }) => name)).toEqual(["a10", "a1", "a2"]);
    expect(sorted(items, column, true).map(({ name }) => name)).toEqual(["a1", "a10", "a2"]);
  });
  it("sort names with their numbers, and leave the order without a column", () => {
    const byName = { name: "name", value: (item: (typeof items)[0]) => item.name };
    expect(sorted(items, byName, false).map(({ name }) => name)).toEqual(["a1", "a2", "a10"]);
    expect(sorted(items, undefined, false)).toBe(items);
  });
});

describe("the map of sparsity", () => {
  it("has a line for each layer and a cell for each block", () => {
    const network = report().networks[1]!;
    network.weights[3] = weight("l.3.weight", { zeros: 1 });
    const [grid] = gridsOf(network);
    expect(grid!.cells[0]!.map((cell) => cell?.share ?? null)).toEqual([null, null, null, 0.25]);
    expect(grid!.columns).toEqual(["l.0", "l.1", "l.2", "l.3"]);
  });
  it("tells high shares apart", () => {
    const light = (share: number) => Number(/oklch\(([\d.]+)%/.exec(heatColour(share, false))![1]);
    expect(light(0.9) - light(0.99)).toBeGreaterThan(5);
    expect(light(0)).toBeGreaterThan(light(0.5));
  });
});

describe("histograms", () => {
  const values = {
    low: -1,
    high: 1,
    kept: [0, 3, 0, 1],
    pruned: [0, 0, 5, 0],
    mean: 0,
    std: 1,
    least: -1,
    most: 1,
    zeros: 0,
    strange: 0,
  };
  it("begin and end with what is there", () => {
    expect(seriesOf(values)).toEqual([
      [-0.25, 0.25, 0.75],
      [3, null, 1],
      [null, 5, null],
    ]);
  });
  it("say where all that is pruned is stored as zero", () => {
    expect(zeroed({ ...values, zeros: 5 })).toBe(5);
    expect(zeroed(values)).toBe(0);
    expect(zeroed({ ...values, pruned: null })).toBe(0);
  });
});

describe("operations of a block", () => {
  it("stand below what they read", () => {
    const op = (name: string, reads: number[]) => ({
      name,
      op: `nn.${name}`,
      shape: null,
      reads,
      weights: [],
    });
    const drawn = place([op("conv", [-1]), op("add", [0, -1])]);
    const y = (which: number) => drawn.nodes.find((node) => node.place === which)!.y;
    expect(y(-1)).toBeLessThan(y(0));
    expect(y(0)).toBeLessThan(y(1));
    expect(drawn.edges).toHaveLength(3);
  });
});
