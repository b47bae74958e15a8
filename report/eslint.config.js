import eslint from "@eslint/js";
import tseslint from "typescript-eslint";

export default tseslint.config(
  { ignores: ["dist", "node_modules"] },
  eslint.configs.recommended,
  tseslint.configs.strict,
  {
    rules: {
      "@typescript-eslint/no-non-null-assertion": "off",
      // A name of a file could become mark-up by these alone.
      "no-restricted-properties": [
        "error",
        { property: "innerHTML", message: "names from files are text" },
        { property: "outerHTML", message: "names from files are text" },
        { property: "insertAdjacentHTML", message: "names from files are text" },
      ],
      "no-restricted-syntax": [
        "error",
        {
          selector: "JSXAttribute[name.name='dangerouslySetInnerHTML']",
          message: "names from files are text",
        },
      ],
    },
  },
  {
    files: ["**/*.mjs", "**/*.js"],
    languageOptions: { globals: { console: "readonly", process: "readonly", URL: "readonly" } },
  },
  {
    // what Playwright runs in the page
    files: ["e2e/**"],
    languageOptions: {
      globals: Object.fromEntries(
        ["document", "getComputedStyle", "performance", "requestAnimationFrame", "OffscreenCanvas"].map(
          (name) => [name, "readonly"],
        ),
      ),
    },
  },
);
