// What is open: a stage, a block with its operations and weights, or one weight with its mask and its numbers.
import type { ComponentChildren } from "preact";
import { useEffect, useMemo, useRef } from "preact/hooks";
import { copiesOf, pruned, rowOfBlock, sizeOf, sparsityOf } from "./data";
import { bytes, count, number, percent, shape, short } from "./format";
import { Histogram } from "./histogram";
import { Mask } from "./mask";
import { NodeGraph } from "./nodegraph";
import type { Block, Network, Row, Weight } from "./schema";
import { useStore } from "./state";
import { Table, type Column } from "./table";

export function Panel() {
  const { report, opened, open } = useStore();
  const panel = useRef<HTMLElement>(null);
  useEffect(() => panel.current?.scrollTo(0, 0), [opened]);
  if (!opened) return null;
  const network = report.networks[opened.network]!;
  return (
    <aside class="panel" ref={panel} aria-label="Details">
      <button class="tool close" onClick={() => open(null)} aria-label="Close" title="Close (Esc)">
        ✕
      </button>
      {opened.kind === "row" && <RowPanel row={network.rows[opened.place]!} network={opened.network} />}
      {opened.kind === "block" && <BlockPanel place={opened.place} network={opened.network} />}
      {opened.kind === "weight" && (
        <WeightPanel weight={network.weights[opened.place]!} network={opened.network} />
      )}
    </aside>
  );
}

function Facts({ facts }: { facts: [string, ComponentChildren][] }) {
  return (
    <dl class="facts">
      {facts
        .filter(([, value]) => value !== null && value !== "" && value !== "–")
        .map(([name, value]) => (
          <div key={name}>
            <dt>{name}</dt>
            <dd>{value}</dd>
          </div>
        ))}
    </dl>
  );
}

function Which({ network }: { network: number }) {
  const { report } = useStore();
  return report.networks.length > 1 ? <span class="tag">{network ? "result" : "source"}</span> : null;
}

function WeightList({ weights, network, within }: { weights: number[]; network: number; within: string }) {
  const { report, open } = useStore();
  const entry = report.networks[network]!;
  const columns: Column<number>[] = useMemo(() => {
    const weight = (place: number) => entry.weights[place]!;
    const inner = (name: string) =>
      within && name.startsWith(`${within}.`) ? name.slice(within.length + 1) : name;
    return [
      {
        name: "weight",
        value: (place) => inner(weight(place).name),
        cell: (place) => <span class="mono">{inner(weight(place).name)}</span>,
        wide: true,
      },
      {
        name: "shape",
        value: (place) => sizeOf(weight(place).shape),
        cell: (place) => <span class="mono">{shape(weight(place).shape)}</span>,
      },
      {
        name: "sparsity",
        value: (place) => sparsityOf(weight(place)),
        cell: (place) => percent(sparsityOf(weight(place))),
        numeric: true,
      },
    ];
  }, [entry, within]);
  return (
    <Table
      items={weights}
      columns={columns}
      label="Weights"
      height={weights.length > 40 ? "30rem" : undefined}
      choose={(place) => open({ kind: "weight", network, place })}
    />
  );
}

function RowPanel({ row, network }: { row: Row; network: number }) {
  return (
    <>
      <p class="eyebrow">
        <Which network={network} /> {row.kind === "stage" ? "stage" : row.kind}
      </p>
      <h2>{row.name}</h2>
      <Facts
        facts={[
          ["class", row.type],
          ["hands on", row.output],
          ["blocks", row.blocks.length ? count(row.blocks.length) : null],
          ["layers", count(row.layers)],
          ["parameters", count(row.parameters)],
          ["sparsity", row.zeros ? percent(pruned(row)) : null],
          ["FLOPs", short(row.flops)],
          ["bytes", bytes(row.bytes)],
        ]}
      />
      <h3>Weights</h3>
      <WeightList weights={row.weights} network={network} within="" />
    </>
  );
}

function BlockPanel({ place, network }: { place: number; network: number }) {
  const { report, open } = useStore();
  const entry = report.networks[network]!;
  const block = entry.blocks[place]!;
  const row = rowOfBlock(entry, block);
  const graph = block.graph === null ? null : entry.graphs[block.graph]!;
  return (
    <>
      <p class="eyebrow">
        <Which network={network} /> {row?.name}, block {block.index}
        {block.role !== "free" && <span class="tag">{block.role}, kept</span>}
        {block.copy && <span class="tag">copy</span>}
      </p>
      <h2 class="mono">{block.path}</h2>
      <Lineage block={block} place={place} network={network} />
      {!entry.outline && (
        <Facts
          facts={[
            ["unit", block.unit === null ? null : count(block.unit)],
            ["kind", block.kind],
            ["layers", count(block.layers)],
            ["parameters", count(block.parameters)],
            ["sparsity", block.zeros ? percent(pruned(block)) : null],
            ["FLOPs", short(block.flops)],
            ["bytes", bytes(block.bytes)],
          ]}
        />
      )}
      {graph && (
        <>
          <h3>Operations</h3>
          <NodeGraph
            nodes={graph}
            openWeight={(name) => {
              const found = block.weights.find((weight) => {
                const whole = entry.weights[weight]!.name;
                return whole === name || whole === `${block.path}.${name}` || whole.endsWith(`.${name}`);
              });
              if (found !== undefined) open({ kind: "weight", network, place: found });
            }}
          />
        </>
      )}
      {block.weights.length > 0 && (
        <>
          <h3>Weights</h3>
          <WeightList weights={block.weights} network={network} within={block.path} />
        </>
      )}
    </>
  );
}

function Lineage({ block, place, network }: { block: Block; place: number; network: number }) {
  const { report, open } = useStore();
  const copies = copiesOf(report);
  if (report.networks.length < 2) return null;
  if (network === 1) {
    const source = block.source === null ? null : report.networks[0]!.blocks[block.source]!;
    if (!source) return block.source_name ? <p>Of source block {block.source_name}.</p> : null;
    return (
      <p class="lineage">
        {block.copy ? "A copy of " : "Of "}
        <button class="link mono" onClick={() => open({ kind: "block", network: 0, place: block.source! })}>
          {source.path}
        </button>{" "}
        of the source.
      </p>
    );
  }
  const made = copies.get(place) ?? [];
  return (
    <p class="lineage">
      {made.length ? "Became " : "Nothing of it is left."}
      {made.map((one) => (
        <button key={one} class="link mono" onClick={() => open({ kind: "block", network: 1, place: one })}>
          {report.networks[1]!.blocks[one]!.path}
        </button>
      ))}
    </p>
  );
}

function WeightPanel({ weight, network }: { weight: Weight; network: number }) {
  const { report, open } = useStore();
  const entry = report.networks[network]!;
  const values = weight.values;
  return (
    <>
      <p class="eyebrow">
        <Which network={network} /> {weight.parameter ? "weight" : "buffer"}
        {weight.prunable && <span class="tag">prunable</span>}
      </p>
      <h2 class="mono">{weight.name}</h2>
      <Owner weight={weight} entry={entry} network={network} />
      <Facts
        facts={[
          ["shape", <span class="mono">{shape(weight.shape)}</span>],
          ["type", weight.dtype],
          ["numbers", count(sizeOf(weight.shape))],
          ["bytes", bytes(weight.bytes)],
          [
            "pruned",
            weight.zeros === null ? null : `${count(weight.zeros)} (${percent(sparsityOf(weight))})`,
          ],
          ["FLOPs", short(weight.flops)],
          [
            "origin",
            weight.origin && (
              <Origin name={weight.origin} network={network} open={open} first={report.networks[0]!} />
            ),
          ],
          ["tied with", weight.tied],
        ]}
      />
      {weight.mask !== null && (
        <>
          <h3>Mask</h3>
          <Mask image={report.masks[weight.mask]!} />
        </>
      )}
      {values && (
        <>
          <h3>Values</h3>
          <Histogram values={values} />
          <Facts
            facts={[
              ["mean", number(values.mean)],
              ["deviation", number(values.std)],
              ["least, most", `${number(values.least)}, ${number(values.most)}`],
              ["exact zeros", count(values.zeros)],
              ["not finite", values.strange ? count(values.strange) : null],
            ]}
          />
        </>
      )}
      {!values && <p class="faint">Its numbers were not read for this report.</p>}
    </>
  );
}

function Owner({ weight, entry, network }: { weight: Weight; entry: Network; network: number }) {
  const { open } = useStore();
  const place = entry.weights.indexOf(weight);
  const block = entry.blocks.findIndex((each) => each.weights.includes(place));
  if (block < 0) return null;
  return (
    <p class="lineage">
      In{" "}
      <button class="link mono" onClick={() => open({ kind: "block", network, place: block })}>
        {entry.blocks[block]!.path}
      </button>
    </p>
  );
}

interface OriginProps {
  name: string;
  network: number;
  first: Network;
  open: ReturnType<typeof useStore>["open"];
}

function Origin({ name, network, first, open }: OriginProps) {
  const place = network === 1 ? first.weights.findIndex((weight) => weight.name === name) : -1;
  if (place < 0) return <span class="mono">{name}</span>;
  return (
    <button class="link mono" onClick={() => open({ kind: "weight", network: 0, place })}>
      {name}
    </button>
  );
}
