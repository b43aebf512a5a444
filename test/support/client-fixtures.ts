import { onTestFinished } from 'vitest'
import type { CallError, ClientOptions } from '../../src/client/create-fetch.js'
import { type Answer, startServer, type TestServer } from './http-server.js'
import { type Fate, startWire } from './unreliable-wire.js'

/** Waits that are over before anybody looks. */
export const QUICK: ClientOptions = { backoff: { base: 1, max: 5 } }

/** A request that needs a key. */
export const POST = { method: 'POST', body: '{"amount":5}' }

/** A server that is gone when the test is over. */
export async function aServer(answer: Answer): Promise<TestServer> {
  const server = await startServer(answer)
  onTestFinished(server.close)
  return server
}

/** A server that answers with one status after the other, and with the last one from then on. */
export function statuses(...sequence: readonly number[]): Promise<TestServer> {
  return aServer((reply, _, number) => {
    const status = sequence[Math.min(number, sequence.length) - 1] ?? 200
    reply.writeHead(status, { 'content-type': 'text/plain' })
    reply.end(status === 204 ? undefined : `answer ${number}`)
  })
}

/** The address of a wire to a server. Its connections meet their fates one after the other. */
export async function aWire(server: { readonly port: number }, ...fates: readonly Fate[]): Promise<string> {
  const wire = await startWire(server.port, fates)
  onTestFinished(wire.close)
  return wire.url
}

/** What a call failed with. */
export async function failureOf(call: Promise<unknown>): Promise<CallError> {
  return call.then(
    () => {
      throw new Error('The call was answered')
    },
    (error) => error,
  )
}

/** The keys that a server got, each of them once. */
export function keysOf({ requests }: TestServer): readonly (string | undefined)[] {
  return [...new Set(requests.map(({ key }) => key))]
}
