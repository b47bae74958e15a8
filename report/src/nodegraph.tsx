// The operations of one block, laid out in layers; what flows in and out stands above and below.
import dagre from "@dagrejs/dagre";
import { useMemo, useState } from "preact/hooks";
import { shape } from "./format";
import type { OpNode } from "./schema";

const MOST = 400; // operations that are laid out; more are nothing that anybody reads

interface Placed {
  nodes: { place: number; x: number; y: number; width: number; height: number }[];
  edges: { points: { x: number; y: number }[]; key: string }[];
  width: number;
  height: number;
}

export function place(nodes: OpNode[]): Placed {
  const graph = new dagre.graphlib.Graph({ multigraph: true });
  graph.setGraph({ rankdir: "TB", nodesep: 18, ranksep: 26, marginx: 8, marginy: 8 });
  graph.setDefaultEdgeLabel(() => ({}));
  const wide = (node: OpNode) => Math.max(84, 18 + 7.2 * Math.max(node.name.length, opName(node).length));
  nodes.forEach((node, at) => graph.setNode(String(at), { width: wide(node), height: 38 }));
  if (nodes.some((node) => node.reads.includes(-1))) graph.setNode("-1", { width: 60, height: 22 });
  nodes.forEach((node, at) => node.reads.forEach((from) => graph.setEdge(String(from), String(at))));
  dagre.layout(graph);
  const size = graph.graph() as { width?: number; height?: number };
  return {
    nodes: graph.nodes().map((name) => {
      const { x, y, width, height } = graph.node(name);
      return { place: Number(name), x, y, width, height };
    }),
    edges: graph.edges().map((edge) => ({ points: graph.edge(edge).points, key: `${edge.v}-${edge.w}` })),
    width: size.width ?? 0,
    height: size.height ?? 0,
  };
}

function opName(node: OpNode): string {
  return node.op
    .replace(/\.default$/, "")
    .split(".")
    .at(-1)!;
}

export function NodeGraph({ nodes, openWeight }: { nodes: OpNode[]; openWeight: (name: string) => void }) {
  const drawn = useMemo(() => (nodes.length <= MOST ? place(nodes) : null), [nodes]);
  const [zoom, setZoom] = useState(1);
  if (!drawn) return <p class="faint">{nodes.length} operations are too many for a drawing.</p>;
  return (
    <div class="graph">
      <div
        class="graph-scroll"
        tabIndex={0}
        aria-label={`${nodes.length} operations`}
        onKeyDown={(event) => {
          const step = { "+": 1.25, "=": 1.25, "-": 0.8 }[event.key];
          if (step) setZoom(Math.min(Math.max(zoom * step, 0.3), 3));
          else if (event.key === "0") setZoom(1);
          else return;
          event.preventDefault();
          event.stopPropagation();
        }}
      >
        <svg
          width={drawn.width * zoom}
          height={drawn.height * zoom}
          viewBox={`0 0 ${drawn.width} ${drawn.height}`}
        >
          <defs>
            <marker
              id="arrow"
              viewBox="0 0 8 8"
              refX="7"
              refY="4"
              markerWidth="7"
              markerHeight="7"
              orient="auto"
            >
              <path d="M0 1L7 4L0 7z" />
            </marker>
          </defs>
          {drawn.edges.map(({ points, key }) => (
            <path key={key} class="edge" d={curve(points)} marker-end="url(#arrow)" />
          ))}
          {drawn.nodes.map(({ place, x, y, width, height }) => {
            const node = nodes[place];
            if (!node)
              return (
                <text key="in" x={x} y={y + 4} class="faint" text-anchor="middle">
                  flows in
                </text>
              );
            const weight = node.weights[0];
            return (
              <g
                key={place}
                class={weight ? "op has-weights" : "op"}
                onClick={() => weight && openWeight(weight)}
                transform={`translate(${x - width / 2} ${y - height / 2})`}
              >
                <title>{`${node.op} → ${shape(node.shape)}${weight ? `\n${node.weights.join("\n")}` : ""}`}</title>
                <rect width={width} height={height} rx="7" />
                <text x={width / 2} y={16} text-anchor="middle" class="name">
                  {node.name}
                </text>
                <text x={width / 2} y={30} text-anchor="middle" class="type">
                  {node.name === opName(node) ? shape(node.shape).replaceAll(" ", "") : opName(node)}
                </text>
              </g>
            );
          })}
        </svg>
      </div>
      <div class="zoom" role="group" aria-label="Zoom">
        <button onClick={() => setZoom(Math.max(zoom / 1.25, 0.3))} aria-label="Smaller">
          −
        </button>
        <button onClick={() => setZoom(Math.min(zoom * 1.25, 3))} aria-label="Larger">
          +
        </button>
      </div>
    </div>
  );
}

function curve(points: { x: number; y: number }[]): string {
  const [first, ...rest] = points;
  if (!first) return "";
  let path = `M${first.x} ${first.y}`;
  rest.forEach((point, at) => {
    const next = rest[at + 1];
    path += next
      ? `Q${point.x} ${point.y} ${(point.x + next.x) / 2} ${(point.y + next.y) / 2}`
      : `L${point.x} ${point.y}`;
  });
  return path;
}
