// Light, dark, or as the system has it; kept where the browser lets a page keep anything.
export type Theme = "auto" | "light" | "dark";

const KEY = "elastic-ir-report-theme";
const ORDER: Theme[] = ["auto", "light", "dark"];

export function nextTheme(theme: Theme): Theme {
  return ORDER[(ORDER.indexOf(theme) + 1) % ORDER.length]!;
}

export function storedTheme(): Theme {
  try {
    return ORDER.find((theme) => theme === localStorage.getItem(KEY)) ?? "auto";
  } catch {
    return "auto"; // in a notebook's frame nothing may be kept
  }
}

export function setTheme(theme: Theme): void {
  document.documentElement.dataset.theme = theme;
  dispatchEvent(new Event("themechange"));
  try {
    localStorage.setItem(KEY, theme);
  } catch {
    return;
  }
}
