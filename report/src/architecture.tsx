// Stages and blocks as columns, source and result side by side, a line from each block to what it is a copy of.
import type { CSSProperties, JSX } from "preact";
import { useCallback, useEffect, useLayoutEffect, useMemo, useRef, useState } from "preact/hooks";
import { copiesOf, hueOf, pruned } from "./data";
import { count, percent, short } from "./format";
import { between, HEADER, layOut, ZOOMS, type Item } from "./layout";
import type { Block } from "./schema";
import { same, useStore, type Opened } from "./state";

const WIRES = 150; // the width between the columns
const AHEAD = 500; // pixels above and below the window that are drawn as well

export function Architecture() {
  const { report, opened, open } = useStore();
  const [zoom, setZoom] = useState(4);
  const [range, setRange] = useState<[number, number]>([0, 1500]);
  const [lit, setLit] = useState<number | null>(null); // a block of the source
  const scroller = useRef<HTMLDivElement>(null);
  const line = ZOOMS[zoom]!;
  const layout = useMemo(() => layOut(report, line), [report, line]);
  const copies = copiesOf(report);
  const two = report.networks.length === 2;

  const measure = useCallback(() => {
    const box = scroller.current;
    if (!box) return;
    const top = Math.floor(box.scrollTop / 200) * 200;
    const bottom = top + Math.ceil(box.clientHeight / 200) * 200 + 200;
    setRange((old) => (old[0] === top && old[1] === bottom ? old : [top, bottom]));
  }, []);
  useLayoutEffect(measure, [measure, layout]);
  useEffect(() => {
    addEventListener("resize", measure);
    return () => removeEventListener("resize", measure);
  }, [measure]);

  const seen = useCallback(
    (network: number, place: number) => {
      const box = scroller.current;
      const y = layout.middle[network]?.get(place);
      if (!box || y === undefined) return;
      if (y < box.scrollTop + HEADER || y > box.scrollTop + box.clientHeight - HEADER)
        box.scrollTop = Math.max(0, y - box.clientHeight / 2);
      measure();
    },
    [layout, measure],
  );
  useEffect(() => {
    if (opened?.kind === "block") seen(opened.network, opened.place);
  }, [opened, seen]);

  const focus = (network: number, place: number) => {
    seen(network, place);
    requestAnimationFrame(() =>
      document.getElementById(idOf(network, place))?.focus({ preventScroll: true }),
    );
  };
  const pressed = (event: KeyboardEvent) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const chosen = zoomed(event.key, zoom);
    if (chosen !== null) setZoom(chosen);
    else {
      const [network, place] = placeOf(event.target) ?? [-1, -1];
      const block = report.networks[network]?.blocks[place];
      if (!block) return;
      const next = neighbour(event.key, network, place, block);
      if (next && report.networks[next[0]]?.blocks[next[1]]) focus(...next);
      else if (!event.key.startsWith("Arrow")) return;
    }
    event.preventDefault();
  };
  const neighbour = (key: string, network: number, place: number, block: Block): [number, number] | null => {
    if (key === "ArrowDown") return [network, place + 1];
    if (key === "ArrowUp") return [network, place - 1];
    if (key === "ArrowLeft" && network === 1 && block.source !== null) return [0, block.source];
    const copy = copies.get(place)?.[0];
    return key === "ArrowRight" && network === 0 && two && copy !== undefined ? [1, copy] : null;
  };

  const sourceOf = (network: number, place: number) =>
    !two ? null : network === 0 ? place : report.networks[1]!.blocks[place]!.source;
  const current = opened?.kind === "block" ? sourceOf(opened.network, opened.place) : null;
  const shownSource = lit ?? current;
  const [top, bottom] = [range[0] - AHEAD, range[1] + AHEAD];
  return (
    <section class="architecture" onKeyDown={pressed}>
      <div class="bar">
        <p class="hint">
          {two
            ? "Each line leads from a block of the source to what was made of it. Colours are those of the source's blocks in their order; grey blocks are kept where they are."
            : "Each line is one block. Grey blocks are kept where they are; the others can be copied or left out."}
        </p>
        <div class="zoom" role="group" aria-label="Size">
          <button onClick={() => setZoom(Math.max(zoom - 1, 0))} aria-label="Smaller" disabled={!zoom}>
            −
          </button>
          <button
            onClick={() => setZoom(Math.min(zoom + 1, ZOOMS.length - 1))}
            aria-label="Larger"
            disabled={zoom === ZOOMS.length - 1}
          >
            +
          </button>
        </div>
      </div>
      <div class="heads" data-two={two}>
        {report.networks.map((network, number) => (
          <div key={number}>
            {two && <span class="tag">{number ? "result" : "source"}</span>} <b>{network.label}</b>
            {network.outline && <span class="faint"> as the record tells</span>}
          </div>
        ))}
      </div>
      <div class="scroller" ref={scroller} onScroll={measure} tabIndex={-1}>
        <div class="canvas" data-two={two} style={{ height: `${layout.height}px` }}>
          {layout.columns.map((items, number) => (
            <div class="column" key={number}>
              {between(items, top, bottom).map((item) => (
                <Line
                  key={`${item.kind}${item.place}`}
                  item={item}
                  lit={
                    item.kind === "block" &&
                    shownSource !== null &&
                    sourceOf(number, item.place) === shownSource
                  }
                  chosen={same(opened, { kind: item.kind, network: number, place: item.place })}
                  open={open}
                  point={(on) => setLit(on && item.kind === "block" ? sourceOf(number, item.place) : null)}
                />
              ))}
            </div>
          ))}
          {two && (
            <Wires
              layout={layout}
              top={top}
              bottom={bottom}
              lit={shownSource}
              point={setLit}
              follow={(source) => {
                open({ kind: "block", network: 0, place: source });
                focus(0, source);
              }}
            />
          )}
        </div>
      </div>
    </section>
  );
}

function idOf(network: number, place: number): string {
  return `block-${network}-${place}`;
}

function placeOf(target: EventTarget | null): [number, number] | null {
  const found = target instanceof HTMLElement ? /^block-(\d+)-(\d+)$/.exec(target.id) : null;
  return found ? [Number(found[1]), Number(found[2])] : null;
}

function zoomed(key: string, zoom: number): number | null {
  if (key === "+" || key === "=") return Math.min(zoom + 1, ZOOMS.length - 1);
  if (key === "-") return Math.max(zoom - 1, 0);
  return key === "0" ? 4 : null;
}

interface LineProps {
  item: Item;
  lit: boolean;
  chosen: boolean;
  open: (what: Opened) => void;
  point: (on: boolean) => void;
}

function Line({ item, lit, chosen, open, point }: LineProps) {
  const { report } = useStore();
  const network = report.networks[item.network]!;
  const place: CSSProperties = { top: `${item.y}px`, height: `${item.height}px` };
  if (item.kind === "row") {
    const row = network.rows[item.place]!;
    const told = [row.type, row.output, row.blocks.length ? `${row.blocks.length} blocks` : null];
    return (
      <button
        class={chosen ? "row chosen" : "row"}
        style={place}
        onClick={() => open({ kind: "row", network: item.network, place: item.place })}
      >
        <b>{row.name}</b>
        <span class="faint">{told.filter(Boolean).join(" · ")}</span>
        {!network.outline && <span class="end faint">{short(row.parameters)}</span>}
      </button>
    );
  }
  const block = network.blocks[item.place]!;
  const hue = hueOf(report, item.network, item.place);
  const share = pruned(block);
  const gone = network.outline && !copiesOf(report).has(item.place);
  const classes = [
    "block",
    lit && "lit",
    chosen && "chosen",
    hue === null && "kept",
    block.copy && "copy",
    gone && "gone",
  ];
  const small = item.height < 20;
  return (
    <button
      id={idOf(item.network, item.place)}
      class={classes.filter(Boolean).join(" ")}
      style={{ ...place, "--hue": hue ?? 0 } as CSSProperties}
      data-small={small}
      title={`${block.path}${block.source_name ? `, of source block ${block.source_name}` : ""}`}
      aria-label={`${block.path}, ${block.role}${block.copy ? ", copy" : ""}${block.source_name ? `, of source block ${block.source_name}` : ""}`}
      onClick={() => open({ kind: "block", network: item.network, place: item.place })}
      onPointerEnter={() => point(true)}
      onPointerLeave={() => point(false)}
    >
      <span class="swatch">{!small && (block.source_name || block.index)}</span>
      {!small && <span class="mono path">{block.path}</span>}
      {!small && block.role !== "free" && (
        <span class="tag">{block.role === "entry" ? "entry" : "last"}</span>
      )}
      {!small && block.copy && <span class="tag">copy</span>}
      {!small && block.kind && <span class="faint">{block.kind}</span>}
      {!small && !network.outline && (
        <span class="end">
          {share !== null && share > 0 && (
            <span class="meter" title={`${percent(share)} pruned`}>
              <i style={{ width: `${(1 - share) * 100}%` }} />
            </span>
          )}
          <span class="faint" title={count(block.parameters)}>
            {short(block.parameters)}
          </span>
        </span>
      )}
    </button>
  );
}

/** The line between two ends. */
function whole(from: number, to: number): string {
  return `M0 ${from}C${WIRES / 2} ${from} ${WIRES / 2} ${to} ${WIRES} ${to}`;
}

/** Of a line whose other end is out of sight its beginning, bent to where that end is: whole ones would hide each other. */
function begun(from: number, to: number, fromLeft: boolean): string {
  const [x, y, way] = fromLeft ? [0, from, 1] : [WIRES, to, -1];
  const bend = Math.sign((to - from) * way) * 20;
  return Math.abs(to - from) < 900 ? whole(from, to) : `M${x} ${y}q${way * 26} 0 ${way * 34} ${bend}`;
}

interface WiresProps {
  layout: ReturnType<typeof layOut>;
  top: number;
  bottom: number;
  lit: number | null;
  point: (source: number | null) => void;
  follow: (source: number) => void;
}

function Wires({ layout, top, bottom, lit, point, follow }: WiresProps) {
  const { report } = useStore();
  const paths: JSX.Element[] = [];
  report.networks[1]!.blocks.forEach((block, place) => {
    if (block.source === null) return;
    const [from, to] = [layout.middle[0]!.get(block.source)!, layout.middle[1]!.get(place)!];
    const seen = (y: number) => y > top && y < bottom;
    if (!seen(from) && !seen(to) && lit !== block.source) return; // of what only passes by there may be hundreds
    const hue = hueOf(report, 1, place);
    const path =
      seen(from) && seen(to)
        ? whole(from, to)
        : lit === block.source
          ? whole(from, to)
          : begun(from, to, seen(from));
    const state = lit === null ? "" : lit === block.source ? " lit" : " dim";
    paths.push(
      <g
        key={place}
        class={`wire${hue === null ? " kept" : ""}${state}`}
        style={{ "--hue": hue ?? 0 } as CSSProperties}
        data-source={block.source}
        data-block={place}
        onClick={() => follow(block.source!)}
        onPointerEnter={() => point(block.source)}
        onPointerLeave={() => point(null)}
      >
        <title>{`${block.path} is of ${report.networks[0]!.blocks[block.source]!.path}`}</title>
        <path class="hit" d={path} />
        <path d={path} />
      </g>,
    );
  });
  return (
    <svg class="wires" width={WIRES} height={layout.height} aria-label="Copies and their sources">
      {paths}
    </svg>
  );
}
