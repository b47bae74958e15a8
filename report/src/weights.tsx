import { useMemo, useState } from "preact/hooks";
import { sizeOf, sparsityOf } from "./data";
import { bytes, count, percent, shape, short } from "./format";
import type { Weight } from "./schema";
import { useStore } from "./state";
import { Table, type Column } from "./table";

const COLUMNS: Column<Weight>[] = [
  {
    name: "name",
    value: (weight) => weight.name,
    cell: (weight) => <span class="mono">{weight.name}</span>,
    wide: true,
  },
  {
    name: "shape",
    value: (weight) => sizeOf(weight.shape),
    cell: (weight) => <span class="mono">{shape(weight.shape)}</span>,
  },
  { name: "type", value: (weight) => weight.dtype },
  {
    name: "numbers",
    value: (weight) => sizeOf(weight.shape),
    cell: (weight) => count(sizeOf(weight.shape)),
    numeric: true,
  },
  { name: "bytes", value: (weight) => weight.bytes, cell: (weight) => bytes(weight.bytes), numeric: true },
  { name: "sparsity", value: sparsityOf, cell: (weight) => percent(sparsityOf(weight)), numeric: true },
  { name: "FLOPs", value: (weight) => weight.flops, cell: (weight) => short(weight.flops), numeric: true },
  {
    name: "origin",
    value: (weight) => (weight.origin === weight.name ? "" : weight.origin),
    cell: (weight) => (
      <span class="mono faint">{weight.origin === weight.name ? "same name" : (weight.origin ?? "–")}</span>
    ),
    wide: true,
  },
];

export function Weights() {
  const { report, opened, open } = useStore();
  const [number, setNumber] = useState(report.networks.length - 1);
  const [filter, setFilter] = useState("");
  const network = report.networks[number]!;
  const places = useMemo(() => new Map(network.weights.map((weight, place) => [weight, place])), [network]);
  const items = useMemo(() => {
    const words = filter.toLowerCase().split(/\s+/).filter(Boolean);
    return network.weights.filter(({ name }) => words.every((word) => name.toLowerCase().includes(word)));
  }, [network, filter]);
  const columns = useMemo(
    () =>
      COLUMNS.filter(
        ({ value, name }) => name === "name" || network.weights.some((weight) => value(weight) !== null),
      ),
    [network],
  );
  const whole = report.networks.filter((each) => !each.outline).length > 1;
  return (
    <section class="weights">
      <div class="bar">
        <input
          type="search"
          placeholder="Filter by name"
          aria-label="Filter by name"
          value={filter}
          onInput={(event) => setFilter(event.currentTarget.value)}
        />
        <span class="faint">
          {count(items.length)} of {count(network.weights.length)}
        </span>
        {whole && (
          <div class="choice" role="group" aria-label="Network">
            {report.networks.map((_, place) => (
              <button key={place} aria-pressed={number === place} onClick={() => setNumber(place)}>
                {place ? "result" : "source"}
              </button>
            ))}
          </div>
        )}
      </div>
      <Table
        items={items}
        columns={columns}
        label="Weights"
        height="100%"
        chosen={(weight) =>
          opened?.kind === "weight" && opened.network === number && opened.place === places.get(weight)
        }
        choose={(weight) => open({ kind: "weight", network: number, place: places.get(weight)! })}
      />
    </section>
  );
}
