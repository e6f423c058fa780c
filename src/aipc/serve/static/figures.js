// How fast an answer comes and came, in words.

// The page's own clock: it counts while the answer comes, until the server's figures take its place.
export class Pace {
  #began = performance.now();
  #first = 0;
  #count = 0;

  take() {
    this.#first ||= performance.now();
    this.#count += 1;
  }

  words() {
    const now = performance.now();
    const known = [`first token ${seconds((this.#first - this.#began) / 1000)}`];
    if (now > this.#first) known.push(`about ${rate((1000 * (this.#count - 1)) / (now - this.#first))}`);
    return known.join(" · ");
  }
}

// What answered, how fast, and how long the answer is: of the last chunk of a stream.
export function figuresOf({ usage, timings }) {
  const { device, runtime, precision } = timings;
  return [device, runtime, precision, speedOf(timings), `${usage.completion_tokens} tokens`].filter(Boolean).join(" · ");
}

export function speedOf({ ttft_s, tokens_per_s }) {
  const known = [];
  if (ttft_s !== null) known.push(`first token ${seconds(ttft_s)}`);
  if (tokens_per_s !== null) known.push(rate(tokens_per_s));
  return known.join(" · ");
}

const seconds = (value) => (value < 0.1 ? `${Math.ceil(1000 * value)} ms` : `${value.toFixed(2)} s`);
const rate = (value) => `${value.toFixed(1)} tokens/s`;
