import { useStore } from "./state";

export function Made() {
  const { report } = useStore();
  const network = report.networks.at(-1)!;
  const first = report.networks.length > 1 ? report.networks[0]! : null;
  return (
    <section class="made">
      <ol>
        {first && (
          <li>
            <h3>
              Source <span class="mono">{first.label}</span>
            </h3>
            {first.note && <p class="faint">{first.note}</p>}
          </li>
        )}
        {network.steps.map((step, place) => (
          <li key={place}>
            <h3>
              {step.kind === "pass" ? "Pass " : ""}
              <span class={step.kind === "pass" ? "mono" : ""}>{step.text}</span>
            </h3>
            <dl class="facts">
              {step.facts.map(([name, value]) => (
                <div key={name}>
                  <dt>{name}</dt>
                  <dd class="mono">{value}</dd>
                </div>
              ))}
            </dl>
          </li>
        ))}
        <li>
          <h3>
            {first ? "Result" : "Network"} <span class="mono">{network.label}</span>
          </h3>
          <dl class="facts">
            {network.facts.map(([name, value]) => (
              <div key={name}>
                <dt>{name}</dt>
                <dd>{value}</dd>
              </div>
            ))}
          </dl>
          {network.note && <p class="faint">{network.note}</p>}
          {!network.steps.length && <p class="faint">No change of depth and no pass is recorded.</p>}
        </li>
      </ol>
      <p class="faint">Made by {report.generator}.</p>
    </section>
  );
}
