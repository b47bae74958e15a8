// A network of one stage with an entry, and the same with a copy of its second block.
import type { Block, Network, Report, Weight } from "../src/schema";

export function weight(name: string, given: Partial<Weight> = {}): Weight {
  return {
    name,
    shape: [2, 2],
    dtype: "float32",
    bytes: 16,
    parameter: true,
    prunable: true,
    zeros: null,
    flops: null,
    origin: null,
    tied: null,
    mask: null,
    values: null,
    ...given,
  };
}

function network(sources: (number | null)[]): Network {
  const sums = { parameters: 4, bytes: 16, flops: null, prunable: 4, zeros: 0 };
  const blocks: Block[] = sources.map((source, index) => ({
    ...sums,
    path: `l.${index}`,
    index,
    role: index ? "free" : "entry",
    unit: index ? index - 1 : null,
    kind: "",
    layers: 1,
    source,
    source_name: source === null ? "" : String(source),
    copy: sources.indexOf(source) < index && source !== null,
    graph: null,
    weights: [index],
  }));
  return {
    ...sums,
    name: "Net",
    label: "net.pt",
    outline: false,
    note: "",
    facts: [],
    depth: sources.length,
    sparse_flops: null,
    rows: [
      {
        ...sums,
        kind: "stage",
        name: "l",
        type: null,
        output: null,
        layers: sources.length,
        blocks: sources.map((_, place) => place),
        weights: sources.map((_, place) => place),
      },
    ],
    blocks,
    weights: sources.map((_, place) => weight(`l.${place}.weight`)),
    graphs: [],
    steps: [],
  };
}

export function report(): Report {
  return {
    schema: 1,
    generator: "elastic-ir",
    matched: "record",
    note: "",
    networks: [network([null, null, null]), network([0, 1, 2, 1])],
    masks: [],
    mask_data: "",
  };
}
