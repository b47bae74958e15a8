// A mask as an image that can be zoomed and moved. Only the tiles in sight are drawn, each once for each zoom.
import { useCallback, useEffect, useRef, useState } from "preact/hooks";
import { maskReader } from "./data";
import { count, percent } from "./format";
import type { MaskImage } from "./schema";
import { useStore } from "./state";

const HIGHEST = 300;
const LOWEST = 110;
const TILE = 256; // pixels of a tile's side
const LARGEST = 32; // pixels of one weight

export function Mask({ image }: { image: MaskImage }) {
  const { masks } = useStore();
  const canvas = useRef<HTMLCanvasElement>(null);
  const [data, setData] = useState<Uint8Array | null>(null);
  const [theme, setTheme] = useState(0);
  const [view, setView] = useState<{ scale: number; x: number; y: number } | null>(null);
  const [height, setHeight] = useState(HIGHEST);
  const [under, setUnder] = useState<string>("");
  const drag = useRef<{ x: number; y: number } | null>(null);
  const tiles = useRef(new Map<string, HTMLCanvasElement>());

  useEffect(() => {
    let here = true;
    void masks.then((found) => here && setData(found));
    const changed = () => setTheme((old) => old + 1);
    addEventListener("themechange", changed);
    return () => {
      here = false;
      removeEventListener("themechange", changed);
    };
  }, [masks]);

  const whole = useCallback(() => {
    const width = canvas.current?.clientWidth ?? 400;
    const scale = Math.min(width / image.columns, HIGHEST / image.rows, LARGEST);
    const room = Math.max(LOWEST, Math.min(HIGHEST, image.rows * scale));
    setHeight(room);
    setView({ scale, x: (width - image.columns * scale) / 2, y: (room - image.rows * scale) / 2 });
  }, [image]);
  useEffect(whole, [whole]);

  const zoom = useCallback(
    (factor: number, x = (canvas.current?.clientWidth ?? 400) / 2, y = height / 2) =>
      setView((old) => {
        if (!old) return old;
        const least =
          Math.min((canvas.current?.clientWidth ?? 400) / image.columns, height / image.rows, 1) / 2;
        const scale = Math.min(Math.max(old.scale * factor, least), LARGEST);
        const times = scale / old.scale;
        return { scale, x: x - (x - old.x) * times, y: y - (y - old.y) * times };
      }),
    [image, height],
  );
  useEffect(() => {
    const element = canvas.current;
    const wheel = (event: WheelEvent) => {
      if (!event.ctrlKey && !event.metaKey && document.activeElement !== element) return;
      event.preventDefault();
      zoom(event.deltaY < 0 ? 1.25 : 0.8, event.offsetX, event.offsetY);
    };
    element?.addEventListener("wheel", wheel, { passive: false });
    return () => element?.removeEventListener("wheel", wheel);
  }, [zoom]);

  useEffect(() => {
    tiles.current.clear();
  }, [image, data, theme]);
  useEffect(() => {
    const element = canvas.current;
    const context = element?.getContext("2d");
    if (!element || !context || !data || !view) return;
    const width = element.clientWidth;
    const density = devicePixelRatio || 1;
    element.width = width * density;
    element.height = height * density;
    context.scale(density, density);
    context.imageSmoothingEnabled = false;
    const style = getComputedStyle(element);
    const colours = [style.getPropertyValue("--mask-off"), style.getPropertyValue("--mask-on")].map(rgb);
    // weights of one pixel: a whole number of them, so that a far view is a true mean and not a sample
    const step = Math.max(1, Math.floor(1 / view.scale));
    const span = TILE * step;
    const read = maskReader(image, data);
    const [left, top] = [Math.max(0, -view.x / view.scale), Math.max(0, -view.y / view.scale)];
    const [right, bottom] = [(width - view.x) / view.scale, (height - view.y) / view.scale];
    for (let row = Math.floor(top / span); row * span < Math.min(bottom, image.rows); row++) {
      for (let column = Math.floor(left / span); column * span < Math.min(right, image.columns); column++) {
        const key = `${step}/${row}/${column}`;
        let tile = tiles.current.get(key);
        if (!tile) {
          tile = drawTile(image, read, row * span, column * span, step, colours as [number[], number[]]);
          tiles.current.set(key, tile);
        }
        const size = view.scale * step;
        context.drawImage(
          tile,
          view.x + column * span * view.scale,
          view.y + row * span * view.scale,
          tile.width * size,
          tile.height * size,
        );
      }
    }
  }, [image, data, view, height, theme]);

  const keys = (event: KeyboardEvent) => {
    const move = { ArrowLeft: [40, 0], ArrowRight: [-40, 0], ArrowUp: [0, 40], ArrowDown: [0, -40] }[
      event.key
    ];
    if (move) setView((old) => old && { ...old, x: old.x + move[0]!, y: old.y + move[1]! });
    else if (event.key === "+" || event.key === "=") zoom(1.5);
    else if (event.key === "-") zoom(1 / 1.5);
    else if (event.key === "0") whole();
    else return;
    event.preventDefault();
    event.stopPropagation();
  };
  const [high, wide] = image.tile;
  return (
    <div class="mask">
      <canvas
        ref={canvas}
        style={{ height: `${height}px` }}
        tabIndex={0}
        role="img"
        aria-label={`Mask of ${image.rows} by ${image.columns}`}
        onKeyDown={keys}
        onPointerDown={(event) => {
          drag.current = { x: event.clientX, y: event.clientY };
          event.currentTarget.setPointerCapture(event.pointerId);
        }}
        onPointerMove={(event) => {
          if (drag.current) {
            const [x, y] = [event.clientX - drag.current.x, event.clientY - drag.current.y];
            drag.current = { x: event.clientX, y: event.clientY };
            setView((old) => old && { ...old, x: old.x + x, y: old.y + y });
          } else if (view && data) {
            const row = Math.floor((event.offsetY - view.y) / view.scale);
            const column = Math.floor((event.offsetX - view.x) / view.scale);
            const inside = row >= 0 && column >= 0 && row < image.rows && column < image.columns;
            const share = inside ? maskReader(image, data)(row, column) : 0;
            const state = high * wide > 1 ? `${percent(share)} kept` : share ? "kept" : "pruned";
            setUnder(inside ? `output ${count(row)}, input ${count(column)}: ${state}` : "");
          }
        }}
        onPointerUp={() => (drag.current = null)}
        onPointerLeave={() => setUnder("")}
      />
      <div class="bar">
        <p class="legend">
          <i class="key mask-on" /> kept <i class="key mask-off" /> pruned
          <span class="faint">
            {" "}
            {under || `${count(image.rows)} outputs down, ${count(image.columns)} inputs across`}
          </span>
        </p>
        <div class="zoom" role="group" aria-label="Zoom">
          <button onClick={() => zoom(1 / 1.5)} aria-label="Smaller">
            −
          </button>
          <button onClick={whole} aria-label="Whole mask">
            ⤢
          </button>
          <button onClick={() => zoom(1.5)} aria-label="Larger">
            +
          </button>
        </div>
      </div>
      {high * wide > 1 && (
        <p class="faint">
          Too large for this page: each tile of {high} × {wide} shows the share that is kept.
        </p>
      )}
    </div>
  );
}

function drawTile(
  image: MaskImage,
  read: (row: number, column: number) => number,
  top: number,
  left: number,
  step: number,
  [off, on]: [number[], number[]],
): HTMLCanvasElement {
  const tile = document.createElement("canvas");
  tile.width = Math.min(TILE, Math.ceil((image.columns - left) / step));
  tile.height = Math.min(TILE, Math.ceil((image.rows - top) / step));
  const context = tile.getContext("2d")!;
  const pixels = context.createImageData(tile.width, tile.height);
  let at = 0;
  for (let y = 0; y < tile.height; y++) {
    for (let x = 0; x < tile.width; x++) {
      const [row, column] = [top + y * step, left + x * step];
      const [last, end] = [Math.min(row + step, image.rows), Math.min(column + step, image.columns)];
      let sum = 0;
      for (let r = row; r < last; r++) for (let c = column; c < end; c++) sum += read(r, c);
      const share = sum / ((last - row) * (end - column));
      for (let part = 0; part < 3; part++) pixels.data[at++] = off[part]! + (on[part]! - off[part]!) * share;
      pixels.data[at++] = 255;
    }
  }
  context.putImageData(pixels, 0, 0);
  return tile;
}

/** "#rrggbb" as three numbers. */
function rgb(text: string): number[] {
  return [1, 3, 5].map((at) => parseInt(text.trim().slice(at, at + 2), 16));
}
