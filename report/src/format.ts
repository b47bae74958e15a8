// Numbers as people read them.

export function count(value: number | null): string {
  return value === null ? "–" : value.toLocaleString("en-US");
}

const UNITS = ["", " K", " M", " G", " T", " P"];

/** Three digits and a unit: 855,770 as "856 K". */
export function short(value: number | null): string {
  if (value === null) return "–";
  let amount = value;
  let unit = 0;
  while (amount >= 999.5 && unit < UNITS.length - 1) {
    amount /= 1000;
    unit++;
  }
  const digits = unit === 0 || amount >= 99.95 ? 0 : amount >= 9.995 ? 1 : 2;
  return `${amount.toFixed(digits)}${UNITS[unit]}`;
}

export function bytes(value: number | null): string {
  return value === null ? "–" : `${short(value)}${value < 999.5 ? " " : ""}B`;
}

export function percent(share: number | null): string {
  return share === null ? "–" : `${(share * 100).toFixed(1)} %`;
}

export function shape(extents: number[] | null): string {
  return extents === null ? "–" : extents.length ? extents.join(" × ") : "scalar";
}

export function number(value: number): string {
  return Math.abs(value) >= 1e4 || (value !== 0 && Math.abs(value) < 1e-3)
    ? value.toExponential(2)
    : String(Number(value.toPrecision(4)));
}

/** How much larger or smaller: "1.83 times", "" where nothing is to be compared. */
export function ratio(before: number | null, after: number | null): string {
  if (!before || after === null || before === after) return "";
  const times = after / before;
  return `× ${times >= 10 ? times.toFixed(0) : times.toFixed(2)}`;
}
