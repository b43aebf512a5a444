import { execFile } from 'node:child_process'
import { randomUUID } from 'node:crypto'
import { promisify } from 'node:util'
import { got, HTTPError } from 'got'
import Stripe from 'stripe'
import { createFetch } from '../../src/client/create-fetch.js'
import { PAYMENTS_PATH } from './payments-api.js'

/** What a caller is told in the end. */
export interface Told {
  readonly status: number
  readonly isReplay: boolean
  /** The number of the payment, where it is told. */
  readonly id: string | undefined
}

/** A client as it is used in the wild, with retries of its own. */
export interface PayingClient {
  readonly name: string
  /**
   * Pays 500 at a server on a port of this machine.
   *
   * @param attemptMs how long it waits for an answer before it gives up an attempt.
   */
  pay(port: number, attemptMs?: number): Promise<Told>
}

/** Longer than an answer takes on a busy machine. */
const PATIENT_MS = 20_000

const AUTHORIZATION = 'Bearer sk_test_123'

/** The clients that need nothing of the machine. */
export const packagedClients: readonly PayingClient[] = [
  {
    name: 'stripe',
    async pay(port, attemptMs = PATIENT_MS) {
      try {
        const paid = await aStripe(port, attemptMs).paymentIntents.create({ amount: 500, currency: 'eur' })
        const { statusCode, headers } = paid.lastResponse as typeof paid.lastResponse & { statusCode: number }
        return { status: statusCode, isReplay: headers['idempotent-replayed'] === 'true', id: paid.id }
      } catch (error) {
        if (!(error instanceof Stripe.errors.StripeError)) throw error
        const { statusCode = 0, headers } = error
        return { status: statusCode, isReplay: headers?.['idempotent-replayed'] === 'true', id: undefined }
      }
    },
  },
  {
    name: 'got',
    async pay(port, attemptMs = PATIENT_MS) {
      const answer = await got
        .post(`http://127.0.0.1:${port}${PAYMENTS_PATH}`, {
          // One key, made before the first attempt: got sends the same headers with every one.
          headers: { 'idempotency-key': randomUUID(), authorization: AUTHORIZATION },
          json: { amount: 500 },
          timeout: { request: attemptMs },
          retry: {
            // Without these two, it repeats no POST, and nothing that is in progress.
            methods: ['POST'],
            statusCodes: [408, 409, 429, 500, 502, 503, 504],
            limit: 5,
            maxRetryAfter: 10_000,
            backoffLimit: 500,
          },
        })
        .catch((error: unknown) => {
          if (error instanceof HTTPError) return error.response
          throw error
        })
      return toldOf(answer.statusCode, answer.headers['idempotent-replayed'], String(answer.body))
    },
  },
  {
    name: 'createFetch of oncekey/client',
    async pay(port, attemptMs = PATIENT_MS) {
      const fetch = createFetch({ timeout: attemptMs })
      const answer = await fetch(`http://127.0.0.1:${port}${PAYMENTS_PATH}`, {
        method: 'POST',
        headers: { 'content-type': 'application/json', authorization: AUTHORIZATION },
        body: JSON.stringify({ amount: 500 }),
      })
      return toldOf(answer.status, answer.headers.get('idempotent-replayed'), await answer.text())
    },
  },
]

/** The program of that name. */
export const curl: PayingClient = {
  name: 'curl',
  // Without --retry-all-errors, it repeats nothing whose connection broke; without --fail, nothing that is in progress.
  pay: (port, attemptMs) =>
    runCurl(port, attemptMs, ['--fail', '--retry', '5', '--retry-delay', '1', '--retry-all-errors']),
}

/** Stripe's client, pointed at a server of our own. */
export function aStripe(port: number, attemptMs = PATIENT_MS): Stripe {
  return new Stripe('sk_test_123', {
    host: '127.0.0.1',
    port,
    protocol: 'http',
    maxNetworkRetries: 5,
    timeout: attemptMs,
  })
}

/** Runs curl with a key of its own, and gives what it was answered last. A status of 0: nothing. */
export async function runCurl(
  port: number,
  attemptMs = PATIENT_MS,
  options: readonly string[] = [],
): Promise<Told> {
  const { stdout } = await promisify(execFile)('curl', [
    ...['--silent', '--include', '--max-time', String(attemptMs / 1000), ...options],
    ...['--header', `Idempotency-Key: ${randomUUID()}`, '--header', `Authorization: ${AUTHORIZATION}`],
    ...['--data', 'amount=500', `http://127.0.0.1:${port}${PAYMENTS_PATH}`],
  ]).catch((error: { readonly stdout?: string }) => {
    // It ends with a code of its own when it was answered with a failure, or not at all.
    if (error.stdout === undefined) throw error
    return { stdout: error.stdout }
  })
  const [, status = '0', head = '', body = ''] =
    stdout.slice(stdout.lastIndexOf('HTTP/1.1')).match(/^HTTP\/1\.1 (\d+)(.*?)\r\n\r\n(.*)$/s) ?? []
  return toldOf(Number(status), /^idempotent-replayed: (\w+)\r?$/im.exec(head)?.[1], body)
}

function toldOf(status: number, replayed: unknown, body: string): Told {
  const id = status === 201 ? (JSON.parse(body) as { id: string }).id : undefined
  return { status, isReplay: replayed === 'true', id }
}
