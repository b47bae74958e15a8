// The document that the page shows; elastic_ir/pictures/schema.py describes each field.

export interface Values {
  low: number;
  high: number;
  kept: number[];
  pruned: number[] | null;
  mean: number;
  std: number;
  least: number;
  most: number;
  zeros: number;
  strange: number;
}

export interface Weight {
  name: string;
  shape: number[];
  dtype: string;
  bytes: number;
  parameter: boolean;
  prunable: boolean;
  zeros: number | null;
  flops: number | null;
  origin: string | null;
  tied: string | null;
  mask: number | null;
  values: Values | null;
}

export interface OpNode {
  name: string;
  op: string;
  shape: number[] | null;
  reads: number[];
  weights: string[];
}

interface Sums {
  parameters: number;
  bytes: number;
  flops: number | null;
  prunable: number;
  zeros: number;
}

export interface Block extends Sums {
  path: string;
  index: number;
  role: "entry" | "free" | "last";
  unit: number | null;
  kind: string;
  layers: number | null;
  source: number | null;
  source_name: string;
  copy: boolean;
  graph: number | null;
  weights: number[];
}

export interface Row extends Sums {
  kind: "stem" | "stage" | "transition" | "head" | "idle" | "all";
  name: string;
  type: string | null;
  output: string | null;
  layers: number | null;
  blocks: number[];
  weights: number[];
}

export interface Step {
  kind: "record" | "pass";
  text: string;
  facts: [string, string][];
}

export interface Network extends Sums {
  name: string;
  label: string;
  outline: boolean;
  note: string;
  facts: [string, string][];
  depth: number | null;
  sparse_flops: number | null;
  rows: Row[];
  blocks: Block[];
  weights: Weight[];
  graphs: OpNode[][];
  steps: Step[];
}

export interface MaskImage {
  rows: number;
  columns: number;
  tile: [number, number];
  offset: number;
  size: number;
}

export interface Report {
  schema: number;
  generator: string;
  matched: "record" | "names" | "";
  note: string;
  networks: Network[];
  masks: MaskImage[];
  mask_data: string;
}
