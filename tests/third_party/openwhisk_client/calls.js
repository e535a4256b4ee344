// Makes the calls of OpenWhisk's JavaScript client that are asked for, one JSON array [resource, method,
// options] per line, and answers each with a line. Key and address come from the environment.
'use strict'

const readline = require('node:readline')
const openwhisk = require('openwhisk')

const client = openwhisk()

async function call ([resource, method, options]) {
  if (options && options.zip) { // JSON has no bytes
    options.action = Buffer.from(options.zip, 'base64')
  }
  try {
    const value = await client[resource][method](options === null ? undefined : options)
    return { value: Buffer.isBuffer(value) ? value.toString() : value }
  } catch (error) {
    return { thrown: { message: error.message, status: error.statusCode, body: error.error } }
  }
}

async function main () {
  for await (const line of readline.createInterface({ input: process.stdin })) {
    process.stdout.write(JSON.stringify(await call(JSON.parse(line))) + '\n')
  }
}

main()
