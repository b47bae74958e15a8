// What each stage costs, before and after.
import { useState } from "preact/hooks";
import { pruned } from "./data";
import { bytes, count, percent, short } from "./format";
import type { Row } from "./schema";
import { useStore } from "./state";
import { Table, type Column } from "./table";

interface Pair {
  place: number;
  name: string;
  before: Row | null;
  after: Row | null;
}

type Measure = "parameters" | "kept" | "flops" | "bytes" | "layers";

const MEASURES: Record<
  Measure,
  { label: string; of: (row: Row) => number | null; text: (value: number | null) => string }
> = {
  parameters: { label: "Parameters", of: (row) => row.parameters, text: short },
  kept: { label: "Parameters that are kept", of: (row) => row.parameters - row.zeros, text: short },
  flops: { label: "FLOPs", of: (row) => row.flops, text: short },
  bytes: { label: "Bytes", of: (row) => row.bytes, text: bytes },
  layers: { label: "Layers", of: (row) => row.layers, text: count },
};

export function Cost() {
  const { report, open } = useStore();
  const [measure, setMeasure] = useState<Measure>("parameters");
  const last = report.networks.length - 1;
  const after = report.networks[last]!;
  const before = last && !report.networks[0]!.outline ? report.networks[0]! : null;
  const pairs: Pair[] = after.rows.map((row, place) => ({
    place,
    name: row.name,
    before: before?.rows.find((other) => other.name === row.name && other.kind === row.kind) ?? null,
    after: row,
  }));
  before?.rows.forEach((row) => {
    if (!pairs.some((pair) => pair.before === row))
      pairs.push({ place: pairs.length, name: row.name, before: row, after: null });
  });
  const { of, text } = MEASURES[measure];
  const value = (row: Row | null) => (row ? of(row) : null);
  const most = Math.max(1, ...pairs.flatMap((pair) => [value(pair.before) ?? 0, value(pair.after) ?? 0]));
  const shown = (Object.keys(MEASURES) as Measure[]).filter((name) =>
    after.rows.some((row) => MEASURES[name].of(row) !== null && (name !== "kept" || row.zeros > 0)),
  );
  const column = (name: Measure): Column<Pair>[] => {
    const { label, of, text } = MEASURES[name];
    const one = (row: Row | null) => (row ? of(row) : null);
    return [
      ...(before
        ? [
            {
              name: `${label}, before`,
              value: (pair: Pair) => one(pair.before),
              cell: (pair: Pair) => text(one(pair.before)),
              numeric: true,
            },
          ]
        : []),
      {
        name: before ? `${label}, after` : label,
        value: (pair) => one(pair.after),
        cell: (pair) => text(one(pair.after)),
        numeric: true,
      },
    ];
  };
  const columns: Column<Pair>[] = [
    { name: "stage", value: (pair) => pair.place, cell: (pair) => <b>{pair.name}</b> },
    ...column("layers"),
    ...column("parameters"),
    {
      name: "sparsity",
      value: (pair) => pruned(pair.after ?? pair.before!),
      cell: (pair) => percent(pruned(pair.after ?? pair.before!)),
      numeric: true,
    },
    ...(shown.includes("flops") ? column("flops") : []),
    ...column("bytes"),
  ];
  return (
    <section class="cost">
      <div class="bar">
        <div class="choice" role="group" aria-label="Measure">
          {shown.map((name) => (
            <button key={name} aria-pressed={measure === name} onClick={() => setMeasure(name)}>
              {MEASURES[name].label}
            </button>
          ))}
        </div>
        {before && (
          <p class="legend">
            <i class="key before" /> {report.networks[0]!.label} <i class="key after" /> {after.label}
          </p>
        )}
      </div>
      <div class="bars" role="img" aria-label={`${MEASURES[measure].label} of each stage`}>
        {pairs.map((pair) => (
          <div key={pair.place} class="pair">
            <span class="name">{pair.name}</span>
            <div>
              {before && (
                <Bar share={(value(pair.before) ?? 0) / most} text={text(value(pair.before))} kind="before" />
              )}
              <Bar share={(value(pair.after) ?? 0) / most} text={text(value(pair.after))} kind="after" />
            </div>
          </div>
        ))}
      </div>
      <Table
        items={pairs}
        columns={columns}
        label="Cost of each stage"
        choose={(pair) => pair.after && open({ kind: "row", network: last, place: pair.place })}
      />
    </section>
  );
}

function Bar({ share, text, kind }: { share: number; text: string; kind: string }) {
  return (
    <div class="bar-line">
      <i class={kind} style={{ width: `${share * 82}%` }} />
      <span>{text}</span>
    </div>
  );
}
