// Inside a worker: the OpenWhisk action runtime for Node.js. Words and rules are those of
// apache/openwhisk-runtime-nodejs (core/nodejsActionBase: runner.js, src/service.js).
//
// Run as `node runner.js FOLDER`. File descriptor 3 is the pool's channel: messages of a JSON head and a body,
// preceded by their lengths (4 and 8 bytes, big endian), as in frames.py.
'use strict';

const fs = require('fs');
const { createRequire } = require('module');
const net = require('net');
const path = require('path');
const { pathToFileURL } = require('url');
const vm = require('vm');

const RESULT_BYTES_MAX = 1 << 20;
const HEAD_OF_OVERSIZE_BYTES = 1024;
const LENGTHS_BYTES = 12;

const folder = process.argv[2];
const single = path.join(folder, '__main__.js');
const channel = new net.Socket({ fd: 3, readable: true, writable: true });
let entry = null;

// The single file of an action that was deployed as text: `main` need not be exported.
function loadSingle(name) {
  const code = `${fs.readFileSync(single, 'utf8')}
;try { return ${name} } catch (e) {
  if (!(e instanceof ReferenceError)) throw e;
  return module.exports.${name} || exports.${name};
}`;
  const own = { exports: {} };
  const parameters = ['require', 'module', 'exports', '__filename', '__dirname'];
  // So that the action may `import()`; Node.js before 20.12 has no such constant.
  const importModuleDynamically = vm.constants?.USE_MAIN_CONTEXT_DEFAULT_LOADER;
  const body = vm.compileFunction(code, parameters, { filename: single, importModuleDynamically });
  return body.call(globalThis, createRequire(single), own, own.exports, single, folder);
}

// A zip: a package.json or an index.js at its root; `main` may be "file.function".
async function loadPackage(name) {
  const at = name.lastIndexOf('.');
  const file = at > 0 ? path.join(folder, name.slice(0, at)) : folder;
  if (at <= 0 && !fs.existsSync(path.join(folder, 'package.json')) && !fs.existsSync(path.join(folder, 'index.js'))) {
    throw 'Zipped actions must contain either package.json or index.js at the root.';
  }
  let loaded;
  try {
    loaded = require(file);
  } catch (error) {
    if (error.code !== 'ERR_REQUIRE_ESM') throw error;
    const { main = 'index.js' } = JSON.parse(fs.readFileSync(path.join(folder, 'package.json'), 'utf8'));
    loaded = await import(pathToFileURL(at > 0 ? require.resolve(file) : path.join(folder, main)).href);
  }
  return loaded[name.slice(at + 1)];
}

async function init(request) {
  Object.assign(process.env, request.env);
  try {
    if (!/^[\w$./-]+$/.test(request.main)) throw 'Name of main function is not valid.';
    entry = fs.existsSync(single) ? loadSingle(request.main) : await loadPackage(request.main);
    if (typeof entry !== 'function') throw `Action entrypoint '${request.main}' is not a function.`;
    return '';
  } catch (error) {
    console.error('Error during initialization:', error);
    return `Initialization has failed due to: ${error && error.stack ? error.stack : error}`;
  }
}

// What a rejection looks like as a result: an Error's own fields are not enumerable.
function plainError(error) {
  if (!error) return {};
  return error instanceof Error ? { ...error, name: error.name, message: error.message, stack: error.stack } : error;
}

// [the result's JSON, why there is none]
async function run(parameters) {
  let result;
  try {
    result = entry(parameters);
  } catch (error) {
    console.error(error);
    return ['', `An error has occurred: ${error}`];
  }
  try {
    result = await result;
    if (result === undefined) result = {};
  } catch (error) {
    result = { error: plainError(error) };
  }
  try {
    return [JSON.stringify(result) ?? 'null', ''];
  } catch (error) {
    console.error(error);
    return ['', `An error has occurred: ${error}`];
  }
}

async function answer(head, body) {
  const request = JSON.parse(body.toString());
  for (const [key, value] of Object.entries(head.context)) process.env[`__OW_${key.toUpperCase()}`] = value;
  let told;
  let content = Buffer.alloc(0);
  if (head.kind === 'init') {
    const error = await init(request);
    told = { ok: !error, error };
  } else {
    const [text, problem] = await run(request);
    content = Buffer.from(text);
    told = problem ? { ok: false, error: problem } : { ok: true };
    if (content.length > RESULT_BYTES_MAX) {
      told.bytes = content.length;
      content = content.subarray(0, HEAD_OF_OVERSIZE_BYTES);
    }
  }
  const text = Buffer.from(JSON.stringify({ id: head.id, ...told }));
  const lengths = Buffer.alloc(LENGTHS_BYTES);
  lengths.writeUInt32BE(text.length, 0);
  lengths.writeBigUInt64BE(BigInt(content.length), 4);
  channel.write(Buffer.concat([lengths, text, content]));
}

let pending = Buffer.alloc(0);
let turn = Promise.resolve();
channel.on('data', (data) => {
  pending = Buffer.concat([pending, data]);
  while (pending.length >= LENGTHS_BYTES) {
    const headBytes = pending.readUInt32BE(0);
    const end = LENGTHS_BYTES + headBytes + Number(pending.readBigUInt64BE(4));
    if (pending.length < end) return;
    const head = JSON.parse(pending.subarray(LENGTHS_BYTES, LENGTHS_BYTES + headBytes).toString());
    const body = pending.subarray(LENGTHS_BYTES + headBytes, end);
    pending = pending.subarray(end);
    turn = turn.then(() => answer(head, body));
  }
});
channel.on('end', () => process.exit(0));
channel.on('error', () => process.exit(0));
