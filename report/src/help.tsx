const KEYS: [string, string][] = [
  ["1 – 5", "the five views"],
  ["/", "search weights and blocks by name"],
  ["↑ ↓", "from block to block, in tables from row to row"],
  ["← →", "from a block to its source, and back to its copies"],
  ["Enter", "open what has the focus"],
  ["+ −", "larger and smaller blocks, masks and operations"],
  ["0", "the usual size"],
  ["t", "light, dark, or as the system has it"],
  ["Esc", "close"],
];

export function Help({ close }: { close: () => void }) {
  return (
    <div class="veil" onClick={close}>
      <div class="dialog" role="dialog" aria-label="Keys" onClick={(event) => event.stopPropagation()}>
        <h2>Keys</h2>
        <dl class="keys">
          {KEYS.map(([key, what]) => (
            <div key={key}>
              <dt>
                <kbd>{key}</kbd>
              </dt>
              <dd>{what}</dd>
            </div>
          ))}
        </dl>
      </div>
    </div>
  );
}
