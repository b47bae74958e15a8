// A table whose columns sort; only the rows in sight are drawn, so that ten thousand weights scroll as ten do.
import type { ComponentChildren } from "preact";
import { useMemo, useRef, useState } from "preact/hooks";

export interface Column<T> {
  name: string;
  value: (item: T) => number | string | null;
  cell?: (item: T) => ComponentChildren;
  numeric?: boolean;
  wide?: boolean;
}

const ROW = 34;

export function sorted<T>(items: T[], column: Column<T> | undefined, down: boolean): T[] {
  if (!column) return items;
  const values = new Map(items.map((item) => [item, column.value(item)]));
  return [...items].sort((one, other) => {
    const [a, b] = [values.get(one) ?? null, values.get(other) ?? null];
    if (a === null || b === null) return a === b ? 0 : a === null ? 1 : -1; // what is not known comes last
    const order =
      typeof a === "number" && typeof b === "number"
        ? a - b
        : String(a).localeCompare(String(b), "en", { numeric: true });
    return down ? -order : order;
  });
}

interface TableProps<T> {
  items: T[];
  columns: Column<T>[];
  label: string;
  height?: string;
  chosen?: (item: T) => boolean;
  choose?: (item: T) => void;
}

export function Table<T>({ items, columns, label, height, chosen, choose }: TableProps<T>) {
  const [by, setBy] = useState<string | null>(null);
  const [down, setDown] = useState(false);
  const [top, setTop] = useState(0);
  const box = useRef<HTMLDivElement>(null);
  const rows = useMemo(
    () =>
      sorted(
        items,
        columns.find((column) => column.name === by),
        down,
      ),
    [items, columns, by, down],
  );
  const room = height ? (box.current?.clientHeight ?? 900) : rows.length * ROW + ROW;
  const first = Math.max(0, Math.floor(top / ROW) - 12);
  const last = Math.min(rows.length, Math.ceil((top + room) / ROW) + 12);
  const sort = (column: Column<T>) => {
    setDown(by === column.name ? !down : column.numeric === true);
    setBy(column.name);
  };
  const pressed = (event: KeyboardEvent) => {
    const step = event.key === "ArrowDown" ? 1 : event.key === "ArrowUp" ? -1 : 0;
    const row = event.target instanceof HTMLElement ? event.target.closest("tr") : null;
    if (!step || !row) return;
    const next = step > 0 ? row.nextElementSibling : row.previousElementSibling;
    if (next instanceof HTMLElement && next.tabIndex === 0) next.focus();
    event.preventDefault();
  };
  return (
    <div
      class="table"
      style={height ? { height, overflow: "auto" } : undefined}
      ref={box}
      onScroll={(event) => setTop(Math.floor(event.currentTarget.scrollTop / ROW) * ROW)}
    >
      <table aria-label={label} aria-rowcount={rows.length} onKeyDown={pressed}>
        <thead>
          <tr>
            {columns.map((column) => (
              <th
                key={column.name}
                class={column.numeric ? "numeric" : ""}
                aria-sort={by !== column.name ? "none" : down ? "descending" : "ascending"}
              >
                <button onClick={() => sort(column)}>
                  {column.name}
                  <span class="arrow">{by !== column.name ? "" : down ? " ↓" : " ↑"}</span>
                </button>
              </th>
            ))}
          </tr>
        </thead>
        <tbody>
          {first > 0 && <tr style={{ height: `${first * ROW}px` }} aria-hidden="true" />}
          {rows.slice(first, last).map((item, place) => (
            <tr
              key={first + place}
              tabIndex={choose ? 0 : undefined}
              class={chosen?.(item) ? "chosen" : ""}
              onClick={() => choose?.(item)}
              onKeyDown={(event) => event.key === "Enter" && choose?.(item)}
            >
              {columns.map((column) => (
                <td
                  key={column.name}
                  class={`${column.numeric ? "numeric" : ""} ${column.wide ? "wide" : ""}`}
                >
                  {column.cell ? column.cell(item) : (column.value(item) ?? "–")}
                </td>
              ))}
            </tr>
          ))}
          {last < rows.length && (
            <tr style={{ height: `${(rows.length - last) * ROW}px` }} aria-hidden="true" />
          )}
        </tbody>
      </table>
    </div>
  );
}
