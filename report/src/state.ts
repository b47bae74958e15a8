// What is open and what is pointed at; one store, which views read through a hook.
import { createContext } from "preact";
import { useContext } from "preact/hooks";
import type { Report } from "./schema";

export type View = "architecture" | "sparsity" | "cost" | "weights" | "made";

export type Opened =
  | { kind: "block"; network: number; place: number }
  | { kind: "row"; network: number; place: number }
  | { kind: "weight"; network: number; place: number };

export interface Store {
  report: Report;
  masks: Promise<Uint8Array>;
  opened: Opened | null;
  open: (what: Opened | null) => void;
  view: View;
  show: (view: View) => void;
}

export const StoreContext = createContext<Store | null>(null);

export function useStore(): Store {
  const store = useContext(StoreContext);
  if (!store) throw new Error("no report around this view");
  return store;
}

export function same(one: Opened | null, other: Opened | null): boolean {
  return one?.kind === other?.kind && one?.network === other?.network && one?.place === other?.place;
}
