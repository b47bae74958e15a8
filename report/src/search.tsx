import { useEffect, useMemo, useRef, useState } from "preact/hooks";
import { search } from "./data";
import { useStore } from "./state";

export function Search({ close }: { close: () => void }) {
  const { report, open } = useStore();
  const [query, setQuery] = useState("");
  const [at, setAt] = useState(0);
  const input = useRef<HTMLInputElement>(null);
  const found = useMemo(() => search(report, query), [report, query]);
  useEffect(() => input.current?.focus(), []);
  const choose = (place: number) => {
    const one = found[place];
    if (!one) return;
    open({ kind: one.kind, network: one.network, place: one.place });
    close();
  };
  const pressed = (event: KeyboardEvent) => {
    if (event.key === "Enter") choose(at);
    else if (event.key === "ArrowDown") setAt(Math.min(at + 1, found.length - 1));
    else if (event.key === "ArrowUp") setAt(Math.max(at - 1, 0));
    else return;
    event.preventDefault();
  };
  const two = report.networks.length === 2;
  return (
    <div class="veil" onClick={close}>
      <div
        class="dialog search"
        role="dialog"
        aria-label="Search"
        onClick={(event) => event.stopPropagation()}
      >
        <input
          ref={input}
          type="search"
          placeholder="Part of a name: layer3 conv1"
          aria-label="Part of a name"
          value={query}
          onInput={(event) => {
            setQuery(event.currentTarget.value);
            setAt(0);
          }}
          onKeyDown={pressed}
        />
        <ul role="listbox" aria-label="Found">
          {found.map((one, place) => (
            <li key={`${one.kind}${one.network}${one.name}`} role="option" aria-selected={place === at}>
              <button onClick={() => choose(place)} onPointerEnter={() => setAt(place)} tabIndex={-1}>
                <span class="tag">{one.kind}</span>
                <span class="mono">{one.name}</span>
                {two && <span class="faint">{one.network ? "result" : "source"}</span>}
              </button>
            </li>
          ))}
          {query.trim() && !found.length && <li class="nothing">Nothing has such a name.</li>}
        </ul>
      </div>
    </div>
  );
}
