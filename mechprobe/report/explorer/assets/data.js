// Reads the data files, which call `explorer.receive…`, and keeps what they hold as typed arrays.
"use strict";

const explorer = { table: null, started: null, shards: new Map(), waiting: new Map() };
const KEPT_SHARDS = 16;

function bytesOf(text) {
  const binary = atob(text);
  const bytes = new Uint8Array(binary.length);
  for (let i = 0; i < bytes.length; i++) bytes[i] = binary.charCodeAt(i);
  return bytes;
}

const floats = (text) => new Float32Array(bytesOf(text).buffer);
const whole = (text) => new Uint32Array(bytesOf(text).buffer);

// All models, numbers and texts of the table. A feature is known by its place among the live features.
explorer.receiveTable = (data) => {
  const values = {};
  for (const [key, text] of Object.entries(data.values)) values[key] = floats(text);
  const feature = whole(data.feature);
  const place = new Map();
  feature.forEach((id, index) => place.set(id, index));
  explorer.table = {
    ...data,
    tuned: data.models.filter((name) => name !== data.base),
    values,
    feature,
    place,
    class: bytesOf(data.class),
    rank: new Int32Array(bytesOf(data.rank).buffer),
    tokens: {
      texts: data.tokens.texts,
      lower: data.tokens.texts.map((text) => text.toLowerCase()),
      peaks: { start: whole(data.tokens.peaks.start), token: whole(data.tokens.peaks.token) },
      promoted: { start: whole(data.tokens.promoted.start), token: whole(data.tokens.promoted.token) },
    },
  };
  explorer.started();
};

explorer.receiveShard = (number, shard) => {
  explorer.shards.set(number, shard);
  if (explorer.shards.size > KEPT_SHARDS) explorer.shards.delete(explorer.shards.keys().next().value);
};

// The shard that holds a place, read from its script where it is not kept.
function shardOf(place) {
  const number = Math.floor(place / explorer.table.shard_features);
  if (explorer.shards.has(number)) return Promise.resolve(explorer.shards.get(number));
  if (!explorer.waiting.has(number)) {
    const file = `data/shard_${number}.js`;
    const read = new Promise((resolve, reject) => {
      const script = document.createElement("script");
      script.src = file;
      script.charset = "utf-8";
      script.onload = () => resolve(explorer.shards.get(number));
      script.onerror = () => reject(new Error(`${file} cannot be read; make the report again.`));
      script.addEventListener("load", () => script.remove());
      document.head.append(script);
    }).finally(() => explorer.waiting.delete(number));
    explorer.waiting.set(number, read);
  }
  return explorer.waiting.get(number);
}

// Everything that the page of a feature shows.
async function readFeature(place) {
  const table = explorer.table;
  const shard = await shardOf(place);
  const local = place % table.shard_features;
  const numbers = floats(shard.details);
  const details = {};
  table.details.forEach((key, column) => (details[key] = numbers[local * table.details.length + column]));
  return {
    place,
    id: table.feature[place],
    class: table.classes[table.class[place]],
    rank: table.rank[place],
    label: table.labels[table.feature[place]] || "",
    details,
    contexts: shard.contexts ? readContexts(shard.contexts, local) : [],
    promoted: shard.promoted ? readPromoted(shard.promoted, local) : [],
    courses: (shard.courses && shard.courses[table.feature[place]]) || [],
  };
}

function readContexts(packed, local) {
  const start = whole(packed.start);
  const part = new Int16Array(bytesOf(packed.part).buffer);
  const range = floats(packed.range);
  const [sample, row, peak, offset] = ["sample", "row", "peak", "offset"].map((name) => whole(packed[name]));
  const bytes = bytesOf(packed.token);
  const token = packed.strings.length > 0xffff ? new Uint32Array(bytes.buffer) : new Uint16Array(bytes.buffer);
  const response = bytesOf(packed.response);
  const acts = {};
  for (const [name, found] of Object.entries(packed.acts)) {
    acts[name] = typeof found === "string" ? acts[found] : { at: whole(found.at), value: floats(found.value) };
  }
  const contexts = [];
  for (let c = start[local]; c < start[local + 1]; c++) {
    const [first, stop] = [offset[c], offset[c + 1]];
    const values = {};
    for (const [name, found] of Object.entries(acts)) values[name] = dense(found, first, stop);
    contexts.push({
      part: part[c],
      range: Array.from(range.subarray(4 * c, 4 * c + 4)),
      sample: sample[c],
      row: row[c],
      peak: peak[c],
      tokens: Array.from(token.subarray(first, stop), (index) => packed.strings[index]),
      response: Array.from({ length: stop - first }, (_, i) => (response[(first + i) >> 3] >> ((first + i) & 7)) & 1),
      values,
    });
  }
  return contexts;
}

function dense(found, first, stop) {
  const values = new Float32Array(stop - first);
  for (let i = firstAtLeast(found.at, first); i < found.at.length && found.at[i] < stop; i++) {
    values[found.at[i] - first] = found.value[i];
  }
  return values;
}

function firstAtLeast(sorted, value) {
  let [low, high] = [0, sorted.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (sorted[middle] < value) low = middle + 1;
    else high = middle;
  }
  return low;
}

function readPromoted(packed, local) {
  return Object.entries(packed.models).map(([model, ends]) => {
    const read = {};
    for (const [end, found] of Object.entries(ends)) {
      const token = whole(found.token);
      const value = floats(found.value);
      const n = token.length / Math.max(1, packed.size);
      read[end] = Array.from({ length: n }, (_, i) => ({
        text: packed.strings[token[local * n + i]],
        value: value[local * n + i],
      }));
    }
    return { model, ...read };
  });
}
