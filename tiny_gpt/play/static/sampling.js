// The distribution that the next token is drawn from, computed from what the server sent with it (play/next_token.py)
// in the same order as inference/sampling.py: temperature, top-k, top-p, min-p. So moving a slider asks nobody.

const LOWEST_TEMPERATURE = 1e-30;

// {ids: base64 of uint32, logits: base64 of fp32, rest: [[mean logit, count], ...]} -> the same as arrays
export function unpack(summary) {
  if (summary.top === undefined) {
    const ids = new Uint32Array(bytes(summary.ids).buffer);
    const logits = new Float32Array(bytes(summary.logits).buffer);
    Object.defineProperty(summary, "top", { value: { ids, logits }, enumerable: false });
  }
  return { ids: summary.top.ids, logits: summary.top.logits, rest: summary.rest };
}

// Probabilities of the likeliest tokens, in their order; of all others together; and how many tokens can be drawn.
// Settings: {temperature, top_k, top_p, min_p}. Temperature 0 always takes the likeliest.
export function distribution(summary, settings) {
  const { logits, rest } = unpack(summary);
  const { temperature, top_k, top_p, min_p } = settings;
  const weights = new Float64Array(logits.length);
  if (temperature === 0) {
    weights[0] = 1;
    return { probabilities: weights, others: 0, allowed: 1, entropy: 0 };
  }
  const t = Math.max(temperature, LOWEST_TEMPERATURE);
  // The rest as bins: [weight of one token, count], from the likeliest on.
  let bins = rest.map(([logit, count]) => [Math.exp((logit - logits[0]) / t), count]);
  for (let i = 0; i < logits.length; i++) {
    weights[i] = Math.exp(Math.fround(logits[i] - logits[0]) / t); // the difference is fp32 there too
  }
  if (top_k > 0) {
    weights.fill(0, top_k);
    bins = keepCount(bins, top_k - logits.length);
  }
  if (top_p < 1) bins = keepTopP(weights, bins, top_p);
  if (min_p > 0) {
    for (let i = 0; i < weights.length; i++) if (weights[i] < min_p) weights[i] = 0;
    bins = bins.filter(([weight]) => weight >= min_p);
  }
  return normalized(weights, bins);
}

// The model's own probabilities: temperature 1, nothing ruled out.
export const ownDistribution = (summary) => distribution(summary, { temperature: 1, top_k: 0, top_p: 1, min_p: 0 });

function keepCount(bins, n) {
  const kept = [];
  for (const [weight, count] of bins) {
    if (n <= 0) break;
    kept.push([weight, Math.min(count, n)]);
    n -= count;
  }
  return kept;
}

// Rules out (sets to 0) what the fewest likeliest tokens with the share p do not need; returns the bins that are left.
function keepTopP(weights, bins, p) {
  const total = sum(weights) + bins.reduce((all, [weight, count]) => all + weight * count, 0);
  let likelier = 0;
  for (let i = 0; i < weights.length; i++) {
    const weight = weights[i];
    if (likelier >= p * total) weights[i] = 0;
    likelier += weight;
  }
  const kept = [];
  for (const [weight, count] of bins) {
    const missing = p * total - likelier;
    if (missing <= 0) break;
    kept.push([weight, Math.min(count, Math.ceil(missing / weight))]);
    likelier += weight * count;
  }
  return kept;
}

function normalized(weights, bins) {
  const rest = bins.reduce((all, [weight, count]) => all + weight * count, 0);
  const total = sum(weights) + rest;
  const probabilities = weights.map((weight) => weight / total);
  let entropy = 0;
  let allowed = 0;
  for (const p of probabilities) {
    if (p <= 0) continue;
    entropy -= p * Math.log2(p);
    allowed += 1;
  }
  for (const [weight, count] of bins) {
    if (weight > 0) entropy -= count * (weight / total) * Math.log2(weight / total);
    allowed += count;
  }
  return { probabilities, others: rest / total, allowed, entropy };
}

function sum(values) {
  let total = 0;
  for (const value of values) total += value;
  return total;
}

export function bytes(base64) {
  return Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
}
