import { deflateSync } from "node:zlib";
import { describe, expect, it } from "vitest";
import {
  copiesOf,
  hueOf,
  maskReader,
  pruned,
  readReport,
  rowOfBlock,
  search,
  sparsityOf,
  unpacked,
} from "../src/data";
import { report, weight } from "./sample";

describe("the document", () => {
  it("is read out of deflated base64", async () => {
    const text = deflateSync(JSON.stringify(report())).toString("base64");
    expect((await readReport(`\n  ${text}\n`)).networks[1]!.blocks[3]!.path).toBe("l.3");
  });
  it("fails for what is no deflated data", async () => {
    await expect(unpacked(Buffer.from("nothing").toString("base64"))).rejects.toThrow();
  });
});

describe("lineage", () => {
  it("lists all that a block became", () => {
    expect(copiesOf(report())).toEqual(
      new Map([
        [0, [0]],
        [1, [1, 3]],
        [2, [2]],
      ]),
    );
  });
  it("gives a copy the colour of its source, and what is kept none", () => {
    const given = report();
    const second = given.networks[1]!;
    expect(hueOf(given, 1, 3)).toBe(hueOf(given, 0, 1));
    expect(hueOf(given, 1, 1)).not.toBe(hueOf(given, 1, 2));
    expect(hueOf(given, 0, 0)).toBeNull();
    expect(rowOfBlock(second, second.blocks[3]!)!.name).toBe("l");
  });
});

describe("sparsity", () => {
  it("is the mask's, else that of exact zeros, else unknown", () => {
    expect(sparsityOf(weight("a", { zeros: 3 }))).toBe(0.75);
    expect(sparsityOf(weight("a"))).toBeNull();
    const values = {
      low: -1,
      high: 1,
      kept: [],
      pruned: null,
      mean: 0,
      std: 0,
      least: 0,
      most: 0,
      zeros: 1,
      strange: 0,
    };
    expect(sparsityOf(weight("a", { values }))).toBe(0.25);
    expect(sparsityOf(weight("a", { zeros: 3, prunable: false }))).toBeNull();
    expect(pruned({ prunable: 0, zeros: 0 })).toBeNull();
  });
});

describe("search", () => {
  it("finds names with all words, what begins with them first", () => {
    expect(search(report(), "l.3").map(({ kind, name }) => [kind, name])).toEqual([
      ["block", "l.3"],
      ["weight", "l.3.weight"],
    ]);
    expect(search(report(), "WEIGHT 2")[0]).toMatchObject({ kind: "weight", network: 1, place: 2 });
    expect(search(report(), "  ")).toEqual([]);
    expect(search(report(), "none")).toEqual([]);
    expect(search(report(), "l", 2)).toHaveLength(2);
  });
});

describe("masks", () => {
  const data = new Uint8Array([0xff, 0b10100000, 0b01000000, 255, 51]);
  it("are read bit by bit, the most significant first", () => {
    const read = maskReader({ rows: 2, columns: 5, tile: [1, 1], offset: 1, size: 2 }, data);
    const rows = [0, 1].map((row) => [0, 1, 2, 3, 4].map((column) => read(row, column)));
    expect(rows).toEqual([
      [1, 0, 1, 0, 0],
      [0, 0, 0, 0, 1],
    ]);
  });
  it("are shares where they are tiles", () => {
    const read = maskReader({ rows: 4, columns: 7, tile: [4, 5], offset: 3, size: 2 }, data);
    expect([read(3, 4), read(0, 5)]).toEqual([1, 0.2]);
  });
});
