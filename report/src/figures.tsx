// The figures on top: each before and after, where there are two networks.
import { bytes, count, percent, ratio, short } from "./format";
import { pruned } from "./data";
import type { Network } from "./schema";
import { useStore } from "./state";

interface Figure {
  label: string;
  of: (network: Network) => number | null;
  text: (value: number | null) => string;
  exact?: boolean;
}

const FIGURES: Figure[] = [
  { label: "Depth", of: (network) => network.depth, text: count },
  { label: "Blocks", of: (network) => network.blocks.length || null, text: count },
  {
    label: "Parameters",
    of: (network) => (network.outline ? null : network.parameters),
    text: short,
    exact: true,
  },
  { label: "Sparsity", of: (network) => (network.outline ? null : pruned(network)), text: percent },
  { label: "FLOPs", of: (network) => network.flops, text: short, exact: true },
  { label: "FLOPs as pruned", of: (network) => network.sparse_flops, text: short, exact: true },
  { label: "Bytes", of: (network) => (network.outline ? null : network.bytes), text: bytes, exact: true },
];

export function Figures() {
  const { report } = useStore();
  const last = report.networks.at(-1)!;
  const first = report.networks.length > 1 ? report.networks[0]! : null;
  return (
    <dl class="figures">
      {FIGURES.filter(({ of }) => of(last) !== null).map(({ label, of, text, exact }) => {
        const after = of(last);
        const before = first ? of(first) : null;
        const changed = before !== null && before !== after;
        const change = label === "Sparsity" ? "" : ratio(before, after);
        return (
          <div key={label} title={exact ? count(after) : undefined}>
            <dt>{label}</dt>
            <dd>
              {changed && (
                <span class="before">
                  {text(before)} <span aria-label="to">→</span>{" "}
                </span>
              )}
              <strong>{text(after)}</strong>
              {change && <span class="ratio">{change}</span>}
            </dd>
          </div>
        );
      })}
    </dl>
  );
}
