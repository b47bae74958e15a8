// The frame of the page: figures, views, search, theme and the panel of what is open.
import { useCallback, useEffect, useMemo, useState } from "preact/hooks";
import { Architecture } from "./architecture";
import { Cost } from "./cost";
import { Figures } from "./figures";
import { Help } from "./help";
import { Made } from "./made";
import { Panel } from "./panel";
import type { Report } from "./schema";
import { Search } from "./search";
import { Sparsity } from "./sparsity";
import { StoreContext, type Opened, type View } from "./state";
import { nextTheme, setTheme, storedTheme, type Theme } from "./theme";
import { Weights } from "./weights";

const VIEWS: [View, string][] = [
  ["architecture", "Architecture"],
  ["sparsity", "Sparsity"],
  ["cost", "Cost"],
  ["weights", "Weights"],
  ["made", "How it was made"],
];

const VIEW_OF = {
  architecture: Architecture,
  sparsity: Sparsity,
  cost: Cost,
  weights: Weights,
  made: Made,
};

export function App({ report, masks }: { report: Report; masks: Promise<Uint8Array> }) {
  const [view, show] = useState<View>("architecture");
  const [opened, open] = useState<Opened | null>(null);
  const [theme, chooseTheme] = useState<Theme>(storedTheme);
  const [help, setHelp] = useState(false);
  const [searching, setSearching] = useState(false);
  const changeTheme = useCallback(() => chooseTheme(nextTheme), []);
  useEffect(() => setTheme(theme), [theme]);

  useEffect(() => {
    const pressed = (event: KeyboardEvent) => {
      const typing = event.target instanceof HTMLInputElement;
      if (event.key === "Escape") {
        if (searching) setSearching(false);
        else if (help) setHelp(false);
        else open(null);
        return;
      }
      if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
      const number = Number(event.key);
      if (number >= 1 && number <= VIEWS.length) show(VIEWS[number - 1]![0]);
      else if (event.key === "/") setSearching(true);
      else if (event.key === "t") changeTheme();
      else if (event.key === "?") setHelp((shown) => !shown);
      else return;
      event.preventDefault();
    };
    addEventListener("keydown", pressed);
    return () => removeEventListener("keydown", pressed);
  }, [searching, help, changeTheme]);

  const store = useMemo(() => ({ report, masks, opened, open, view, show }), [report, masks, opened, view]);
  const Shown = VIEW_OF[view];
  const last = report.networks.at(-1)!;
  return (
    <StoreContext.Provider value={store}>
      <div class={opened ? "page with-panel" : "page"}>
        <header class="top">
          <div class="titles">
            <h1>{titled(report)}</h1>
            <p class="sub" title={last.label}>
              {last.label}
              {last.facts.slice(0, 4).map(([name, value]) => ` · ${name} ${value}`)}
            </p>
          </div>
          <div class="tools">
            <button class="search-open" onClick={() => setSearching(true)} aria-label="Search by name">
              <Lens /> <span>Search</span> <kbd>/</kbd>
            </button>
            <button
              class="tool"
              onClick={changeTheme}
              aria-label={`Theme: ${theme}`}
              title={`Theme: ${theme} (t)`}
            >
              {theme === "dark" ? "☾" : theme === "light" ? "☀" : "◐"}
            </button>
            <button class="tool" onClick={() => setHelp(true)} aria-label="Keys" title="Keys (?)">
              ?
            </button>
          </div>
        </header>
        <Figures />
        <nav class="views" role="tablist" aria-label="Views">
          {VIEWS.map(([name, label], place) => (
            <button
              key={name}
              role="tab"
              aria-selected={view === name}
              onClick={() => show(name)}
              title={`${label} (${place + 1})`}
            >
              {label}
            </button>
          ))}
        </nav>
        <main>
          {report.note && <p class="note">{report.note}</p>}
          <Shown />
        </main>
        {opened && <Panel key={`${opened.kind}${opened.network}-${opened.place}`} />}
        {searching && <Search close={() => setSearching(false)} />}
        {help && <Help close={() => setHelp(false)} />}
      </div>
    </StoreContext.Provider>
  );
}

function titled(report: Report): string {
  const last = report.networks.at(-1)!;
  const first = report.networks[0]!;
  if (first !== last && first.depth !== null && last.depth !== null)
    return `${last.name}, ${first.depth} → ${last.depth} layers`;
  return last.depth !== null ? `${last.name}, ${last.depth} layers` : last.name;
}

function Lens() {
  return (
    <svg
      width="14"
      height="14"
      viewBox="0 0 16 16"
      fill="none"
      stroke="currentColor"
      stroke-width="1.8"
      aria-hidden="true"
    >
      <circle cx="7" cy="7" r="5" />
      <path d="M11 11l4 4" stroke-linecap="round" />
    </svg>
  );
}
